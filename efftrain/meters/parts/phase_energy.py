"""Joules and watts by phase of the training steps, by span, and for what lies between them.

One regression a counter (see `regression`) gives the watts of every part; this file decides which parts can be told
apart, adds the counters up, and says in one sentence how the figures were found, or why there are none. A phase that is
too short or too uncertain is joined to its neighbour; its joules and its interval then come from the sum, in which
errors that neighbours share cancel.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.stats import t as student

from efftrain.meters.energy.ticks import Track
from efftrain.meters.parts.regression import Fit, Refused, fit
from efftrain.meters.parts.timeline import Floats, Timeline, timeline
from efftrain.meters.windows import Window
from efftrain.record.journal import Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, estimate, missing, scaled, total, weakest

MIN_SHARE: Final = 0.1
"""A phase of less than this share of the step is joined to its neighbour."""

MAX_HALF_WIDTH: Final = 0.25
"""So is one whose 95 % interval reaches further than this share of it to either side."""

MINOR: Final = 0.1
"""A counter with at most this share of the joules may go without a regression: its power is then taken as even."""

VISIBLE_S: Final = 0.002
"""Inertia from which on it is worth a word."""

SAID: Final = 2
"""Counters whose habits are told in words."""

ALTERNATIVE: Final = "--phase-energy blocks measures them apart"

BOUNDARY: Final = "the billed time; a phase ends where the next begins"


@dataclass(frozen=True, slots=True)
class Metered:
    """A billed sensor: as the header declares it, its updates (None where it shows power alone), its J on the bill."""

    info: Line
    track: Track | None
    joules: float


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """The energy of a run's parts.

    Attributes:
        phases: J by part over the billed time; names joined by `+` could not be told apart.
        power: W, their means.
        closure: their sum over the run's total.
        attribution: how they were found, or why not.
        seconds: s of the billed time by the same names.
    """

    phases: dict[str, Quantity]
    power: dict[str, Quantity]
    closure: Quantity
    attribution: str
    seconds: dict[str, float] = field(default_factory=dict)


def phase_energy(
    meters: Sequence[Metered], steps: Sequence[Line], spans: Sequence[Line], windows: Sequence[Window], whole: Quantity
) -> PhaseEnergy:
    """Divide the energy of a run among its parts.

    Args:
        meters: the billed sensors.
        steps: step lines.
        spans: span lines.
        windows: the billed stretches.
        whole: J of the run.
    """
    marked = list(dict.fromkeys(name for step in steps for name, _ in step["phases"]))
    if len(marked) < 2 or not windows:
        return refused(marked, "only one phase was marked" if marked else "no phase of a step was marked")
    line = timeline(steps, spans, windows)
    readings = [_read(line, meter) for meter in meters]
    joules = sum(reading.joules for reading in readings)
    if joules <= 0:
        return refused(marked, "no energy was read")
    for reading in readings:
        if isinstance(reading.fit, Refused) and reading.joules > MINOR * joules:
            return refused(marked, f"{reading.name}: {reading.fit.reason}")
    groups = _groups(line, readings)
    if len(groups) < 2:
        return refused(marked, "no two phases could be told apart")
    return _answer(line, readings, groups, whole)


def refused(marked: Iterable[str], reason: str, *, alternative: str = ALTERNATIVE) -> PhaseEnergy:
    """No answer, why, and what else could be done."""
    phases = {name: missing("J", source=f"not attributed: {reason}", boundary=BOUNDARY) for name in marked}
    closure = missing("1", source=f"not attributed: {reason}", boundary="sum of the parts over the total")
    return PhaseEnergy(
        phases, {}, closure, "; ".join(filter(None, [f"phases were not told apart: {reason}", alternative]))
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """One counter: what it read over the billed time, and its regression."""

    info: Line
    joules: float
    fit: Fit | Refused
    watts: Floats
    covariance: Floats

    @property
    def name(self) -> str:
        return str(self.info["name"])


def _read(line: Timeline, meter: Metered) -> _Reading:
    info, parts = meter.info, len(line.names)
    if info["kind"] == "elapsed":
        watts = np.full(parts, info["watts_per_unit"][0])
        constant = Fit(watts, np.zeros((parts, parts)), np.zeros(parts, bool), rows=0, blocks=1000)
        return _Reading(info, meter.joules, constant, watts, constant.covariance)
    if meter.track is None:
        found: Fit | Refused = Refused("it shows a mean power whose window is not known")
    else:
        found = fit(line, meter.track, exact=_is_exact(info))
    if isinstance(found, Fit):
        return _Reading(info, meter.joules, found, found.watts, found.covariance)
    # Even power, which is anything from none to twice as much in any one part: rectangular (GUM, 4.3.7).
    even = np.full(parts, meter.joules / line.seconds.sum())
    return _Reading(info, meter.joules, found, even, np.diag(even**2 / 3))


def _is_exact(info: Line) -> bool:
    """Whether a counter is updated so often that its lag and its window do not matter: within a few milliseconds."""
    tick_s = 0.0 if info["kind"] == "cpu_time" else info.get("tick_s")
    return tick_s is not None and tick_s <= 0.005


def _groups(line: Timeline, readings: Sequence[_Reading]) -> list[list[int]]:
    """Indices of the phases that stand together, in the order of a step."""
    watts, covariance, factor = _sum(readings)
    seconds = line.seconds[: line.phases]
    inside = covariance[: line.phases, : line.phases] * np.outer(seconds, seconds)
    return joined(seconds, watts[: line.phases] * seconds, inside, factor)


def joined(seconds: Floats, joules: Floats, covariance: Floats, factor: float) -> list[list[int]]:
    """Indices of the phases that are reported together: what is short, uncertain or negative joins its neighbour.

    A phase joins the one after it, and the last one the one before, so that runs alike are divided alike.

    Args:
        seconds: [phases] s of each, in the order of a step.
        joules: [phases] J.
        covariance: [phases, phases] J².
        factor: half of a 95 % interval in standard deviations.
    """

    def fails(group: list[int]) -> bool:
        half = factor * math.sqrt(max(0.0, float(covariance[np.ix_(group, group)].sum())))
        value = float(joules[group].sum())
        return seconds[group].sum() < MIN_SHARE * seconds.sum() or value <= 0 or half > MAX_HALF_WIDTH * value

    groups = [[i] for i in range(len(seconds))]
    while len(groups) > 1 and (bad := [k for k, group in enumerate(groups) if fails(group)]):
        k = min(bad, key=lambda k: float(seconds[groups[k]].sum()))
        k = min(k, len(groups) - 2)
        groups[k : k + 2] = [groups[k] + groups[k + 1]]
    return groups


def _sum(readings: Sequence[_Reading]) -> tuple[Floats, Floats, float]:
    """Watts of all counters by part, their covariance, and the factor of their 95 % interval."""
    watts = np.sum([reading.watts for reading in readings], axis=0)
    covariance = np.sum([reading.covariance for reading in readings], axis=0)
    blocks = [reading.fit.blocks for reading in readings if isinstance(reading.fit, Fit)]
    return watts, covariance, float(student.ppf(0.975, min(blocks, default=2) - 1))


def _joules(
    line: Timeline, watts: Floats, covariance: Floats, factor: float, group: Sequence[int]
) -> tuple[float, float]:
    """J of a group of parts, and half of its 95 % interval."""
    seconds = np.zeros(len(watts))
    seconds[list(group)] = line.seconds[list(group)]
    return float(seconds @ watts), factor * math.sqrt(max(0.0, float(seconds @ covariance @ seconds)))


def _answer(
    line: Timeline, readings: Sequence[_Reading], phases_apart: Sequence[list[int]], whole: Quantity
) -> PhaseEnergy:
    groups = [*phases_apart, *([i] for i in range(line.phases, len(line.names)) if line.seconds[i] > 0)]
    phases: dict[str, Quantity] = {}
    seconds: dict[str, float] = {}
    for group in groups:
        name = "+".join(line.names[i] for i in group)
        parts = [_assumed(line, readings, group)] if _is_assumed(readings, group) else []
        parts = parts or [_quantity(line, reading, group) for reading in readings]
        unread = [missing("J", source="a component could not be read")] if whole.lower_bound else []
        phases[name] = total([*parts, *unread], boundary=BOUNDARY)
        seconds[name] = float(line.seconds[group].sum())
    power = {name: scaled(q, 1 / seconds[name], "W") for name, q in phases.items()}
    everything = [i for group in groups for i in group]
    watts, covariance, factor = _sum(readings)
    joules, half = _joules(line, watts, covariance, factor, everything)
    return PhaseEnergy(phases, power, closure(joules, half, whole), _sentence(line, readings), seconds)


def _is_assumed(readings: Sequence[_Reading], group: Sequence[int]) -> bool:
    return any(isinstance(r.fit, Fit) and bool(r.fit.assumed[list(group)].all()) for r in readings)


def _assumed(line: Timeline, readings: Sequence[_Reading], group: Sequence[int]) -> Quantity:
    """J of a part that is too short for a fit, at the mean power: the counters err in the same direction."""
    watts, _, _ = _sum(readings)
    joules = _joules(line, watts, np.zeros((len(watts), len(watts))), 0.0, group)[0]
    return estimate(
        joules, "J", method=weakest([*(r.info["method"] for r in readings), "modelled"]), boundary=BOUNDARY,
        source="the run's mean power × time", u_random=joules / math.sqrt(3),
    )  # fmt: skip


def _quantity(line: Timeline, reading: _Reading, group: Sequence[int]) -> Quantity:
    """What one counter gives a group of parts; its gain or its model errs in every part in the same direction."""
    info = reading.info
    factor = _sum([reading])[2]
    joules, half = _joules(line, reading.watts, reading.covariance, factor, group)
    limits, u_systematic = None, info["u_relative"] * abs(joules)
    if info["watts_per_unit"] and joules > 0:
        typical, low, high = info["watts_per_unit"]
        limits = (joules * low / typical, joules * high / typical)
        u_systematic = (limits[1] - limits[0]) / (2 * COVERAGE_FACTOR)
    even = isinstance(reading.fit, Refused)
    how = (
        "shared out evenly over time"
        if even
        else "of an assumed power"
        if info["kind"] == "elapsed"
        else "by least squares"
    )
    return estimate(
        joules, "J", method="modelled" if even and info["method"] == "measured" else info["method"],
        source=f"{reading.name} {how}", boundary=BOUNDARY, u_random=half / COVERAGE_FACTOR, u_systematic=u_systematic,
        limits=limits,
    )  # fmt: skip


def closure(joules: float, half: float, whole: Quantity) -> Quantity:
    """The sum of the parts over the run's total; `half` of the sum's 95 % interval in J."""
    boundary = "sum of the parts over the total"
    if not whole.value:
        return missing("1", source="the total is missing", boundary=boundary)
    u_random = math.hypot(half / COVERAGE_FACTOR, whole.u_random or 0.0) / whole.value
    source = "sum of the parts over the total; their common gain errors cancel"
    return estimate(joules / whole.value, "1", method="modelled", source=source, boundary=boundary, u_random=u_random)


def _sentence(line: Timeline, readings: Sequence[_Reading]) -> str:
    fitted = [_habits(r.name, r.fit) for r in readings if isinstance(r.fit, Fit) and r.fit.rows]
    if len(fitted) > SAID:
        fitted = [*fitted[:SAID], f"and {len(fitted) - SAID} more counters"]
    even = [f"{r.name} evenly over time ({r.fit.reason})" for r in readings if isinstance(r.fit, Refused)]
    return "; ".join([f"least squares on {len(line.steps)} steps: {', '.join(fitted)}", *even])


def _habits(name: str, found: Fit) -> str:
    """One counter's fit: `gpu0 (612 updates, 21.3 ± 0.4 ms late, averaging 25 % of each)`."""
    late = (
        ""
        if found.lag_s is None
        else f", {1e3 * found.lag_s:.1f} ± {1e3 * found.u_lag_s * COVERAGE_FACTOR:.1f} ms late"
    )
    window = "" if found.share is None else f", averaging {100 * found.share:.0f} % of the time between them"
    inertia_s = found.inertia_s or 0.0
    slow = f", with {1e3 * inertia_s:.0f} ms of inertia" if inertia_s > VISIBLE_S else ""
    return f"{name} ({found.rows} updates{late}{window}{slow})"
