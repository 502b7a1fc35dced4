"""The studies: planned where records can be rendered, made where the GPU is, collected where they were planned.

A prepared study is one file, STUDY.json, with its plan and its settings. The stage makes its runs in order, each as
`efftrain bench` makes it, and keeps each journal as soon as it is whole; the next try goes on with the next run.
"""

import dataclasses
import gzip
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_truth.sensors import pack
from efftrain.hardware.probe import cpu
from efftrain.monitor.launch import this_rank
from efftrain.record.folder import StudyFolder
from efftrain.record.plain import from_plain
from efftrain.sensors.nvml import gpu_facts
from efftrain.study.planning.plan import Plan, RunPlan, make_plan
from efftrain.study.planning.request import Request
from efftrain.study.planning.variants import BASELINE, VARIANTS
from efftrain.study.process import make_run, measure_idle_power, measure_peaks, run_spec, run_status
from efftrain_kernels.evidence.gpu import KEPT, restore
from efftrain_kernels.evidence.stages import Stage

SMALL, LARGE = "study-small", "study-1b"
STEPS = {SMALL: 60, LARGE: 50}
EVALUATIONS, EVAL_BATCHES = 2, 4
LARGE_RUNS: dict[str, dict[str, Any]] = {
    "sdpa": {},
    "sdpa-compile": {"compile": True},
    "kernels": {"attention": "efftrain"},
    "kernels-compile": {"attention": "efftrain", "compile": True},
}
WORTHWHILE_S = 30.0
"""A run is not begun with less time than this."""
STOP_S = 15.0
"""Before the stage's end a run is asked to stop: it may be in a step."""


class Unseen(Stage):
    """A stage whose process has no CUDA context: it would draw power and hold memory beside the runs."""

    @property
    def device_name(self) -> str:
        """As NVML tells it."""
        return super().device_name if self.dry else str(gpu_facts((0,))[0]["name"])


class Said:
    """Prints how a study goes on."""

    def message(self, text: str) -> None:
        """Something worth a line."""
        print(text, flush=True)

    def run_started(self, run: RunPlan, index: int, total: int) -> None:
        """Run `index` of `total`."""
        print(f"{index}/{total} {run.run_id}", flush=True)

    def line(self, line: dict[str, Any]) -> None:
        """Nothing: journals come back."""

    def run_ended(self, run: RunPlan, status: str, detail: str) -> None:
        """How it ended."""
        print(f"{run.run_id}: {status} {detail}", flush=True)


def prepare(out: Path, *, steps: int | None = None, seeds: int = 1, device: str = "cuda", dry: bool = False) -> None:
    """Write the plan of each study into a folder; dry ones are of `nano` on the CPU.

    Args:
        out: folder, made if it is not there.
        steps: of each run; 60 of `small` and 50 of `1b` if None.
        seeds: of `small`; `1b` has one.
        device: where the runs will be made.
        dry: a few steps of a few variants.
    """
    from efftrain.meters.carbon.footprint import resolve

    settings = {"carbon": resolve(None, None, None, None), "node_overhead_w": None, "phase_energy": "regression"}
    out.mkdir(parents=True, exist_ok=True)
    for name in (SMALL, LARGE):
        model = "nano" if dry else name.removeprefix("study-")
        variants = (BASELINE, "bf16", "distilled") if dry and name == SMALL else tuple(VARIANTS)
        request = Request(
            preset="full", model=model, steps=steps or STEPS[name], device="cpu" if dry else device,
            seeds=seeds if name == SMALL else 1, variants=variants if name == SMALL else (BASELINE,),
        )  # fmt: skip
        plan = _seldom_evaluated(make_plan(request))
        plan = plan if name == SMALL else _large(plan, ("sdpa",) if dry else tuple(LARGE_RUNS))
        prepared = {"plan": dataclasses.asdict(plan), "settings": settings}
        (out / f"{name}.json").write_text(json.dumps(prepared, indent=1) + "\n")
        print(f"{out / name}.json: {len(plan.runs)} runs")


