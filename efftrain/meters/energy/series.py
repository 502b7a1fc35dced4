"""Joules from one sensor's raw readings.

A sensor's ticks are turned into one cumulative energy that never falls: counters are unwrapped, a counter that began
again at zero is continued, power is integrated, CPU seconds are multiplied by watts. Any window is then a difference
of two points of that line. What a window cannot know is kept beside it: where inside a cut tick interval the energy
fell, what a gap hid, what lay beyond the last reading.
"""

import math
from collections.abc import Sequence

from efftrain.meters.energy.curve import Curve, Part, counter_curve, power_curve
from efftrain.meters.energy.power import PowerReadings
from efftrain.meters.energy.ticks import Counter, Track
from efftrain.meters.windows import Window
from efftrain.record.journal import Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, estimate, missing


class Series:
    """The cumulative energy of one sensor, built tick by tick.

    Args:
        info: the sensor as the journal's header declares it.
        witness: readings of a power sensor that stands beside this counter; they may still grow.
        live: take updates at the time at which they were read and tell no random part: a progress line asks four times
            a second, however long the run.
    """

    def __init__(self, info: Line, *, witness: PowerReadings | None = None, live: bool = False) -> None:
        self.info = info
        self.witness = witness
        self._live = live
        self._readings = PowerReadings(info) if info["kind"] == "power" else None
        self._counter = Counter(info)
        self._curve: Curve | None = None

    def add(self, t: int, value: float | None, since: int | None = None) -> None:
        """Take one raw reading at `t` ns; one that is no number, or not later than the last, is passed over.

        Args:
            t: when it was read, ns.
            value: in the sensor's unit.
            since: the last reading that differed from it, ns, where the journal tells.
        """
        self._curve = None
        if self._readings is not None:
            self._readings.add(t, value)
        else:
            self._counter.add(t, value, None if self._live else since)

    @property
    def track(self) -> Track | None:
        """The counter's updates, or None for a sensor that shows power alone."""
        return None if self._readings is not None else self._counter.track()

    @property
    def until(self) -> int | None:
        """The moment up to which readings tell its energy, ns; None where no two of them differ."""
        source = self._counter if self._readings is None else self._readings
        return source.t[-1] if len(source.t) > 1 else None

    def energy_between(self, start: int, end: int) -> Quantity:
        """Energy in J between two moments, ns. See `energy_over`."""
        return self.energy_over([(start, end)])

    def energy_over(self, windows: Sequence[Window]) -> Quantity:
        """Energy in J over disjoint windows.

        What is random adds in quadrature over cuts and windows; a gain or a model errs in the same direction
        everywhere, so its share of the sum is its share of each part. What the readings do not cover is left out, and
        the figure is a lower bound; if they cover nothing, it is missing.
        """
        whole = self._over(windows)
        flaws = list(dict.fromkeys(whole.flaws))
        if not whole.covered_ns:
            why = "; ".join(flaws) or "no billed window"
            return missing("J", source=f"{self.info['name']}: {why}", boundary=self.info["boundary"])
        return self._quantity(whole.joules, math.sqrt(whole.variance), flaws)

    def watts(self, start: int, end: int) -> float | None:
        """Mean power in W where readings cover the window, or None where they do not."""
        part = self._over([(start, end)])
        return part.joules / part.covered_ns * 1e9 if part.covered_ns else None

    def _over(self, windows: Sequence[Window]) -> Part:
        whole = Part()
        curve = self._as_read() if self._live else self._settled()
        for window in windows:
            if len(curve.t) < 2:
                whole.flaws.append(f"{self.info['name']} gave no two readings that differ")
            elif self._live:
                curve.add_roughly(whole, window)
            else:
                curve.add_to(whole, window)
        return whole

    def _as_read(self) -> Curve:
        """The readings themselves, without a copy."""
        source = self._counter if self._readings is None else self._readings
        return Curve(
            name=self.info["name"], t=source.t, joules=source.joules, variance=(), spread=(), flaws=source.flaws
        )

    def _settled(self) -> Curve:
        if self._curve is None:
            if self._readings is not None:
                self._curve = power_curve(self._readings)
            else:
                self._curve = counter_curve(self._counter.track(), self.info, self.witness)
        return self._curve

    def _quantity(self, joules: float, u_random: float, flaws: list[str]) -> Quantity:
        info = self.info
        limits = None
        u_systematic = info["u_relative"] * joules
        if info["watts_per_unit"]:
            typical, low, high = info["watts_per_unit"]
            limits = (joules * low / typical, joules * high / typical)
            u_systematic = (limits[1] - limits[0]) / (2 * COVERAGE_FACTOR)
        return estimate(
            joules, "J", method=info["method"], source="; ".join([info["source"], *flaws]), boundary=info["boundary"],
            u_random=u_random, u_systematic=u_systematic, limits=limits, lower_bound=bool(flaws),
        )  # fmt: skip
