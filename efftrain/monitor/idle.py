"""What the devices draw while nothing runs, read before and after a study.

Counters are cut at their own ticks, because a window that is cut anywhere is wrong by up to a tick at each end. The
scatter between parts of the window tells how steady the machine was.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence

from efftrain.record.journal import Clock
from efftrain.sensors.protocol import Sensor

BLOCKS = 8
POLL_S = 0.005

Readings = list[tuple[float, float]]
"""(s, reading) in order."""


def measure_idle(
    sensors: Sequence[Sensor],
    seconds: float = 10.0,
    *,
    clock: Clock = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, dict[str, float]]:
    """Mean power of each sensor over a quiet window, for `idle` in the journal's header.

    Returns:
        `{sensor: {"watts": W, "u_watts": W}}`; `u_watts` is the standard uncertainty of the mean: the scatter of eight
        parts of the window and, for a counter, the moment of its first and last tick, known to within one poll of
        5 ms. A sensor is left out if it has no idle power of its own (CPU time) or was not read well enough.
    """
    watched = [sensor for sensor in sensors if sensor.info.kind in ("energy", "power")]
    readings: dict[str, Readings] = {sensor.info.name: [] for sensor in watched}
    end = clock() + round(seconds * 1e9)
    while watched and clock() <= end:
        for sensor in watched:
            _append(sensor, readings[sensor.info.name], clock)
        sleep(POLL_S)
    powers = {sensor.info.name: _mean_power(sensor, readings[sensor.info.name]) for sensor in watched}
    return {name: {"watts": power[0], "u_watts": power[1]} for name, power in powers.items() if power is not None}


def _append(sensor: Sensor, readings: Readings, clock: Clock) -> None:
    try:
        value = sensor.read()
    except Exception:  # whatever a driver comes up with: an idle power less
        return
    readings.append((clock() / 1e9, value))


def _mean_power(sensor: Sensor, readings: Readings) -> tuple[float, float] | None:
    """Mean and standard uncertainty in W, or None."""
    if sensor.info.kind == "power":
        parts = [statistics.fmean(v for _, v in part) for part in _split(readings)]
        return (statistics.fmean(v for _, v in readings), _scatter(parts)) if len(parts) == BLOCKS else None
    ticks = _ticks(readings, sensor.info.wrap_at)
    if ticks is None or len(ticks) < BLOCKS + 1:
        return None
    cuts = [ticks[round(i * (len(ticks) - 1) / BLOCKS)] for i in range(BLOCKS + 1)]
    parts = [_slope(a, b) for a, b in itertools.pairwise(cuts)]
    watts = _slope(ticks[0], ticks[-1])
    # Each end lies anywhere within one poll: a rectangle of that width, twice (GUM, 4.3.7).
    timing = watts * POLL_S / math.sqrt(12) * math.sqrt(2) / (ticks[-1][0] - ticks[0][0])
    return watts, math.hypot(_scatter(parts), timing)


def _ticks(readings: Readings, wrap_at: float | None) -> Readings | None:
    """Where a counter changed, with wraps undone; None where it was reset."""
    ticks: Readings = []
    offset = 0.0
    for (_, before), (t, value) in itertools.pairwise(readings):
        if value < before and wrap_at is None:
            return None
        offset += wrap_at if wrap_at is not None and value < before else 0.0
        if value != before:
            ticks.append((t, value + offset))
    return ticks


def _split(readings: Readings) -> list[Readings]:
    """Eight parts of equal count; fewer where there is too little to split."""
    size = len(readings) // BLOCKS
    return [readings[i * size : (i + 1) * size] for i in range(BLOCKS)] if size else []


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


def _scatter(parts: Sequence[float]) -> float:
    return statistics.stdev(parts) / math.sqrt(len(parts))
