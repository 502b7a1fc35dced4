"""The process of one run: what it is told, how it is followed, stopped and closed.

This process imports no torch and computes nothing that a run could feel. A run's process is in a session of its own,
so that Ctrl-C reaches this process alone, which then asks the run to stop and waits for it. No record is read or
written here, so that runs can be made where records cannot be.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from efftrain.meters.attempts_means import common_sum
from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.ranks import with_ranks
from efftrain.meters.windows import billed_windows
from efftrain.monitor.idle import measure_idle
from efftrain.monitor.launch import Rank
from efftrain.monitor.machine import find_sensors
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import Journal, JournalError, JournalTail, Line, append_line, read_journal
from efftrain.record.quantities import Quantity
from efftrain.record.recorder import ENDED_WELL
from efftrain.study.launch import Crew, Loss, NoCrew, peak_of_all
from efftrain.study.peaks import peak_rates
from efftrain.study.planning.plan import Plan, RunPlan
from efftrain.training.config import Precision, RunConfig

POLL_INTERVAL_S: Final = 0.25
STOP_PATIENCE_S: Final = 20.0
SAVE_PATIENCE_S: Final = 300.0
"""For a run that writes a checkpoint when it is stopped: 1.5 GB took 20 s on a busy machine, and disks are slower."""

IDLE_S: Final = 10.0
LAST_LINES: Final = 8


class Observer(Protocol):
    """Is told how a study goes on: for a progress display."""

    def message(self, text: str) -> None:
        """Something worth a line."""
        ...

    def run_started(self, run: RunPlan, index: int, total: int) -> None:
        """Run `index` of `total`, from 1."""
        ...

    def line(self, line: Line) -> None:
        """A line that the current run has written into its journal."""
        ...

    def run_ended(self, run: RunPlan, status: str, detail: str) -> None:
        """The current run is over."""
        ...


def make_run(
    run: RunPlan, folder: StudyFolder, spec: dict[str, Any], observer: Observer, crew: Crew | None = None
) -> tuple[str, str, bool]:
    """One run in one process a rank; its status, what its process said last if it failed, and whether Ctrl-C ended it.

    Args:
        run: what is to be made.
        folder: of the study.
        spec: as `run_spec` makes it.
        observer: told of each line of the journal.
        crew: the other ranks.
    """
    stopped, process, crew = False, None, crew or NoCrew()
    if not (spec.get("resume") or spec.get("before")):
        _clear(folder.run(run.run_id))
    spec_path = folder.run(run.run_id) / "spec.json"
    spec_path.write_text(json.dumps(spec))
    tail = JournalTail(folder.journal(run.run_id))
    try:
        crew.begin(run.run_id, spec_path)
        with folder.log(run.run_id).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "efftrain.study.running.worker", str(spec_path)],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        while process.poll() is None:
            time.sleep(POLL_INTERVAL_S)
            for line in tail.read():
                observer.line(line)
            crew.watch(process)
    except KeyboardInterrupt:
        stopped = True
        if process is not None:  # else it was just being started: it stops by itself when this process is gone
            keeps = run.config.checkpoint_every is not None
            if keeps:
                observer.message("stopping once a checkpoint is written; Ctrl-C again ends it at once")
            _stop(process, SAVE_PATIENCE_S if keeps else STOP_PATIENCE_S)
    for line in tail.read():
        observer.line(line)
    lost = crew.ended(process.returncode if process else None)
    _close_journal(run, folder, spec, "interrupted" if stopped or process is None else process.returncode, lost)
    spec_path.unlink(missing_ok=True)
    status = run_status(folder, run)
    return status, "" if status in ENDED_WELL else _detail(folder, run), stopped


def _stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a run to stop within a step; end it where it does not, or where Ctrl-C comes again."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(patience_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _close_journal(
    run: RunPlan, folder: StudyFolder, spec: dict[str, Any], ended_by: int | Literal["interrupted"], lost: Loss | None
) -> None:
    """Write what a dead process could not: how it ended. A process that was killed is left without an end line.

    `ended_by` is the process's exit status, negative for a signal, or `interrupted` where Ctrl-C ended it; `lost` says
    why another rank was lost, which then ended this one.
    """
    path = folder.journal(run.run_id)
    if not path.exists():
        append_line(path, "header", schema="efftrain.journal/1", **_header_of_a_stillborn(run, spec))
    try:
        ended = bool(read_journal(path).of("end"))
    except JournalError:
        return
    if ended or (ended_by == -signal.SIGKILL and not lost):
        return
    if lost:
        append_line(path, "end", status=lost.status, detail=lost.reason)
    elif ended_by == "interrupted":
        append_line(path, "end", status="interrupted")
    else:
        said = _last_lines(folder.log(run.run_id)) or "the process said nothing"
        append_line(path, "end", status="failed", detail=f"{said} (exit status {ended_by})")


def _header_of_a_stillborn(run: RunPlan, spec: dict[str, Any]) -> dict[str, Any]:
    """The header of a run whose process died before it could write one."""
    known = {key: spec[key] for key in ("run_id", "study_id", "variant", "seed", "config", "carbon", "peak")}
    return {
        **known, "environment": {}, "corpus": {}, "sensors": [], "absent": [], "idle": {}, "parameters": 0,
        "teacher": None, "clock": {},
    }  # fmt: skip


def run_spec(plan: Plan, run: RunPlan, folder: StudyFolder, facts: dict[str, Any]) -> dict[str, Any]:
    """What the run's process is told; `facts` are carbon, peak rate and idle power for its header."""
    first = next(other.run_id for other in plan.runs if other.variant == run.variant)
    counted = folder.journal(first)
    return {
        "run_id": run.run_id, "study_id": plan.study_id, "variant": run.variant, "seed": run.seed,
        "config": run.config.as_dict(), "text": dataclasses.asdict(plan.text), "origin": plan.origin,
        "notes": list(plan.notes), **facts, "journal": str(folder.journal(run.run_id)),
        "costs": str(counted) if first != run.run_id and counted.exists() else None,
        "weights": str(folder.weights(run.run_id)) if run.teaches else None,
        "teacher": _teacher(run, folder), "parent": os.getpid(),
    }  # fmt: skip


