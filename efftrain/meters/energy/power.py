"""A power sensor's readings, and the energy that lies under them.

Ticks are written on change, so between two of them the reading stood still until one sampling period ago. In that last
period it may have changed at any moment: a step from p to q at a random moment has the trapezoid's mean and a standard
deviation of |q − p| dt / √12.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field

from efftrain.meters.energy.ticks import MAX_GAP_NS, Flaw
from efftrain.record.journal import Line


@dataclass(slots=True)
class PowerReadings:
    """Takes readings in W one by one, and integrates them.

    Attributes:
        info: the sensor as the journal's header declares it.
        t: moments in ns between which the power is taken as constant.
        joules: J since the first moment.
        variance: J² of that.
        spread: W by which the power inside each interval may differ from its mean.
        flaws: gaps, of which nothing is known.
    """

    info: Line
    t: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    _read_t: list[int] = field(default_factory=list)
    _read_w: list[float] = field(default_factory=list)

    def add(self, t: int, value: float | None) -> None:
        """Take one reading; one that is no number, or not later than the last, is passed over."""
        if value is None or not math.isfinite(value) or (self._read_t and t <= self._read_t[-1]):
            return
        if self.t:
            self._integrate(t, value)
        else:
            self.t, self.joules, self.variance = [t], [0.0], [0.0]
        self._read_t.append(t)
        self._read_w.append(value)

    def held_at(self, t: int) -> float | None:
        """The reading in W that stood at `t`, or None before the first and after a gap."""
        i = bisect_right(self._read_t, t) - 1
        if i < 0 or t - self._read_t[i] > MAX_GAP_NS:
            return None
        return self._read_w[i]

    def between(self, start: int, end: int) -> list[float]:
        """The readings in W that stood at some time between two moments."""
        first = max(0, bisect_right(self._read_t, start) - 1)
        return self._read_w[first : bisect_right(self._read_t, end)]

    def joules_between(self, start: int, end: int) -> float | None:
        """Energy in J under the readings, or None where they do not cover the stretch without a gap."""
        if len(self.t) < 2 or start < self.t[0] or end > self.t[-1] or self._gap_in(start, end):
            return None
        return self._cumulative(end) - self._cumulative(start)

    def _gap_in(self, start: int, end: int) -> bool:
        return any(flaw.start < end and start < flaw.end for flaw in self.flaws)

    def _cumulative(self, t: int) -> float:
        i = min(bisect_right(self.t, t) - 1, len(self.t) - 2)
        share = (t - self.t[i]) / (self.t[i + 1] - self.t[i])
        return self.joules[i] + share * (self.joules[i + 1] - self.joules[i])

    def _integrate(self, t: int, value: float) -> None:
        before, last = self.t[-1], self._read_w[-1]
        period_ns = round(self.info["period_s"] * 1e9)
        if t - before > MAX_GAP_NS:
            gap = f"{self.info['name']} gave no reading for {(t - before) / 1e9:.1f} s"
            self.flaws.append(Flaw(before, t, True, gap))
            self._append(t, 0.0, spread=0.0)
            return
        if t - before > 1.5 * period_ns:
            held = t - period_ns
            self._append(held, last * (held - before) / 1e9, spread=0.0)
            before = held
        dt, change = (t - before) / 1e9, abs(value - last)
        self._append(t, (last + value) / 2 * dt, spread=change / 2, variance=(change * dt) ** 2 / 12)

    def _append(self, t: int, joules: float, *, spread: float, variance: float = 0.0) -> None:
        self.t.append(t)
        self.joules.append(self.joules[-1] + joules)
        self.variance.append(self.variance[-1] + variance)
        self.spread.append(spread)
