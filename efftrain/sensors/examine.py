"""What a sensor shows when it is looked at for a moment: does it move, how often, how finely, and do two agree?

Every reading is taken every 2 ms, far more often than a run does, so that a counter's own rhythm can be seen. Nothing
here is kept: it tells whoever asks what this machine's sensors are worth.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from efftrain.record.journal import Clock
from efftrain.record.quantities import Method
from efftrain.sensors.protocol import Absent, Discovery, Sensor

POLL_S = 0.002

Readings = Sequence[tuple[int, float]]
"""(ns, reading) in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What looking at one sensor for a moment has shown, or why there is nothing to see.

    Attributes:
        name: of the sensor.
        component: `gpu`, `cpu`, `dram` or `rest_of_node`.
        value: by how much a counter moved, in `unit`, or the mean of a power; None: nothing was read.
        unit: `J`, `W` or `s`; empty where nothing was read.
        duration_s: how long it was looked at.
        watts: mean power while it was looked at: of an idle machine its idle power; None where it cannot be told.
        tick_period_s: median time between two changes of the reading; None where it changed fewer than three times, or
            nearly as often as it was read, so that the period is shorter than can be seen.
        jitter_s: standard deviation of that time beyond what reading every 2 ms makes of it; None like the period.
        resolution: smallest change seen, in `unit`; None where there was none.
        against_counter: mean of a power beside a counter over the counter's own mean power; None for others.
        method: `measured`, `modelled`, `assumed` or `missing`.
        detail: the source of the readings, or why there are none.
        cure: what would help, or empty.
    """

    name: str
    component: str
    value: float | None = None
    unit: str = ""
    duration_s: float = 0.0
    watts: float | None = None
    tick_period_s: float | None = None
    jitter_s: float | None = None
    resolution: float | None = None
    against_counter: float | None = None
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
    watts = {s.info.name: _watts(s, readings[s.info.name]) for s in discovery.sensors}
    seen = [_seen(sensor, readings[sensor.info.name], watts, failures) for sensor in discovery.sensors]
    return seen + [_unseen(absent) for absent in discovery.absent]


def _seen(
    sensor: Sensor, readings: Readings, watts: Mapping[str, float | None], failures: Mapping[str, str]
) -> Finding:
    info = sensor.info
    if not readings:
        return Finding(name=info.name, component=info.component, detail=failures.get(info.name, "nothing was read"))
    values = [value for _, value in readings]
    gaps = [(b - a) / 1e9 for (a, _), (b, _) in itertools.pairwise(_changes(readings))]
    visible = 1 < len(gaps) < 0.8 * len(readings)
    steps = [abs(b - a) for a, b in itertools.pairwise(values) if a != b]
    own, counter = watts[info.name], watts.get(info.witness_of or "")
    return Finding(
        name=info.name, component=info.component, unit=info.unit, duration_s=(readings[-1][0] - readings[0][0]) / 1e9,
        value=statistics.fmean(values) if info.kind == "power" else _moved(values, info.wrap_at), watts=own,
        tick_period_s=statistics.median(gaps) if visible else None, jitter_s=_jitter(gaps) if visible else None,
        resolution=min(steps, default=None), against_counter=own / counter if own and counter else None,
        method=info.method, detail=info.source,
    )  # fmt: skip


def _changes(readings: Readings) -> Readings:
    return [after for before, after in itertools.pairwise(readings) if after[1] != before[1]]


def _moved(values: Sequence[float], wrap_at: float | None) -> float:
    moved = values[-1] - values[0]
    return moved + wrap_at if wrap_at is not None and moved < 0 else moved


def _watts(sensor: Sensor, readings: Readings) -> float | None:
    """Mean power in W: of a counter from its first update to its last, of which only those tell when they happened."""
    info = sensor.info
    if info.kind == "power":
        return statistics.fmean(value for _, value in readings) if readings else None
    ends = _changes(readings)
    if len(ends) < 2:
        return None
    per_unit = info.watts_per_unit[0] if info.watts_per_unit else 1.0
    return _moved([value for _, value in ends], info.wrap_at) * per_unit / (ends[-1][0] - ends[0][0]) * 1e9


def _jitter(gaps: Sequence[float]) -> float:
    """Standard deviation in s of the gaps, less that of two polls, each late by anything up to 2 ms (rectangular)."""
    return math.sqrt(max(0.0, statistics.variance(gaps) - 2 * POLL_S**2 / 12))


def _unseen(absent: Absent) -> Finding:
    detail = absent.why + (f"; {absent.stand_in} stands in" if absent.stand_in else "")
    return Finding(name=absent.name, component=absent.component, detail=detail, cure=absent.cure)
