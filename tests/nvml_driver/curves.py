"""Power curves whose integral is a formula: what a board truly draws, and how many joules that is.

A curve is made of segments in which the power is linear in time, one after the other from t = 0 s, for ever repeated or
not. The same formula stands in meter.c; here it is the truth that tests and benchmarks compare with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of `duration_s` in which the power goes in a straight line from `from_w` to `to_w`."""

    duration_s: float
    from_w: float
    to_w: float

    def energy(self, t: float) -> float:
        """Joules of its first t seconds."""
        return t * (self.from_w + (self.to_w - self.from_w) * t / self.duration_s / 2)


@dataclass(frozen=True, slots=True)
class Curve:
    """Segments in a row.

    Attributes:
        segments: at least one.
        repeat: whether they begin again at their end; else the last power holds, and before t = 0 the first.
        phase_s: how far into the segments t = 0 lies.
    """

    segments: tuple[Segment, ...]
    repeat: bool = False
    phase_s: float = 0.0

    @property
    def period_s(self) -> float:
        """Length of all segments."""
        return math.fsum(s.duration_s for s in self.segments)

    def power(self, t: float) -> float:
        """Watts at t s; where it jumps, those after the jump."""
        t += self.phase_s
        if self.repeat:
            t -= math.floor(t / self.period_s) * self.period_s
        if t < 0:
            return self.segments[0].from_w
        for s in self.segments:
            if t < s.duration_s:
                return s.from_w + (s.to_w - s.from_w) * t / s.duration_s
            t -= s.duration_s
        return self.segments[-1].to_w

    def energy(self, start_s: float, end_s: float) -> float:
        """Joules between two times in s."""
        return self._until(end_s + self.phase_s) - self._until(start_s + self.phase_s)

    def _until(self, t: float) -> float:
        if not self.repeat:
            return self._along(t)
        turns = math.floor(t / self.period_s)
        return turns * self._along(self.period_s) + self._along(t - turns * self.period_s)

    def _along(self, t: float) -> float:
        joules, watts = 0.0, self.segments[0].from_w
        for s in self.segments:
            if t <= 0:
                break
            spent = min(t, s.duration_s)
            joules += s.energy(spent)
            watts = s.to_w
            t -= spent
            if spent < s.duration_s:
                return joules
        return joules + t * watts


def constant(watts: float) -> Curve:
    """The same power for ever."""
    return Curve((Segment(1.0, watts, watts),))


def piecewise(pieces: Sequence[tuple[float, float]], *, repeat: bool = False, phase_s: float = 0.0) -> Curve:
    """Constant powers one after the other, as (duration in s, W)."""
    return Curve(tuple(Segment(duration, watts, watts) for duration, watts in pieces), repeat, phase_s)


def square(period_s: float, low_w: float, high_w: float, *, duty: float = 0.5, phase_s: float = 0.0) -> Curve:
    """A square wave that is high for the first `duty` of each period."""
    return piecewise([(duty * period_s, high_w), ((1 - duty) * period_s, low_w)], repeat=True, phase_s=phase_s)


def ramp(from_w: float, to_w: float, duration_s: float, *, repeat: bool = False) -> Curve:
    """A straight line, after which the last power holds, or a sawtooth."""
    return Curve((Segment(duration_s, from_w, to_w),), repeat)


def bursts(base_w: float, burst_w: float, spans: Sequence[tuple[float, float]], period_s: float) -> Curve:
    """Bursts at (start, end) in s over a base power, in order and disjoint, all again after `period_s`."""
    pieces: list[tuple[float, float]] = []
    now = 0.0
    for start, end in spans:
        pieces += [(start - now, base_w), (end - start, burst_w)]
        now = end
    pieces.append((period_s - now, base_w))
    return piecewise([piece for piece in pieces if piece[0] > 0], repeat=True)
