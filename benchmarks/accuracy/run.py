"""Shows each scenario to all tools at once, each in a process of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy.scenarios import LAG_S, Scenario, Window, befall, plan
from nvml_driver import World

HERE = Path(__file__).parent
OURS = "efftrain"
PEERS = ("codecarbon", "zeus", "carbontracker")
FACTS = "facts.json"
READY_S, SPARE_S = 120, 60


@dataclass(frozen=True, slots=True)
class Stage:
    """One scenario in its world, with the processes that measure in it."""

    scenario: Scenario
    world: World
    folder: Path
    windows: list[Window]
    workers: dict[str, subprocess.Popen[str]]


def run_batch(
    scenarios: Sequence[Scenario], counts: Mapping[float, int], *, folder: Path, peers: Path | None, seed: int
) -> None:
    """Run several scenarios at the same time; what comes of each lies in its own folder (`place`).

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
            times = [[start_ns + round(t * 1e9) for t in (w.start_s, w.end_s)] for w in stage.windows]
            for worker in stage.workers.values():
                assert worker.stdin is not None
                print(json.dumps(times), file=worker.stdin, flush=True)
        longest = max(stage.windows[-1].end_s for stage in stages)
        for stage in stages:
            for tool, worker in stage.workers.items():
                if worker.wait(longest + SPARE_S):
                    raise RuntimeError(f"{stage.scenario.name}, {tool}: see {stage.folder / f'{tool}.log'}")
    finally:
        for stage in stages:
            for worker in stage.workers.values():
                worker.kill()
    for stage in stages:
        facts = {"origin_ns": stage.world.origin_ns, "start_ns": start_ns, "rows_s": [w.row_s for w in stage.windows]}
        (stage.folder / FACTS).write_text(json.dumps(facts))


def place(folder: Path, scenario: Scenario) -> Path:
    """Where a scenario's journal and results lie."""
    return folder / "".join(c if c.isalnum() else "-" for c in scenario.name)


def _open(scenario: Scenario, windows: list[Window], folder: Path, peers: Path | None) -> Stage:
    own = place(folder, scenario)
    own.mkdir(parents=True)
    world = World(scenario.devices, folder=own)
    environ = {**world.environ(), "OMP_NUM_THREADS": "1", "HOME": str(own)}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    commands = {OURS: [sys.executable, "ours.py", f"{OURS}.json", "journal.jsonl"]}
    if peers is not None:
        commands |= {tool: [str(peers), "peers.py", tool, f"{tool}.json"] for tool in PEERS}
    workers = {tool: _start(tool, command, own, environ) for tool, command in commands.items()}
    return Stage(scenario, world, own, windows, workers)


def _start(tool: str, command: list[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    python, script, *arguments = command
    if tool == "codecarbon":  # it asks no GPU where it finds no nvidia-smi, although NVML answers
        stub = folder / "bin" / "nvidia-smi"
        stub.parent.mkdir()
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
        environ = {**environ, "PATH": f"{stub.parent}{os.pathsep}{environ['PATH']}"}
    with (folder / f"{tool}.log").open("w") as log:
        return subprocess.Popen(
            [python, str(HERE / script), *arguments], cwd=folder, env=environ, text=True,
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
