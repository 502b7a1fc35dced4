"""When a counter was updated, and how far it had come.

A reader polls; a counter moves when its device pleases. A change seen at `t` happened somewhere between the reading
before and `t`, which is too coarse to tell parts of a training step from each other. But a device updates its counter
on a period of its own, and hundreds of such brackets leave hardly any room for that period and its phase: here the
updates are put back to where they happened. Wraps and resets are undone on the way, so that the joules only rise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from efftrain.record.journal import Line

Raw = tuple[int, float, int | None]
"""One tick line: time of the reading in ns, the raw reading, and the time of the last reading that still differed."""

MAX_GAP_NS: Final = 2_000_000_000
"""The sampler writes at least one tick a second; after twice that, what a power sensor would have read is unknown."""

MAX_WRAP_W: Final = 5_000.0
"""A fall of a counter that would mean more than this, for one device, is no wrap; the counter was reset."""

MIN_UPDATES: Final = 5
"""Fewer updates than this do not show a period."""

RESOLVED: Final = 0.6
"""Updates that come faster than this share of the time between two readings cannot be told apart."""

MAX_JITTER: Final = 0.1
"""A counter whose updates stray further from its period than this share of it has none."""

MAX_BRACKET: Final = 0.7
"""Two readings further apart than this share of the time between updates may have missed one."""

BLOCK: Final = 1024
"""Updates fitted at once: long enough to be exact, short enough that no clock drifts off a straight line."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A stretch of time in ns of which something is not known: all of its energy, or a part, as where it was reset."""

    start: int
    end: int
    unknown: bool
    why: str
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Track:
    """The cumulative energy of a counter at the moments of its own updates.

    Attributes:
        t: moments in ns, rising.
        joules: J since the first moment.
        u_t: standard uncertainty in ns of each moment.
        common: whether that error is the same for all moments, as it is where a period was fitted.
        period: the counter's own update period in ns; None: it has none, or it could not be seen.
        flaws: where the readings do not tell everything.
    """

    t: Sequence[int]
    joules: Sequence[float]
    u_t: float = 0.0
    common: bool = True
    period: float | None = None
    flaws: Sequence[Flaw] = ()


def track(info: Line, raw: Sequence[Raw]) -> Track:
    """The track of one counter from its tick lines.

    Args:
        info: the sensor as the journal's header declares it; kind `energy`, `cpu_time` or `elapsed`.
        raw: its tick lines, in order.
    """
    counter = Counter(info)
    for t, value, since in raw:
        counter.add(t, value, since)
    return counter.track()


@dataclass(slots=True)
class Counter:
    """Takes a counter's readings one by one, and undoes what is not energy: wraps, resets, heartbeats.

    Attributes:
        info: the sensor as the journal's header declares it.
        t: times in ns of the readings that changed, the first reading included.
        since: time of the reading before each of them; the same as `t` where a journal does not tell.
        joules: J since the first reading.
        flaws: see `Track`.
    """

    info: Line
    t: list[int] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    _raw: float = 0.0
    _seen: int = 0

    def add(self, t: int, value: float | None, since: int | None = None) -> None:
        """Take one reading; one that is no number, or not later than the last, is passed over."""
        if value is None or not math.isfinite(value) or (self.t and t <= self._seen):
            return
        if not self.t:
            self.t, self.since, self.joules = [t], [t], [0.0]
        elif value != self._raw or self.info["kind"] != "energy":
            self._count(t, value, since)
        # An unchanged reading is the heartbeat of a counter between two updates: the device went on drawing power, so
        # the energy of the next update belongs to the whole interval since the last one.
        self._raw, self._seen = value, t

    def track(self) -> Track:
        """The track so far, its updates put back to where they happened."""
        return _retimed(self)

    def _count(self, t: int, value: float, since: int | None) -> None:
        before, wrap_at, name = self.t[-1], self.info["wrap_at"], self.info["name"]
        per_unit = self.info["watts_per_unit"][0] if self.info["watts_per_unit"] else 1.0
        grown = value - self._raw
        if grown < 0 and wrap_at is not None:
            wrapped = grown + wrap_at
            fits = self._raw <= wrap_at and wrapped * per_unit <= MAX_WRAP_W * (t - before) / 1e9
            grown = wrapped if fits else grown
            if fits and t - before > MAX_GAP_NS:
                self.flaws.append(Flaw(before, t, False, f"{name} wrapped in a gap, perhaps more than once"))
        if grown < 0:
            grown = value
            reset = f"{name} was reset: what it had counted since the tick before that is lost"
            self.flaws.append(Flaw(before, t, False, reset, reset=True))
        self.t.append(t)
        self.since.append(t if since is None else max(before, since))
        self.joules.append(self.joules[-1] + grown * per_unit)


