"""The cumulative energy of one sensor over time, and what is not known about it.

Between two updates of a counter its energy is known as a whole and not how it fell. A witness, a power reading of the
same device, tells the power at both ends; without one, all of an interval's energy may have fallen at any moment in it.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from efftrain.meters.energy.power import PowerReadings
from efftrain.meters.energy.ticks import Flaw, Track
from efftrain.meters.windows import Window
from efftrain.record.journal import Line

FLOOR: Final = 0.005
"""A power that reads the same at both ends of an interval is taken to have kept within this share of it."""

NEIGHBOURS: Final = 10
"""Intervals on each side in which a witness shows how much the power moves about."""

PART_TIME: Final = 0.2
"""A counter that follows its witness's movements to within this share may see no more of the time than that does."""

UNSEEN: Final = 0.75
"""Share of the time that an A100 or H100 does not look at: 75 of 100 ms (arXiv:2312.02741)."""

MIN_TO_JUDGE: Final = 8
"""Intervals that are needed to tell a sample from a sum."""

AROUND_NS: Final = 1_000_000_000
"""Readings of this long before and after a reset tell between which powers the device may have moved in it."""

LONGEST_EDGE_NS: Final = 1_500_000_000


@dataclass(slots=True)
class Part:
    """What one window, or several, hold: J, variance in J², ns that readings cover, and what is not known."""

    joules: float = 0.0
    variance: float = 0.0
    covered_ns: int = 0
    flaws: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Curve:
    """Energy over time, piecewise linear between moments, and inside an interval in one step where ends are known.

    Attributes:
        name: of the sensor.
        t: moments in ns.
        joules: J since the first.
        variance: J² of that, cumulative.
        spread: W by which the power inside each interval may differ from what is taken for it.
        steps: by interval: power before a step, after it, and the share of the interval that lies before it.
        u_t: standard uncertainty of the moments in ns; `common` to all of them or not.
        u_lag: standard uncertainty in ns of how far the sensor is behind.
        flaws: stretches of which something is unknown.
        sampled: standard deviation in W, by interval, of a counter that may not look all the time; else 0.
        extended: whether the first and the last interval lie beyond what was read.
    """

    name: str
    t: Sequence[int]
    joules: Sequence[float]
    variance: Sequence[float]
    spread: Sequence[float]
    steps: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    u_t: float = 0.0
    common: bool = True
    u_lag: float = 0.0
    flaws: Sequence[Flaw] = ()
    sampled: float = 0.0
    extended: bool = False

    def add_to(self, into: Part, window: Window) -> None:
        """Add the energy of one window to a part."""
        covered = self.add_roughly(into, window)
        if covered is not None:
            into.variance += self._cuts(*covered) + self._shifts(*covered) + self._unseen(*covered)

    def add_roughly(self, into: Part, window: Window) -> Window | None:
        """Add the energy of one window without its variance; what of the window is covered, or None."""
        start, end = max(window[0], self.t[0]), min(window[1], self.t[-1])
        if start >= end:
            into.flaws.append(f"{self.name} gave no reading in a window")
            return None
        late = 0 if self.extended else LONGEST_EDGE_NS  # what was read alone ends before a window does
        for edge, where in ((start - window[0], "before its first"), (window[1] - end, "after its last")):
            if edge > late:
                into.flaws.append(f"{self.name}: {edge / 1e9:.1f} s of a window lie {where} reading")
        into.joules += self._at(end) - self._at(start)
        into.covered_ns += end - start
        for flaw in self.flaws:
            overlap = min(end, flaw.end) - max(start, flaw.start)
            if overlap > 0:
                into.flaws.append(flaw.why)
                into.covered_ns -= overlap if flaw.unknown else 0
        return start, end

    def _at(self, t: int) -> float:
        i, f = self._locate(t)
        whole = self.joules[i + 1] - self.joules[i]
        if i in self.steps:
            before, after, share = self.steps[i]
            seconds = (self.t[i + 1] - self.t[i]) / 1e9
            return self.joules[i] + seconds * (before * min(f, share) + after * max(0.0, f - share))
        return self.joules[i] + f * whole

    def _cuts(self, start: int, end: int) -> float:
        """Variance in J² of where, inside the intervals that are cut, their energy fell, and of what lies between.

        In the middle of an interval the share before the cut is anything within ± half of its spread: a rectangular
        distribution, u = spread · dt / √12 (GUM, 4.3.7). On a moment it is known. Between these, times 2 √(f (1 − f)).
        """
        (first, f), (last, g) = self._locate(start), self._locate(end)
        inner = _between(self.variance, last, g) - _between(self.variance, first, f)
        cuts = [(first, g - f)] if first == last else [(first, 1 - f), (last, g)]
        return inner + math.fsum(self._cut(i, share) for i, share in cuts)

    def _cut(self, i: int, share: float) -> float:
        """Variance in J² of a share of one interval; beyond the readings it grows with all that is taken of it."""
        beyond = self.extended and i in (0, len(self.t) - 2)
        weight = share * share if beyond else share * (1 - share)
        return (self.spread[i] * (self.t[i + 1] - self.t[i]) / 1e9) ** 2 * weight / 3

    def _shifts(self, start: int, end: int) -> float:
        """Variance in J² of moments that lie elsewhere: a shift of all of them moves as much in as out of a window."""
        lowest, highest = self._near(start, end)
        lag = (self.u_lag / 1e9 * (highest - lowest)) ** 2
        if self.common:
            return lag + (self.u_t / 1e9 * (highest - lowest)) ** 2
        both = 0.0
        for t in (start, end):
            i, f = self._locate(t)
            both += self.power(i) ** 2 * (f * f + (1 - f) ** 2)
        return lag + (self.u_t / 1e9) ** 2 * both

    def _near(self, *moments: int) -> tuple[float, float]:
        """Lowest and highest power in W of the intervals around some moments."""
        reach = round(2 * (self.u_lag + self.u_t))
        powers = [
            self.power(i) for t in moments for i in range(self._locate(t - reach)[0], self._locate(t + reach)[0] + 1)
        ]
        return min(powers), max(powers)

    def _unseen(self, start: int, end: int) -> float:
        if not self.sampled:
            return 0.0
        (first, _), (last, _) = self._locate(start), self._locate(end)
        seconds = (end - start) / 1e9
        return (self.sampled * seconds) ** 2 / max(1, last - first)

    def power(self, i: int) -> float:
        """Mean power in W of one interval."""
        return (self.joules[i + 1] - self.joules[i]) / (self.t[i + 1] - self.t[i]) * 1e9

    def _locate(self, t: int) -> tuple[int, float]:
        """The interval that holds `t`, and how far into it `t` lies, 0 to 1."""
        i = max(0, min(bisect_right(self.t, t) - 1, len(self.t) - 2))
        return i, min(1.0, max(0.0, (t - self.t[i]) / (self.t[i + 1] - self.t[i])))


