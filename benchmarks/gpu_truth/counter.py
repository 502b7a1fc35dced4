"""The stages that ask the energy counter: its rhythm, whether it looks all the time, whether powers agree with it."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_truth.load import Load
from benchmarks.gpu_truth.sensors import (
    COUNTER,
    FAST_S,
    Activity,
    open_board,
    pack,
    series_of,
    simulated_board,
    watched,
)  # fmt: skip
from benchmarks.gpu_truth.verdicts import mean_watts, part_time, ratios, rhythms, tick_facts
from efftrain.monitor.idle import measure_idle
from efftrain.record.journal import read_journal
from efftrain.sensors.nvml import PERIOD_S
from efftrain.sensors.protocol import Sensor
from efftrain_kernels.evidence.gpu import KEPT
from efftrain_kernels.evidence.stages import Stage

PHASES = 8
TICK_S = 0.1
"""Taken for the counter's period where none can be seen."""


class Bench:
    """What a stage of the counter works with: the board, the load, and a folder that comes back.

    Attributes:
        activity: of the load.
        sensors: open, of the board or simulated.
        kept: folder of what comes back beside the result.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.activity = stage, Activity()
        self.sensors: list[Sensor] = simulated_board(self.activity) if stage.dry else open_board()
        self.kept = stage.folder / KEPT
        self.kept.mkdir(exist_ok=True)

    def load(self) -> Load:
        """The load; a CUDA context from here on."""
        return Load(self.stage.device, self.activity)

    def seconds(self, real: float) -> float:
        """A time that is short in a dry run."""
        return min(real, 0.5) if self.stage.dry else real

    def journal(self, name: str) -> Path:
        """Where a record is written; its compressed copy is kept."""
        return self.stage.folder / f"{name}.jsonl"

    def keep(self, name: str) -> None:
        """Let the compressed copy of a record come back."""
        pack(self.journal(name), self.kept / f"{name}.jsonl.gz")


def run_counter(stage: Stage) -> None:
    """Rhythm and resolution of every reading, idle power without a context and with one, what reading costs."""
    without = _idle_elsewhere(stage, context=False)
    within = _idle_elsewhere(stage, context=True)
    bench = Bench(stage)
    idle = _looked_at(bench, "idle")
    cost = {name: _cost(bench, name, period) for name, period in (("as_in_runs", PERIOD_S), ("fast", FAST_S))}
    load = bench.load()
    load.full(bench.seconds(2.0))
    busy = _looked_at(bench, "load", load)
    stage.write(
        complete=True, right=True, idle_without_context=without, idle_with_context=within, idle=idle, load=busy,
        cost=cost, read_s={sensor.info.name: _read_s(sensor) for sensor in bench.sensors},
    )  # fmt: skip


def run_parttime(stage: Stage) -> None:
    """The same mean power as square waves in step and out of step with the ticks, and the sentence that follows."""
    bench = Bench(stage)
    load, tick_s = bench.load(), _tick(bench)
    ends = {name: _steady(bench, name, load) for name in ("idle", "full")}
    rows: dict[str, Any] = {}
    long_s = bench.seconds(1.0)
    for name, period_s in (("1 tick", tick_s), ("0.77 tick", 0.77 * tick_s), ("2 ticks", 2 * tick_s), ("1 s", long_s)):
        rows[name] = _wave(bench, load, name, period_s, tick_s)
        seen = [row for row in rows["1 tick"]["phases"] if row["watts"][COUNTER] is not None]
        means, duties = [row["watts"][COUNTER] for row in seen], [row["duty"] for row in seen]
        low, high = (ends[end]["watts"][COUNTER] or 0.0 for end in ("idle", "full"))
        verdict = part_time(means, duties, low, high)
        stage.write(
            complete=name == "1 s", right=True, tick_s=tick_s, ends=ends, waves=rows, part_time=verdict,
            verdict=verdict["verdict"],
        )  # fmt: skip


def run_agreement(stage: Stage) -> None:
    """The counter beside the integrated powers: at rest, under full load, under half of it."""
    bench = Bench(stage)
    load = bench.load()
    rows: dict[str, Any] = {}
    for name in ("full", "idle", "half"):
        rows[name] = _steady(bench, name, load, seconds=20.0)
        stage.write(complete=name == "half", right=True, rows=rows)


def _wave(bench: Bench, load: Load, name: str, period_s: float, tick_s: float) -> dict[str, Any]:
    """One square wave for 24 s in eight parts, each a part of a tick later than the last."""
    label = "wave-" + name.replace(" ", "-")
    part_s = 3.0 if not bench.stage.dry else 0.2
    waves = []
    with watched(bench.journal(label), bench.sensors):
        began = time.monotonic_ns()
        for phase in range(PHASES):
            due = began + round(phase * (tick_s * (round((part_s + 0.2) / tick_s) + 1 / PHASES)) * 1e9)
            waves.append(load.square(period_s, part_s, delay_s=max(0.0, (due - time.monotonic_ns()) / 1e9)))
    bench.keep(label)
    series = series_of(bench.journal(label))
    phases = [
        {"duty": wave.duty, "burst_sd_s": wave.late_s, "watts": mean_watts(series, (wave.start, wave.end))}
        for wave in waves
    ]
    for phase in phases:
        phase["over_counter"] = ratios(phase["watts"])
    whole = mean_watts(series, (waves[0].start, waves[-1].end))
    return {"period_s": period_s, "phases": phases, "watts_with_pauses": whole}


def _steady(bench: Bench, name: str, load: Load, seconds: float = 8.0) -> dict[str, Any]:
    """Mean powers under one load, two seconds after it began: a mean over a second reaches back."""
    settle_s, seconds = bench.seconds(2.0), bench.seconds(seconds)
    label = f"steady-{name}"
    with watched(bench.journal(label), bench.sensors):
        for part_s in (settle_s, seconds):
            start = time.monotonic_ns()
            if name == "full":
                load.full(part_s)
            elif name == "half":
                load.square(min(1.0, part_s / 2), part_s)
            else:
                time.sleep(part_s)
        window = (start, time.monotonic_ns())
    bench.keep(label)
    series = series_of(bench.journal(label))
    watts = mean_watts(series, window)
    return {
        "seconds": seconds,
        "watts": watts,
        "over_counter": ratios(watts),
        "ticks": tick_facts(series[COUNTER].track),
    }


def _tick(bench: Bench) -> float:
    """The counter's period in s, seen in an idle moment."""
    with watched(bench.journal("tick"), bench.sensors[:1]):
        time.sleep(bench.seconds(5.0))
    track = series_of(bench.journal("tick"))[COUNTER].track
    return track.period / 1e9 if track is not None and track.period is not None else TICK_S