def run_study(stage: Stage) -> None:
    """Make the runs of one prepared study that are not there yet."""
    stage = Unseen(stage.name, stage.folder, stage.deadline, stage.dry, stage.before, stage.options)
    plans = stage.options.get("plans")
    path = Path(plans or "") / f"{stage.name}.json"
    if not plans or not path.exists():
        stage.write(complete=True, right=True, skipped=f"--plans: there is no {stage.name}.json; see prepare")
        return
    prepared = json.loads(path.read_text())
    plan = _here(from_plain(Plan, prepared["plan"]), dry=stage.dry)
    kept, folder = stage.folder / KEPT, StudyFolder(stage.folder / "study")
    kept.mkdir(exist_ok=True)
    if not _unpack(kept, folder, plan.study_id):
        stage.before.clear()
    (kept / "prepared.json").write_text(path.read_text())
    facts = _facts(plan, prepared["settings"])
    with _time_limit(stage.deadline - (0.0 if stage.dry else STOP_S)):
        _make_all(stage, plan, folder, facts)


def _make_all(stage: Stage, plan: Plan, folder: StudyFolder, facts: dict[str, Any]) -> None:
    made: dict[str, str] = dict(stage.before.get("runs", {}))
    seconds: dict[str, float] = dict(stage.before.get("seconds_of_runs", {}))
    runs = _pupils_after_their_teachers(plan)

    def write(*, complete: bool) -> None:
        wrong = [f"{run_id}: {status}" for run_id, status in made.items() if status != "complete"]
        stage.write(
            complete=complete, right=not wrong, wrong=wrong, runs=made, seconds_of_runs=seconds, facts=facts
        )  # fmt: skip

    write(complete=False)
    try:
        for index, run in enumerate(runs, 1):
            if run.run_id in made:
                continue
            if not stage.dry and time.monotonic() + WORTHWHILE_S + STOP_S > stage.deadline:
                return
            for one in _with_teacher(run, plan, folder):
                began = time.monotonic()
                Said().run_started(one, index, len(runs))
                status, detail, stopped = make_run(one, folder, _spec(plan, one, folder, facts), Said())
                Said().run_ended(one, status, detail)
                if stopped:
                    return
                made[one.run_id], seconds[one.run_id] = status, round(time.monotonic() - began, 1)
                _keep(stage.folder / KEPT, folder, one)
                write(complete=len(made) == len(runs))
    except KeyboardInterrupt:
        print("the time of this stage is spent", flush=True)


def _pupils_after_their_teachers(plan: Plan) -> list[RunPlan]:
    """Right after: a teacher's weights stay on the machine, which the next try may not have."""
    order = {run.run_id: index for index, run in enumerate(plan.runs)}
    return sorted(plan.runs, key=lambda run: (order[run.teacher or run.run_id], run.teacher is not None))


def _with_teacher(run: RunPlan, plan: Plan, folder: StudyFolder) -> list[RunPlan]:
    """The run, and before it its teacher once more where the teacher's weights are gone."""
    teachers = [other for other in plan.runs if other.run_id == run.teacher]
    return [*(other for other in teachers if not folder.weights(other.run_id).exists()), run]


def _spec(plan: Plan, run: RunPlan, folder: StudyFolder, facts: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in facts.items() if name != "peaks"}
    return run_spec(plan, run, folder, {**own, "peak": facts["peaks"][run.config.precision]})


def _facts(plan: Plan, settings: dict[str, Any]) -> dict[str, Any]:
    """What each run's header says of this machine, measured before the first."""
    alone = this_rank({})
    return {**settings, "peaks": measure_peaks(plan, Said(), alone), "idle": measure_idle_power(plan, Said(), alone)}


def _here(plan: Plan, *, dry: bool) -> Plan:
    """A plan with this machine's number of threads."""
    threads = 1 if dry else cpu().threads
    runs = (dataclasses.replace(run, config=dataclasses.replace(run.config, threads=threads)) for run in plan.runs)
    return dataclasses.replace(plan, runs=tuple(runs))