def power_curve(readings: PowerReadings) -> Curve:
    """The curve of a sensor that shows power alone."""
    return _extended(
        Curve(
            name=readings.info["name"], t=readings.t, joules=readings.joules, variance=readings.variance,
            spread=readings.spread, flaws=readings.flaws,
        ),
        readings.info, None,
    )  # fmt: skip


def counter_curve(track: Track, info: Line, witness: PowerReadings | None) -> Curve:
    """The curve of a counter: its integral between updates, shaped inside of them by a witness where there is one."""
    joules, flaws, variance = _bridged(track, witness)
    bare = Curve(
        name=info["name"], t=track.t, joules=joules, variance=variance, spread=[], u_t=track.u_t, common=track.common,
        u_lag=info.get("u_lag_s", 0.0) * 1e9, flaws=flaws,
    )  # fmt: skip
    powers = [bare.power(i) for i in range(len(track.t) - 1)]
    spread, steps = list(map(abs, powers)), {}
    if witness is not None and witness.t:
        spread, steps = _shaped(track, powers, witness)
    sampled = 0.0 if info["kind"] != "energy" or track.period is None else _sampled(track, powers, witness)
    return _extended(replace(bare, spread=spread, steps=steps, sampled=sampled), info, witness)


def _bridged(track: Track, witness: PowerReadings | None) -> tuple[list[float], list[Flaw], list[float]]:
    """Joules with what a reset lost put in from the witness, the flaws that remain, and cumulative variance in J²."""
    joules, flaws, variance = list(track.joules), [], [0.0] * len(track.t)
    for flaw in track.flaws:
        at = bisect_right(track.t, flaw.start)
        lost = _lost(track, at, witness) if witness is not None and flaw.reset else None
        if lost is None:
            flaws.append(flaw)
            continue
        added = max(0.0, lost[0] - (joules[at] - joules[at - 1]))
        for i in range(at, len(joules)):
            joules[i] += added
            variance[i] += lost[1]
    return joules, flaws, variance


def _lost(track: Track, at: int, witness: PowerReadings) -> tuple[float, float] | None:
    """Energy in J, and its variance, of the interval before moment `at`, in which the counter was reset.

    The power went over, at an unknown moment, from what the witness shows at the update before the interval to what it
    shows at the one after it: their mean. Readings around tell how far from both it may have been.
    """
    start, end = track.t[at - 1], track.t[at]
    ends = _ends(track, witness)
    before, after = ends[at - 1], ends[min(at + 1, len(ends) - 1)]
    joules, seconds = witness.joules_between(start, end), (end - start) / 1e9
    if joules is None:
        return None
    if before is not None and after is not None and not _skipped(track, at - 1):
        joules = (before + after) / 2 * seconds
    around = witness.between(start - AROUND_NS, end + AROUND_NS)
    return joules, ((max(around) - min(around)) * seconds) ** 2 / 12


