"""Which sensors this machine has, and what one of them shows when it is looked at.

Found are the GPUs of the run, the processor's own counters, and the process's CPU seconds where those counters cannot
be read. What the machine has and nobody can read is named with the reason and, where there is one, the cure: a missing
figure is then missing by name and never 0.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from efftrain.record.journal import Clock
from efftrain.record.quantities import Method
from efftrain.sensors.cpu_time import CpuTimeSensor
from efftrain.sensors.nvml import Devices, find_gpus
from efftrain.sensors.protocol import Absent, Discovery, Sensor, Watts
from efftrain.sensors.rapl import POWERCAP, find_rapl

REST_OF_NODE = Absent(
    component="rest_of_node",
    name="rest-of-node",
    why="no sensor reads fans, disks, network, voltage regulators and the losses of the power supply",
    cure="give their watts with --node-overhead-w, from a meter at the wall if you can",
)
POLL_S = 0.002


def discover(
    devices: Devices | None,
    *,
    cpu_watts: tuple[Watts, Method, str],
    assumed: Sequence[Sensor] = (),
    powercap: Path = POWERCAP,
    library: Any = pynvml,
    environ: Mapping[str, str] = os.environ,
) -> Discovery:
    """Open every sensor that belongs to a run.

    Args:
        devices: GPUs of the run, by number as CUDA counts or by UUID. Empty for a run on the CPU: GPUs that a run does
            not use are no part of it and are left alone. None: all GPUs that CUDA may see.
        cpu_watts: W of one busy thread, how that is known and from where; used only where no counter of the processor
            can be read.
        assumed: sensors that stand in for a component which nothing else reads.
        powercap: folder of the processor's counters.
        library: the `pynvml` module, or what acts like it.
        environ: where CUDA_VISIBLE_DEVICES stands.
    """
    gpus, gpu_absent = find_gpus(devices, library=library, environ=environ)
    counters, host_absent = find_rapl(powercap)
    sensors: list[Sensor] = [*gpus, *counters]
    if not any(s.info.component == "cpu" for s in counters):
        model = CpuTimeSensor(*cpu_watts)
        sensors.append(model)
        host_absent = [replace(a, stand_in=model.info.name) if a.component == "cpu" else a for a in host_absent]
    host_absent.append(REST_OF_NODE)
    read = {s.info.component for s in sensors}
    for sensor in assumed:
        component, name = sensor.info.component, sensor.info.name
        if component not in read:
            sensors.append(sensor)
            host_absent = [replace(a, stand_in=name) if a.component == component else a for a in host_absent]
    return Discovery(sensors=sensors, absent=[*gpu_absent, *host_absent])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What looking at one sensor for a moment has shown, or why there is nothing to see.

    Attributes:
        name: of the sensor.
        component: `gpu`, `cpu`, `dram` or `rest_of_node`.
        value: by how much a counter moved, in `unit`, or the mean of a power; None: nothing was read.
        unit: `J`, `W` or `s`; empty where nothing was read.
        duration_s: how long it was looked at.
        tick_period_s: median time between two changes of the reading; None where it changed fewer than three times, or
            nearly as often as it was read, so that the period is shorter than can be seen.
        method: `measured`, `modelled`, `assumed` or `missing`.
        detail: the source of the readings, or why there are none.
        cure: what would help, or empty.
    """

    name: str
    component: str
    value: float | None = None
    unit: str = ""
    duration_s: float = 0.0
    tick_period_s: float | None = None
    method: Method = "missing"
    detail: str
    cure: str = ""


def examine(
    discovery: Discovery,
    *,
    seconds: float = 1.0,
    clock: Clock = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Finding]:
    """Look at all sensors at once for `seconds`, reading each every 2 ms; then name what is absent."""
    readings: dict[str, list[tuple[int, float]]] = {s.info.name: [] for s in discovery.sensors}
    failures: dict[str, str] = {}
    end = clock() + round(seconds * 1e9)
    while clock() <= end:
        for sensor in discovery.sensors:
            try:
                readings[sensor.info.name].append((clock(), sensor.read()))
            except Exception as error:  # a driver may come up with anything; it is what the caller wants to know
                failures[sensor.info.name] = str(error) or type(error).__name__
        sleep(POLL_S)
    seen = [_seen(sensor, readings[sensor.info.name], failures) for sensor in discovery.sensors]
    return seen + [_unseen(absent) for absent in discovery.absent]


def _seen(sensor: Sensor, readings: Sequence[tuple[int, float]], failures: Mapping[str, str]) -> Finding:
    info = sensor.info
    if not readings:
        return Finding(name=info.name, component=info.component, detail=failures.get(info.name, "nothing was read"))
    values = [value for _, value in readings]
    moved = values[-1] - values[0]
    if info.wrap_at is not None and moved < 0:
        moved += info.wrap_at
    changes = [t for (t, value), before in zip(readings[1:], values, strict=False) if value != before]
    gaps = [b - a for a, b in itertools.pairwise(changes)]
    visible = 1 < len(gaps) < 0.8 * len(readings)
    return Finding(
        name=info.name, component=info.component, value=statistics.fmean(values) if info.kind == "power" else moved,
        unit=info.unit, duration_s=(readings[-1][0] - readings[0][0]) / 1e9,
        tick_period_s=statistics.median(gaps) / 1e9 if visible else None, method=info.method, detail=info.source,
    )  # fmt: skip


def _unseen(absent: Absent) -> Finding:
    detail = absent.why + (f"; {absent.stand_in} stands in" if absent.stand_in else "")
    return Finding(name=absent.name, component=absent.component, detail=detail, cure=absent.cure)