def _retimed(counter: Counter) -> Track:
    """Updates at their own moments; as they were read where the counter is exact at any time, or shows no period."""
    tick_s = counter.info.get("tick_s")
    polls = [b - a for a, b in zip(counter.since[1:], counter.t[1:], strict=True)]
    poll = float(np.median(polls)) if polls else 0.0
    if tick_s is not None and tick_s * 1e9 < RESOLVED * max(poll, 1.0):
        u_t = tick_s * 1e9 / math.sqrt(12)  # read anywhere between two updates (GUM, 4.3.7)
        return Track(counter.t, counter.joules, u_t=u_t, common=False, flaws=counter.flaws)
    low, high = np.array(counter.since[1:]), np.array(counter.t[1:])
    ticking = ~np.isin(high, [flaw.end for flaw in counter.flaws if flaw.reset])  # a reset comes at any time
    fitted = _fit_blocks(low[ticking], high[ticking])
    if fitted is None:
        middle = [(a + b) // 2 for a, b in zip(counter.since, counter.t, strict=True)]
        return Track(middle, counter.joules, u_t=poll / math.sqrt(12), common=False, flaws=counter.flaws)
    moments, (own, u_t, period) = (low + high) / 2, fitted
    moments[ticking] = own
    # The first reading shows the counter as it was at its last update before that.
    first = moments[0] - period * max(1, math.ceil((moments[0] - counter.t[0]) / period - MAX_JITTER))
    t = [round(first), *(round(moment) for moment in moments)]
    flaws = [_at_updates(flaw, counter.t, t) for flaw in counter.flaws]
    return Track(t, counter.joules, u_t=u_t, common=True, period=period, flaws=flaws)


def _at_updates(flaw: Flaw, read: Sequence[int], t: Sequence[int]) -> Flaw:
    """A flaw between two readings, moved to their updates."""
    return replace(flaw, start=t[read.index(flaw.start)], end=t[read.index(flaw.end)])


def _fit_blocks(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """Moments, their standard uncertainty and the period in ns, block by block; None where there is no period."""
    if len(low) < MIN_UPDATES:
        return None
    parts = np.array_split(np.arange(len(low)), math.ceil(len(low) / BLOCK))
    fits = [_fit(low[part], high[part]) for part in parts]
    known = [fit for fit in fits if fit is not None]
    if len(known) < len(fits):
        return None
    moments = np.concatenate([moments for moments, _, _ in known])
    if not (np.diff(moments) > 0).all():
        return None
    return moments, max(u for _, u, _ in known), float(np.median([period for _, _, period in known]))


def _fit(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """The period and phase of the brackets that hold one update, and by these all moments.

    After a gap in the readings, what is seen first is the last of several updates, at most one period old: a bracket
    too wide to number it by, or to learn from.
    """
    narrow = high - low <= MAX_BRACKET * np.median(np.diff(high))
    if narrow.sum() < MIN_UPDATES:
        return None
    fitted = _fit_narrow(low[narrow], high[narrow])
    if fitted is None:
        return None
    moments, (own, u_t, period) = np.empty(len(low)), fitted
    moments[narrow] = own
    moments[~narrow] = own[0] + np.floor((high[~narrow] + u_t - own[0]) / period) * period
    return moments, u_t, period


def _fit_narrow(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """The period and phase that lie deepest inside all brackets (low, high].

    For a period T, the phases that all brackets admit are [max(low − mT), min(high − mT)], m the number of each update.
    The width of that range is concave in T, so its maximum is found by ternary search; the middle is taken, and half
    of the width is the bound of the error, rectangular (GUM, 4.3.7). A negative width is jitter.
    """
    middle = (low + high) / 2
    origin, gaps = float(middle[0]), np.diff(middle)
    # Seen by a reader, one period is two or three readings long: their mean is the period, their median is not.
    guess = float(np.mean(gaps[gaps < 1.6 * np.median(gaps)]))
    if np.median(high - low) > RESOLVED * guess:
        return None
    number = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(gaps / guess)))])
    guess = float(np.polyfit(number, middle - origin, 1)[0])
    number = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(gaps / guess)))])
    low, high = low - origin, high - origin

    def bounds(period: float) -> tuple[float, float]:
        return float((low - number * period).max()), float((high - number * period).min())

    reach = 4 * float((high - low).max()) / max(1.0, float(number[-1]))
    left, right = guess - reach, guess + reach
    for _ in range(60):
        a, b = left + (right - left) / 3, right - (right - left) / 3
        (low_a, high_a), (low_b, high_b) = bounds(a), bounds(b)
        left, right = (a, right) if high_a - low_a < high_b - low_b else (left, b)
    period = (left + right) / 2
    earliest, latest = bounds(period)
    if earliest - latest > 2 * MAX_JITTER * period:
        return None
    u_t = abs(latest - earliest) / 2 / (math.sqrt(3) if latest > earliest else 1.0)
    return origin + (earliest + latest) / 2 + number * period, u_t, period
