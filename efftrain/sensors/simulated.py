"""Sensors with a known truth, for tests: what a counter or a power meter would have shown over a given power curve.

A real sensor's energy is never known better than the sensor knows it. Here the power is a formula, so its integral is
exact, and every habit of real hardware (ticks, gain, wrap, reset, drop-outs, averaging) is applied on purpose. Time
comes from an injected clock; t = 0 s is the moment the sensor is made.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from efftrain.record.journal import Clock
from efftrain.sensors.protocol import SensorError, SensorInfo

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """A power in W of the time in s, and its integral from 0 in J, which must be exact."""

    power: Callable[[float], float]
    energy: Callable[[float], float]


def constant(watts: float) -> PowerCurve:
    """The same power for ever."""
    return PowerCurve(lambda _: watts, lambda t: watts * t)


def piecewise(segments: Sequence[tuple[float, float]]) -> PowerCurve:
    """Constant powers one after the other, as (duration in s, W); the last one goes on for ever."""
    starts = [0.0, *accumulate(duration for duration, _ in segments)][:-1]
    joules = [0.0, *accumulate(duration * watts for duration, watts in segments)][:-1]

    def segment(t: float) -> int:
        return max(0, bisect.bisect_right(starts, t) - 1)

    def power(t: float) -> float:
        return segments[segment(t)][1]

    def energy(t: float) -> float:
        i = segment(t)
        return joules[i] + (t - starts[i]) * segments[i][1]

    return PowerCurve(power, energy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a sensor differs from the truth.

    Attributes:
        tick_s: the reading changes once in this time; in between it stands still.
        gain: factor between reading and truth.
        wrap_at: a counter shows its reading modulo this, in J; None: never wraps.
        reset_s: times at which a counter starts again at 0.
        drop_outs_s: half-open stretches (from, to) in which reading raises `SensorError`.
        window_s: a power is the mean over this time before the tick; 0: the power at the tick.
    """

    tick_s: float = 0.1
    gain: float = 1.0
    wrap_at: float | None = None
    reset_s: Sequence[float] = ()
    drop_outs_s: Sequence[tuple[float, float]] = ()
    window_s: float = 0.0


class _Simulated:
    """What the two simulated sensors share: the clock, the ticks and the drop-outs."""

    def __init__(self, curve: PowerCurve, info: SensorInfo, habits: Habits, clock: Clock) -> None:
        self.info = info
        self.closed = False
        self._curve = curve
        self._habits = habits
        self._clock = clock
        self._origin = clock()

    def true_energy(self, t0_ns: int, t1_ns: int) -> float:
        """Joules between two times of the clock, exactly, whatever the sensor shows."""
        start, end = ((t - self._origin) / NS_PER_S for t in (t0_ns, t1_ns))
        return self._curve.energy(end) - self._curve.energy(start)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _last_tick_s(self) -> float:
        elapsed = self._clock() - self._origin
        now_s = elapsed / NS_PER_S
        if any(start <= now_s < end for start, end in self._habits.drop_outs_s):
            raise SensorError(f"{self.info.name}: simulated drop-out at {now_s:g} s")
        tick = round(self._habits.tick_s * NS_PER_S)
        return elapsed // tick * tick / NS_PER_S


class SimulatedCounter(_Simulated):
    """A cumulative energy counter in J."""

    def __init__(
        self, curve: PowerCurve, *, clock: Clock, habits: Habits | None = None, name: str = "simulated",
        period_s: float = 0.05,
    ) -> None:  # fmt: skip
        habits = habits or Habits()
        super().__init__(curve, _info(name, period_s, habits.wrap_at, power=False), habits, clock)

    def read(self) -> float:
        """Joules at the last tick; see `Habits` for what is done to them."""
        tick_s = self._last_tick_s()
        since = max((reset for reset in self._habits.reset_s if reset <= tick_s), default=0.0)
        joules = self._habits.gain * (self._curve.energy(tick_s) - self._curve.energy(since))
        return joules if self._habits.wrap_at is None else math.fmod(joules, self._habits.wrap_at)


class SimulatedPower(_Simulated):
    """A power meter in W."""

    def __init__(
        self, curve: PowerCurve, *, clock: Clock, habits: Habits | None = None, name: str = "simulated-power",
        period_s: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__(curve, _info(name, period_s, None, power=True), habits or Habits(), clock)

    def read(self) -> float:
        """Watts at the last tick, averaged over the window before it (shorter where the curve has just begun)."""
        tick_s = self._last_tick_s()
        start = max(0.0, tick_s - self._habits.window_s)
        if start == tick_s:
            return self._habits.gain * self._curve.power(tick_s)
        return self._habits.gain * (self._curve.energy(tick_s) - self._curve.energy(start)) / (tick_s - start)


def _info(name: str, period_s: float, wrap_at: float | None, *, power: bool) -> SensorInfo:
    return SensorInfo(
        name=name, component="gpu", device=f"simulated-{name}", kind="power" if power else "energy",
        unit="W" if power else "J", wrap_at=wrap_at, period_s=period_s, method="measured",
        source="simulated sensor", boundary="a power curve with a known integral",
    )  # fmt: skip