def _teacher(run: RunPlan, folder: StudyFolder) -> dict[str, Any] | None:
    if run.teacher is None:
        return None
    attempts = [
        *(with_ranks(read_journal(path), folder.attempt_ranks(path)) for path in folder.attempts(run.teacher)),
        with_ranks(read_journal(folder.journal(run.teacher)), folder.ranks(run.teacher)),
    ]
    energies = [_energy(journal) for journal in attempts if journal.of("step")]
    return {
        "run_id": run.teacher, "weights": str(folder.weights(run.teacher)),
        "energy": dataclasses.asdict(common_sum(energies)),
    }  # fmt: skip


def _energy(journal: Journal) -> Quantity:
    """What one attempt of a run used."""
    ledger = Ledger(journal.header)
    for line in journal.lines:
        ledger.feed(line)
    return ledger.total(billed_windows(journal.lines))


def measure_peaks(plan: Plan, observer: Observer, rank: Rank) -> dict[Precision, dict[str, Any]]:
    """The peak rate for each precision of the plan, of the devices of all ranks together."""
    configs: dict[Precision, RunConfig] = {run.config.precision: run.config for run in plan.runs}
    if not configs:
        return {}
    any_config = next(iter(configs.values()))
    observer.message("peak rate of this device for " + ", ".join(configs))
    peaks = peak_rates(any_config.device, configs, any_config.threads * rank.ranks)
    return {precision: peak_of_all(found, any_config.device, rank) for precision, found in peaks.items()}


def measure_idle_power(plan: Plan, observer: Observer, rank: Rank) -> dict[str, Any]:
    """Idle watts of the sensors that measure; nothing, and no wait, where energy is modelled."""
    if not plan.runs:
        return {}
    device = plan.runs[0].config.device
    found = find_sensors(device, gpus=rank.gpus(device))
    measuring = [sensor for sensor in found.sensors if sensor.info.kind in ("energy", "power")]
    if measuring:
        observer.message(f"idle power, {IDLE_S:.0f} s")
    idle = measure_idle(measuring, IDLE_S) if measuring else {}
    for sensor in found.sensors:
        sensor.close()
    return idle


def run_status(folder: StudyFolder, run: RunPlan) -> str:
    """How a run ended, as its journal says; `not made` where it has none."""
    try:
        return read_journal(folder.journal(run.run_id)).status
    except JournalError:
        return "not made"


def _detail(folder: StudyFolder, run: RunPlan) -> str:
    with contextlib.suppress(JournalError):
        for line in reversed(read_journal(folder.journal(run.run_id)).of("end")):
            return str(line.get("detail", ""))
    return ""


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return "\n".join(lines[-LAST_LINES:])


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
