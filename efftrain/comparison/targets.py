"""What it cost to reach the baseline's loss, and what can be said of runs that never got there.

The target of a seed is the final validation loss of that seed's baseline. A run has reached it where its validation
curve, with straight lines between evaluations, first comes down to it; the baseline is read by the same rule, so a run
against itself is exactly 1 even if its curve had dipped before its end.

A run that never gets there is censored: it would have needed more than all that it used. Its ratio is a lower bound,
and the geometric mean over pairs with such bounds is one too. What stays valid then:

- no upper end; the truth could lie anywhere above, so neither `better` nor `equivalent` can be said;
- the sign-flip p-value of the bounds is at most too large, for it never rises when a ratio rises (see
  `statistics.sign_flip_p`), so `worse` can be said;
- the smallest paired ratio is a lower 97.5 % limit from six pairs on (J. A. Hartigan, Using subsample values as typical
  values, JASA 64, 1969: each of the 2^n gaps between subset means is equally likely to hold the truth, and below the
  smallest lies one). A t interval has no such property: a bound that rises widens it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efftrain.comparison.statistics import MIN_PAIRS, SIGNIFICANCE, log_ratios, sign_flip_p
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Ratio, Run, Validation


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric of one run; `censored` where the true figure is above `value`."""

    value: float
    censored: bool = False


def to_target(
    run: Run, baseline: Run, *, spent: Callable[[Validation], float | None], total: Quantity
) -> Reading | None:
    """What `run` had spent when it first reached the final validation loss of `baseline`.

    Args:
        run: the run that is judged.
        baseline: the baseline's run with the same seed; it may be `run` itself.
        spent: takes the energy in J or the time in s from an evaluation.
        total: all that `run` used, for the case that it never reached the target.

    Returns:
        None where a figure that it takes is missing.
    """
    target = baseline.loss.final_validation.value
    curve = [(v.loss, spent(v)) for v in run.loss.validation if v.loss is not None]
    if target is None or not curve:
        return None
    crossing = next((i for i, (loss, _) in enumerate(curve) if loss <= target), None)
    if crossing is None:
        return None if total.value is None else Reading(total.value, censored=True)
    value = _interpolate(curve[max(0, crossing - 1)], curve[crossing], target)
    return Reading(value) if value else None


def censored_ratio(variant: Sequence[Reading], baseline: Sequence[float]) -> Ratio:
    """The verdict on pairs of which at least one never reached the target; all ratios are lower bounds."""
    logs = log_ratios([r.value for r in variant], baseline)
    pairs, censored = len(logs), sum(r.censored for r in variant)
    p_value = sign_flip_p(logs)
    low = math.exp(min(logs)) if pairs >= MIN_PAIRS else None
    worse = low is not None and low > 1 and p_value < SIGNIFICANCE
    detail = f"{censored} of {pairs} pairs never reached the baseline's final loss: the ratio is a lower bound"
    if pairs < MIN_PAIRS:
        detail += f"; {pairs} {'pair' if pairs == 1 else 'pairs'}; at least {MIN_PAIRS} are needed"
    return Ratio(
        ratio=math.exp(math.fsum(logs) / pairs), low=low, high=None, pairs=pairs, p_value=p_value,
        verdict="worse" if worse else "inconclusive", censored=censored, detail=detail,
    )  # fmt: skip


def _interpolate(before: tuple[float, float | None], after: tuple[float, float | None], target: float) -> float | None:
    (loss_before, spent_before), (loss_after, spent_after) = before, after
    if spent_after is None or before == after:
        return spent_after
    if spent_before is None:
        return None
    share = (loss_before - target) / (loss_before - loss_after)
    return spent_before + share * (spent_after - spent_before)
