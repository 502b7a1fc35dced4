"""Shows each scenario to all tools at once, each in a process of its own, and compares what they say with the truth."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.scenarios import LAG_S, Scenario, befall, plan
from efftrain.meters.ledger import Ledger
from efftrain.record.journal import read_journal
from efftrain.record.quantities import Quantity
from nvml_driver import World

HERE = Path(__file__).parent
OURS = "efftrain"
PEERS = ("codecarbon", "zeus", "carbontracker")
READY_S, SPARE_S = 120, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one tool said of one window; energies in J.

    Attributes:
        low: lower end of the interval that the tool claims; None: it claims none.
        high: upper end; None: it claims none, or no upper bound.
        value: None where the tool gave nothing.
        note: why not, or what the tool knows to be wrong with it.
    """

    scenario: str
    tool: str
    window_s: float
    start_s: float
    truth_j: float
    value_j: float | None
    low: float | None
    high: float | None
    note: str

    @property
    def error(self) -> float:
        """Relative error; no value is an error of −100 %."""
        return (self.value_j or 0.0) / self.truth_j - 1

    @property
    def covered(self) -> bool | None:
        """Whether the truth lies in the interval; None: no interval is claimed."""
        if self.low is None:
            return None
        return self.low <= self.truth_j and (self.high is None or self.truth_j <= self.high)


@dataclass(frozen=True, slots=True)
class Stage:
    """One scenario in its world, with the processes that measure in it."""

    scenario: Scenario
    world: World
    folder: Path
    windows: list[tuple[float, float]]
    workers: dict[str, subprocess.Popen[str]]


def run_batch(
    scenarios: Sequence[Scenario], counts: Mapping[float, int], *, folder: Path, peers: Path | None, seed: int
) -> Iterator[Row]:
    """Rows of several scenarios that run at the same time.

    Args:
        scenarios: what is shown.
        counts: how many windows of each length in s.
        folder: for journals and logs.
        peers: Python of the peers' environment; None: efftrain alone.
        seed: of the windows' times and the faults'.

    Raises:
        RuntimeError: a tool did not get ready or did not finish.
    """
    stages = [_open(scenario, plan(counts, seed + i), folder, peers) for i, scenario in enumerate(scenarios)]
    try:
        for stage in stages:
            for tool, worker in stage.workers.items():
                _wait_until_ready(worker, f"{stage.scenario.name}, {tool}", stage.folder / f"{tool}.log")
        start_ns = time.monotonic_ns() + round(LAG_S * 1e9)
        for i, stage in enumerate(stages):
            befall(stage.world, stage.scenario, stage.windows, stage.world.seconds(start_ns), seed + i)
            times = [[start_ns + round(t * 1e9) for t in window] for window in stage.windows]
            for worker in stage.workers.values():
                assert worker.stdin is not None
                print(json.dumps(times), file=worker.stdin, flush=True)
        longest = max(stage.windows[-1][1] for stage in stages)
        for stage in stages:
            for tool, worker in stage.workers.items():
                if worker.wait(longest + SPARE_S):
                    raise RuntimeError(f"{stage.scenario.name}, {tool}: see {stage.folder / f'{tool}.log'}")
    finally:
        for stage in stages:
            for worker in stage.workers.values():
                worker.kill()
    for stage in stages:
        for tool in stage.workers:
            yield from _rows(stage, tool, start_ns)


def sampler_core_share(folder: Path, scenario: Scenario) -> float:
    """CPU time of efftrain's sampler in a scenario that was run, as a share of one core."""
    return float((folder / _slug(scenario) / "journal.cpu").read_text())


def _slug(scenario: Scenario) -> str:
    return "".join(c if c.isalnum() else "-" for c in scenario.name)


def _open(scenario: Scenario, windows: list[tuple[float, float]], folder: Path, peers: Path | None) -> Stage:
    place = folder / _slug(scenario)
    place.mkdir(parents=True)
    world = World(scenario.devices, folder=place)
    environ = {**world.environ(), "OMP_NUM_THREADS": "1", "HOME": str(place)}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    commands = {OURS: [sys.executable, "ours.py", f"{OURS}.json", "journal.jsonl"]}
    if peers is not None:
        commands |= {tool: [str(peers), "peers.py", tool, f"{tool}.json"] for tool in PEERS}
    workers = {tool: _start(tool, command, place, environ) for tool, command in commands.items()}
    return Stage(scenario, world, place, windows, workers)


def _start(tool: str, command: list[str], place: Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    python, script, *arguments = command
    if tool == "codecarbon":  # it asks no GPU where it finds no nvidia-smi, although NVML answers
        stub = place / "bin" / "nvidia-smi"
        stub.parent.mkdir()
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
        environ = {**environ, "PATH": f"{stub.parent}{os.pathsep}{environ['PATH']}"}
    with (place / f"{tool}.log").open("w") as log:
        return subprocess.Popen(
            [python, str(HERE / script), *arguments], cwd=place, env=environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip


def _wait_until_ready(worker: subprocess.Popen[str], name: str, log: Path) -> None:
    """Read on to the line that says so; what a tool prints goes elsewhere."""
    assert worker.stdout is not None
    watchdog = threading.Timer(READY_S, worker.kill)
    watchdog.start()
    answer = worker.stdout.readline().strip()
    watchdog.cancel()
    if answer != "ready":
        raise RuntimeError(f"{name} did not get ready: see {log}")


def _rows(stage: Stage, tool: str, start_ns: int) -> Iterator[Row]:
    results: list[dict[str, Any]] = json.loads((stage.folder / f"{tool}.json").read_text())
    energies = _from_journal(stage, results) if tool == OURS else None
    for i, ((start, end), result) in enumerate(zip(stage.windows, results, strict=True)):
        boards = range(len(stage.scenario.devices))
        truth = sum(stage.world.true_energy(b, result["start"], result["end"]) for b in boards)
        quantity = energies[i] if energies else None
        yield Row(
            scenario=stage.scenario.name, tool=tool, window_s=round(end - start, 3),
            start_s=(result["start"] - start_ns) / 1e9, truth_j=truth,
            value_j=quantity.value if quantity else result["joules"],
            low=quantity.low if quantity else None, high=quantity.high if quantity else None,
            note=quantity.source if quantity else result["note"],
        )  # fmt: skip


def _from_journal(stage: Stage, results: Sequence[Mapping[str, Any]]) -> list[Quantity]:
    journal = read_journal(stage.folder / "journal.jsonl")
    ledger = Ledger(journal.header)
    for line in journal.lines:
        ledger.feed(line)
    return [ledger.components([(r["start"], r["end"])])["gpu"] for r in results]