def _seldom_evaluated(plan: Plan) -> Plan:
    """With two evaluations: what is measured is training."""
    runs = tuple(
        dataclasses.replace(
            run,
            config=dataclasses.replace(
                run.config, eval_every=-(-run.config.steps // EVALUATIONS), eval_batches=EVAL_BATCHES
            ),
        )
        for run in plan.runs
    )
    return dataclasses.replace(plan, runs=runs, command="python -m benchmarks.gpu_truth run")


def _large(plan: Plan, names: tuple[str, ...]) -> Plan:
    """The runs of `LARGE_RUNS`: bf16 all, which no single variant is together with kernels or compilation."""
    (only,) = plan.runs
    runs: list[RunPlan] = []
    for name in names:
        change = LARGE_RUNS[name]
        ours = change.get("attention") == "efftrain"
        config = dataclasses.replace(
            only.config, precision="bf16", compile=change.get("compile", False),
            model=dataclasses.replace(only.config.model, attention="efftrain" if ours else "sdpa"),
            optimizer=dataclasses.replace(only.config.optimizer, name="efftrain" if ours else "torch"),
        )  # fmt: skip
        runs.append(dataclasses.replace(only, run_id=f"{name}-s{only.seed}", variant=name, config=config))
    return dataclasses.replace(plan, baseline=names[0], variants=names, skipped={}, runs=tuple(runs))


def _keep(kept: Path, folder: StudyFolder, run: RunPlan) -> None:
    """Compressed, flat: an archive that is cut off still holds every whole run."""
    pack(folder.journal(run.run_id), kept / f"{run.run_id}.journal.jsonl.gz")
    pack(folder.log(run.run_id), kept / f"{run.run_id}.log.txt.gz")


def _unpack(kept: Path, folder: StudyFolder, study_id: str) -> bool:
    """Put kept journals of this study into a folder; those of another one are dropped."""
    prepared = kept / "prepared.json"
    if prepared.exists() and json.loads(prepared.read_text())["plan"]["study_id"] != study_id:
        for path in kept.iterdir():
            path.unlink()
        return False
    for path in sorted(kept.glob("*.gz")):
        run_id, _, name = path.name.removesuffix(".gz").partition(".")
        folder.run(run_id).mkdir(parents=True, exist_ok=True)
        (folder.run(run_id) / name).write_bytes(gzip.decompress(path.read_bytes()))
    return True


@contextmanager
def _time_limit(deadline: float) -> Iterator[None]:
    """Ctrl-C at a moment of `time.monotonic()`: a run knows how to stop then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), signal.pthread_kill, _main_thread())
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _main_thread() -> tuple[int, int]:
    return threading.main_thread().ident or 0, signal.SIGINT


def collect_studies(archives: Path, out: Path) -> list[Path]:
    """Make the folder of each study that came back, for `efftrain report FOLDER`.

    Raises:
        ValueError: no archive of a study holds a journal.
    """
    from efftrain.study.collect import collect
    from efftrain.study.folder import write_opening

    found: list[Path] = []
    for name in (SMALL, LARGE):
        kept = out / f"{name}.kept"
        if any(path.name == "prepared.json" for path in restore(archives / f"{name}.tar.gz", kept)):
            prepared = json.loads((kept / "prepared.json").read_text())
            plan, folder = from_plain(Plan, prepared["plan"]), StudyFolder(out / name)
            _unpack(kept, folder, plan.study_id)
            write_opening(folder, plan, prepared["settings"])
            missing = {run.run_id: "no journal came back" for run in plan.runs if run_status(folder, run) == "not made"}
            collect(folder, settings={"not_made": missing})
            found.append(folder.root)
        for path in kept.iterdir():
            path.unlink()
        kept.rmdir()
    if not found:
        raise ValueError(f"{archives}: no study-*.tar.gz with a prepared study in it")
    return found
