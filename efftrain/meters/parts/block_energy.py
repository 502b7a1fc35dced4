"""Joules by phase from blocks: parts of the step that were repeated on their own after the run.

A block is seconds long, so a sensor that is slow for a step is exact for a block: its joules over its repetitions are
those of one step's part. The backward pass cannot be repeated without the forward pass and is the difference of both.
The scatter between the blocks of a part says how sure this is. Times the run's steps, the parts must make up what the
run's steps took; what is missing or too much is spread over all, and is part of the uncertainty.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from scipy.stats import t as student

from efftrain.meters.parts.phase_energy import BOUNDARY, PhaseEnergy, closure, joined, refused
from efftrain.meters.parts.timeline import Floats, Timeline
from efftrain.meters.windows import Window
from efftrain.record.journal import Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, estimate, missing, scaled, weakest

PARTS: Final = ("data", "forward", "forward+backward", "optimizer")

_PHASES: Final = ("data", "forward", "backward", "optimizer")
_OF_PARTS: Final = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 1, 0], [0, 0, 0, 1]], dtype=float)
"""The phases as sums and differences of the parts."""

EnergyOf = Callable[[Sequence[Window]], Quantity]
"""J of all sensors over some stretches of time."""


def block_energy(
    blocks: Sequence[Line], line: Timeline, spans: Sequence[Line], energy_of: EnergyOf, whole: Quantity
) -> PhaseEnergy:
    """Divide the energy of a run among its phases by what blocks of them took.

    Args:
        blocks: block lines.
        line: the run's timeline.
        spans: its span lines.
        energy_of: the ledger.
        whole: J of the run.
    """
    marked = line.names[: line.phases]
    if set(marked) - set(_PHASES) or any(sum(b["name"] == part for b in blocks) < 2 for part in PARTS):
        return refused(marked, "the run ended before each part of the step had two blocks", alternative="")
    each = [_per_repetition([b for b in blocks if b["name"] == part], energy_of) for part in PARTS]
    if not whole.value or any(joules is None for joules in each):
        return refused(marked, "no energy was read in the blocks", alternative="")
    joules, covariance, factor = _steps([j for j in each if j is not None], len(line.steps))
    own = [_PHASES.index(name) for name in marked]
    joules, covariance, seconds = joules[own], covariance[np.ix_(own, own)], line.seconds[: line.phases]
    groups = joined(seconds, joules, covariance, factor)
    if len(groups) < 2 or joules.sum() <= 0:
        return refused(marked, "no two phases could be told apart, not even in blocks", alternative="")
    rest = _rest(line, spans, energy_of, whole)
    taken = whole.value - sum(q.value or 0.0 for q in rest.values())
    to_close = taken / float(joules.sum())
    phases: dict[str, Quantity] = {}
    lengths: dict[str, float] = {}
    for group in groups:
        name, half = (
            "+".join(marked[i] for i in group),
            factor * math.sqrt(float(covariance[np.ix_(group, group)].sum())),
        )
        phases[name] = _quantity(float(joules[group].sum()), half, to_close=to_close, whole=whole)
        lengths[name] = float(seconds[group].sum())
    lengths |= {name: float(line.seconds[line.names.index(name)]) for name in rest}
    half = factor * math.sqrt(float(covariance.sum()))
    return PhaseEnergy(
        phases=phases | rest,
        power={name: scaled(q, 1 / lengths[name], "W") for name, q in (phases | rest).items()},
        closure=closure(float(joules.sum()) + whole.value - taken, half, whole),
        attribution=_sentence(blocks, len(line.steps), to_close),
        seconds=lengths,
    )


def _per_repetition(blocks: Sequence[Line], energy_of: EnergyOf) -> Floats | None:
    """[2, blocks] J of one repetition, and its standard uncertainty; None where a block was not read."""
    read = [(energy_of([(b["t"], b["t_end"])]), b["repetitions"]) for b in blocks]
    if any(q.value is None for q, _ in read):
        return None
    return np.array([[(q.value or 0.0) / n for q, n in read], [(q.u_random or 0.0) / n for q, n in read]])


def _steps(each: Sequence[Floats], steps: int) -> tuple[Floats, Floats, float]:
    """[phases] J of `steps` steps, their covariance, and the factor of their 95 % interval.

    The relative scatter is pooled over the parts, since three blocks alone say little about it.
    """
    means = np.array([part[0].mean() for part in each])
    freedom = sum(part.shape[1] - 1 for part in each)
    scatter = sum(float((((part[0] - mean) / mean) ** 2).sum()) for part, mean in zip(each, means, strict=True))
    counts = np.array([part.shape[1] for part in each])
    read = np.array([float((part[1] ** 2).mean()) for part in each])
    variance = np.maximum(scatter / freedom * means**2, read) / counts
    joules = _OF_PARTS @ means * steps
    return joules, _OF_PARTS @ np.diag(variance) @ _OF_PARTS.T * steps**2, float(student.ppf(0.975, freedom))


def _rest(line: Timeline, spans: Sequence[Line], energy_of: EnergyOf, whole: Quantity) -> dict[str, Quantity]:
    """J outside of steps: spans as they were read, and what lies between steps at the run's mean power."""
    found: dict[str, Quantity] = {}
    for i in range(line.phases, len(line.names)):
        name, seconds = line.names[i], float(line.seconds[i])
        windows = [(s["t"], s["t_end"]) for s in spans if s["name"] == name]
        read = energy_of(windows) if windows else missing("J", source="no span")
        if read.value is None and seconds > 0:
            even = (whole.value or 0.0) * seconds / float(line.seconds.sum())
            read = estimate(
                even, "J", method=weakest([whole.method, "modelled"]), source="the run's mean power × time",
                boundary=BOUNDARY, u_random=even / math.sqrt(3),
            )  # fmt: skip
        if read.value is not None:
            found[name] = read
    return found


def _quantity(value: float, half: float, *, to_close: float, whole: Quantity) -> Quantity:
    """J of a group of phases; the run's total lends its systematic part, and what had to be closed adds to it."""
    # The truth lies anywhere between what the blocks say and what closes: rectangular (GUM, 4.3.7).
    u_random = math.hypot(half / COVERAGE_FACTOR, value * abs(1 - to_close) / math.sqrt(3)) * to_close
    value *= to_close
    share = value / (whole.value or 1.0)
    limits = None if whole.low is None or whole.high is None else (share * whole.low, share * whole.high)
    return estimate(
        value, "J", method=weakest([whole.method, "modelled"]), boundary=BOUNDARY, u_random=u_random,
        source="blocks of each part of the step, repeated after the run and scaled to its steps",
        u_systematic=share * (whole.u_systematic or 0.0), limits=limits, lower_bound=whole.lower_bound,
    )  # fmt: skip


def _sentence(blocks: Sequence[Line], steps: int, to_close: float) -> str:
    seconds = sum(b["t_end"] - b["t"] for b in blocks) / 1e9
    return (
        f"{len(blocks)} blocks of the parts of the step, {seconds:.0f} s after the run; times {steps} steps they "
        f"make up {100 / to_close:.1f} % of what the steps took"
    )
