"""Joules from one sensor's raw readings.

A sensor's ticks are turned into one cumulative energy that never falls: counters are unwrapped, a counter that began
again at zero is continued, power is integrated, CPU seconds are multiplied by watts. Any window is then a difference
of two points of that line. What a window cannot know is kept beside it: where inside a cut tick interval the energy
fell, what a gap hid, what lay beyond the last reading.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from efftrain.meters.windows import Window
from efftrain.record.journal import Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, estimate, missing

MAX_GAP_NS: Final = 2_000_000_000
"""The sampler writes at least one tick a second; after twice that, what a power sensor would have read is unknown."""

MAX_WRAP_W: Final = 5_000.0
"""A fall of a counter that would mean more than this, for one device, is no wrap; the counter was reset."""


@dataclass(slots=True)
class _Part:
    """What one window, or several, hold: J, variance in J², s that readings cover, and what is not known."""

    joules: float = 0.0
    variance: float = 0.0
    covered_ns: int = 0
    flaws: list[str] = field(default_factory=list)


class Series:
    """The cumulative energy of one sensor, built tick by tick.

    Args:
        info: the sensor as the journal's header declares it.
    """

    def __init__(self, info: Line) -> None:
        self.info = info
        self._per_unit = info["watts_per_unit"][0] if info["kind"] == "cpu_time" else 1.0
        self._period_ns = round(info["period_s"] * 1e9)
        self._raw = 0.0
        self._seen = 0  # last tick, also one that changed nothing
        self._t: list[int] = []
        self._joules: list[float] = []
        self._variance: list[float] = []
        self._loose: list[float] = []  # by interval: J of which only the interval is known, not the moment
        self._flaws: list[tuple[Window, bool, str]] = []  # where, whether all energy there is unknown, why

    def add(self, t: int, value: float | None) -> None:
        """Take one raw reading at `t` ns; one that is no number, or not later than the last, is passed over."""
        if value is None or not math.isfinite(value) or (self._t and t <= self._seen):
            return
        if not self._t:
            self._t, self._joules, self._variance = [t], [0.0], [0.0]
        elif self.info["kind"] == "power":
            self._integrate(t, value)
        elif value == self._raw and self.info["kind"] == "energy":
            # The heartbeat of a counter between two of its own updates. The device went on drawing power, so the
            # energy of the next update belongs to the whole interval since the last one.
            self._seen = t
            return
        else:
            self._count(t, value)
        self._raw, self._seen = value, t

    def energy_between(self, start: int, end: int) -> Quantity:
        """Energy in J between two moments, ns. See `energy_over`."""
        return self.energy_over([(start, end)])

    def energy_over(self, windows: Sequence[Window]) -> Quantity:
        """Energy in J over disjoint windows.

        Windows are cut by linear interpolation between ticks. What is random adds in quadrature over cuts and
        windows; a gain or a model errs in the same direction everywhere, so its share of the sum is its share of each
        part. What the readings do not cover is left out, and the figure is a lower bound; if they cover nothing, it
        is missing.
        """
        whole = _Part()
        for window in windows:
            self._take(whole, window)
        flaws = list(dict.fromkeys(whole.flaws))
        if not whole.covered_ns:
            why = "; ".join(flaws) or "no billed window"
            return missing("J", source=f"{self.info['name']}: {why}", boundary=self.info["boundary"])
        return self._quantity(whole.joules, math.sqrt(whole.variance), flaws)

    def watts(self, start: int, end: int) -> float | None:
        """Mean power in W where readings cover the window, or None where they do not."""
        part = _Part()
        self._take(part, (start, end))
        return part.joules / part.covered_ns * 1e9 if part.covered_ns else None

    def _quantity(self, joules: float, u_random: float, flaws: list[str]) -> Quantity:
        info = self.info
        limits = None
        u_systematic = info["u_relative"] * joules
        if info["kind"] == "cpu_time":
            typical, low, high = info["watts_per_unit"]
            limits = (joules * low / typical, joules * high / typical)
            u_systematic = (limits[1] - limits[0]) / (2 * COVERAGE_FACTOR)
        return estimate(
            joules, "J", method=info["method"], source="; ".join([info["source"], *flaws]), boundary=info["boundary"],
            u_random=u_random, u_systematic=u_systematic, limits=limits, lower_bound=bool(flaws),
        )  # fmt: skip

    def _append(self, t: int, joules: float, *, loose: float, variance: float = 0.0) -> None:
        self._t.append(t)
        self._joules.append(self._joules[-1] + joules)
        self._variance.append(self._variance[-1] + variance)
        self._loose.append(loose)

    def _count(self, t: int, value: float) -> None:
        """A counter's new reading: what it grew by, by way of a wrap or a reset."""
        before, wrap_at = self._t[-1], self.info["wrap_at"]
        grown = value - self._raw
        if grown < 0 and wrap_at is not None:
            wrapped = grown + wrap_at
            fits = self._raw <= wrap_at and wrapped * self._per_unit <= MAX_WRAP_W * (t - before) / 1e9
            grown = wrapped if fits else grown
            if fits and t - before > MAX_GAP_NS:
                self._flaws.append(((before, t), False, f"{self._name} wrapped in a gap, perhaps more than once"))
        if grown < 0:
            grown = value
            reset = f"{self._name} was reset: what it had counted since the tick before that is lost"
            self._flaws.append(((before, t), False, reset))
        joules = grown * self._per_unit
        self._append(t, joules, loose=joules)

    def _integrate(self, t: int, value: float) -> None:
        """A power sensor's new reading: hold the old one until the last sample before it, then the trapezoid.

        Ticks are written on change, so between two of them the reading stood still until one sampling period ago. In
        that last period it may have changed at any moment: a step from p to q at a random moment has the trapezoid's
        mean and a standard deviation of |q − p| dt / √12.
        """
        before = self._t[-1]
        if t - before > MAX_GAP_NS:
            gap = f"{self._name} gave no reading for {(t - before) / 1e9:.1f} s"
            self._flaws.append(((before, t), True, gap))
            self._append(t, 0.0, loose=0.0)
            return
        if t - before > 1.5 * self._period_ns:
            held = t - self._period_ns
            self._append(held, self._raw * (held - before) / 1e9, loose=0.0)
            before = held
        dt, change = (t - before) / 1e9, abs(value - self._raw)
        self._append(t, (self._raw + value) / 2 * dt, loose=change * dt / 2, variance=(change * dt) ** 2 / 12)

    def _take(self, into: _Part, window: Window) -> None:
        """Add one window to a part."""
        if len(self._t) < 2:
            into.flaws.append(f"{self._name} gave no two readings that differ")
            return
        start, end = max(window[0], self._t[0]), min(window[1], self._t[-1])
        if start >= end:
            into.flaws.append(f"{self._name} gave no reading in a window")
            return
        self._edges(into, window)
        (first, f_first), (last, f_last) = self._locate(start), self._locate(end)
        into.joules += _between(self._joules, last, f_last) - _between(self._joules, first, f_first)
        into.variance += _between(self._variance, last, f_last) - _between(self._variance, first, f_first)
        cuts = [(first, f_last - f_first)] if first == last else [(first, 1 - f_first), (last, f_last)]
        into.variance += sum(_cut_variance(self._loose[i], f) for i, f in cuts)
        into.covered_ns += end - start
        for (gap_start, gap_end), unknown, why in self._flaws:
            overlap = min(end, gap_end) - max(start, gap_start)
            if overlap > 0:
                into.flaws.append(why)
                into.covered_ns -= overlap if unknown else 0

    def _edges(self, into: _Part, window: Window) -> None:
        """Account for what lies before the first reading and after the last.

        A killed run ends between two ticks, so an edge as long as one and a half tick intervals, at most 1.5 s, is no
        loss: what it may hold enters the random part, as anything between nothing and twice the nearest power. A
        longer edge makes the figure a lower bound. Neither is added to the value.
        """
        head = (self._t[0] - window[0], 0, "before its first reading")
        tail = (window[1] - self._t[-1], len(self._t) - 2, "after its last reading")
        for edge, index, where in (head, tail):
            interval = self._t[index + 1] - self._t[index]
            grown = self._joules[index + 1] - self._joules[index]
            if 0 < edge <= min(1.5 * max(interval, self._period_ns), 1.5e9):
                into.variance += (grown / interval * edge) ** 2 / 3
            elif edge > 0:
                into.flaws.append(f"{self._name}: {edge / 1e9:.1f} s of a window lie {where}")

    def _locate(self, t: int) -> tuple[int, float]:
        """The tick interval that holds `t`, and how far into it `t` lies, 0 to 1."""
        index = min(bisect_right(self._t, t) - 1, len(self._t) - 2)
        return index, (t - self._t[index]) / (self._t[index + 1] - self._t[index])

    @property
    def _name(self) -> str:
        return str(self.info["name"])


def _between(cumulative: Sequence[float], index: int, fraction: float) -> float:
    return cumulative[index] + fraction * (cumulative[index + 1] - cumulative[index])


def _cut_variance(joules: float, fraction: float) -> float:
    """Variance in J² of the share of a cut tick interval.

    Where inside the interval its energy fell is unknown. In the middle the share is anything between none and all: a
    rectangular distribution of that width, u = joules / √12 (GUM, 4.3.7). On a tick it is known. Between these,
    u = joules · 2 √(f (1 − f)) / √12.
    """
    return joules**2 * fraction * (1 - fraction) / 3