def _shaped(
    track: Track, powers: Sequence[float], witness: PowerReadings
) -> tuple[list[float], dict[int, tuple[float, float, float]]]:
    """By interval: the spread in W, and the step between the powers that the witness shows at its two ends."""
    ends = _ends(track, witness)
    off = [0.0 if w is None else abs(w - p) for w, p in zip(ends[1:], powers, strict=True)]
    spread: list[float] = []
    steps: dict[int, tuple[float, float, float]] = {}
    for i, power in enumerate(powers):
        before, after = ends[i], ends[i + 1]
        near = off[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1]
        restless = math.sqrt(math.fsum(w * w for w in near) / len(near))
        if before is None or after is None:
            spread.append(abs(power))
        elif _skipped(track, i):  # its ends tell nothing about its middle: anything that was read around it
            around = [w for w in ends[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 2] if w is not None]
            spread.append(max(*(abs(w - power) for w in around), FLOOR * abs(power)))
        elif min(before, after) < power < max(before, after):
            steps[i] = (before, after, (after - power) / (after - before))
            spread.append(max(restless, abs(after - before) / 2, FLOOR * power))
        else:
            spread.append(max(restless, abs(before - power), abs(after - power), FLOOR * abs(power)))
    return spread, steps


def _skipped(track: Track, i: int) -> bool:
    """Whether the readings missed updates in an interval."""
    return track.period is not None and track.t[i + 1] - track.t[i] > 1.5 * track.period


def _ends(track: Track, witness: PowerReadings) -> list[float | None]:
    """What the witness showed at each update: the reading that was taken by one poll later."""
    late = round(1.1e9 * witness.info["period_s"])
    return [witness.held_at(t + late) for t in track.t]


def _sampled(track: Track, powers: Sequence[float], witness: PowerReadings | None) -> float:
    """Standard deviation in W of what a counter that looks at a part of the time only would miss in one interval.

    A counter that moves in step with a witness which itself is a mean over 25 of 100 ms may be no better. Readings
    that jump about from tick to tick then are a sample of the power; readings that move slowly miss only its changes.
    """
    if len(powers) < MIN_TO_JUDGE:
        return 0.0
    mean = math.fsum(powers) / len(powers)
    jumps = math.sqrt(math.fsum((b - a) ** 2 for a, b in itertools.pairwise(powers)) / 2 / (len(powers) - 1))
    scatter = math.sqrt(math.fsum((p - mean) ** 2 for p in powers) / (len(powers) - 1))
    if witness is not None:
        ends = _ends(track, witness)[1:]
        apart = [(w - p) ** 2 for w, p in zip(ends, powers, strict=True) if w is not None]
        if apart and math.sqrt(math.fsum(apart) / len(apart)) > PART_TIME * jumps:
            return 0.0
    white = jumps > 0.7 * scatter
    return jumps * math.sqrt(UNSEEN if white else UNSEEN / 6)


def _extended(curve: Curve, info: Line, witness: PowerReadings | None) -> Curve:
    """The curve with an interval more at each end, as long as a reading may be late, at the nearest power.

    A window of a run ends between two updates, and one that was killed between two readings. What lies beyond is
    taken to go on as the witness reads; without one as before, and it may then be anything from none to twice of that.
    """
    if len(curve.t) < 2:
        return curve
    last = len(curve.t) - 2
    head_w, tail_w = curve.power(0), curve.power(last)
    head, tail = (_reach(curve, i, info) for i in (0, last))
    head_spread, tail_spread = abs(head_w), abs(tail_w)
    seen = witness.held_at(curve.t[-1] + tail) if witness is not None else None
    if seen is not None:
        tail_w, tail_spread = seen, max(abs(seen - tail_w), FLOOR * seen)
    before = head_w * head / 1e9
    joules = [0.0, *(before + j for j in curve.joules)]
    return replace(
        curve, t=[curve.t[0] - head, *curve.t, curve.t[-1] + tail], joules=[*joules, joules[-1] + tail_w * tail / 1e9],
        variance=[0.0, *curve.variance, curve.variance[-1]], spread=[head_spread, *curve.spread, tail_spread],
        steps={i + 1: step for i, step in curve.steps.items()}, extended=True,
    )  # fmt: skip


def _reach(curve: Curve, i: int, info: Line) -> int:
    """How far beyond an interval at an end of the readings nothing is lost yet, in ns."""
    return round(min(1.5 * max(curve.t[i + 1] - curve.t[i], info["period_s"] * 1e9), LONGEST_EDGE_NS))


def _between(cumulative: Sequence[float], i: int, fraction: float) -> float:
    return cumulative[i] + fraction * (cumulative[i + 1] - cumulative[i])