def _looked_at(bench: Bench, name: str, load: Load | None = None) -> dict[str, Any]:
    """The rhythm of every reading, looked at every 2 ms, and the counter's updates as a run would re-time them."""
    seconds = bench.seconds(6.0)
    label = f"look-{name}"
    with watched(bench.journal(label), bench.sensors):
        start = time.monotonic_ns()
        load.full(seconds) if load else time.sleep(seconds)
        window = (start, time.monotonic_ns())
    bench.keep(label)
    series = series_of(bench.journal(label))
    return {
        "ticks": tick_facts(series[COUNTER].track), "rhythms": rhythms(read_journal(bench.journal(label)).of("tick")),
        "watts": mean_watts(series, window),
    }  # fmt: skip


def _cost(bench: Bench, name: str, period_s: float) -> dict[str, float]:
    """CPU time of reading all sensors in one rhythm, in s a second."""
    start = time.monotonic()
    with watched(bench.journal(f"cost-{name}"), bench.sensors, period_s=period_s) as sampler:
        time.sleep(bench.seconds(8.0))
    return {"period_s": period_s, "cpu_s_per_s": sampler.cpu_seconds / (time.monotonic() - start)}


def _read_s(sensor: Sensor, times: int = 200) -> float:
    """Seconds that one reading takes."""
    start = time.perf_counter()
    for _ in range(times):
        sensor.read()
    return (time.perf_counter() - start) / times


def _idle_elsewhere(stage: Stage, *, context: bool) -> dict[str, Any]:
    """Idle power seen by a process of its own: this one may have touched the device."""
    out = stage.folder / "idle.json"
    seconds = "0.5" if stage.dry else "8"
    options = [*(["--context"] * context), *(["--dry"] * stage.dry)]
    command = [sys.executable, "-m", "benchmarks.gpu_truth.counter", str(out), "--seconds", seconds, *options]
    subprocess.run(command, check=True, timeout=120)
    return json.loads(out.read_text())


def main() -> None:
    """Idle power of the board, without a CUDA context or with one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--context", action="store_true")
    parser.add_argument("--dry", action="store_true")
    chosen = parser.parse_args()
    sensors = simulated_board(Activity()) if chosen.dry else open_board()
    held: Any = None
    if chosen.context and not chosen.dry:
        import torch

        held = torch.zeros(1, device="cuda")
        time.sleep(3.0)  # clocks fall back after the context was made
    idle = measure_idle(sensors, chosen.seconds)
    chosen.out.write_text(json.dumps({"context": held is not None, "seconds": chosen.seconds, "idle": idle}))


if __name__ == "__main__":
    main()
