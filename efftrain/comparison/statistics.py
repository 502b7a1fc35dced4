"""Ratios over paired seeds, how sure they are, and how many pairs a verdict takes.

A variant and the baseline that share a seed see the same tokens in the same order, so their ratio is free of what
seeds differ in. Ratios are averaged on the logarithm, where "twice" and "half" are equally far from one.

Why Student's t and not the bootstrap: at the six to twelve pairs that a study has, the BCa interval covers 87 to 88 %
instead of 95 %, while t on log ratios covers 94 to 96 %. Why a permutation test beside it: it is exact without a normal
distribution (arXiv:2511.19794 argues for this pairing of seeds and test).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from efftrain.record.quantities import Quantity, missing, weakest

MIN_PAIRS = 6
"""Fewest pairs that can reach p < 0.05: of 2^n sign patterns two are as extreme as the data, and 2 / 2^5 = 0.0625."""

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8
MOST_PAIRS = 1000
EXACT_PATTERNS = 4096
"""Sign patterns that are gone through one by one, 2^12; with more pairs as many random patterns are drawn."""


LARGEST_LOG = 700.0
"""The interval of two pairs that are far apart can reach beyond the largest float, e^709."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A ratio of variant to baseline.

    Attributes:
        ratio: geometric mean of the paired ratios.
        low: lower end of its 95 % interval; None for a single pair.
        high: upper end; None for a single pair.
        pairs: number of pairs.
        p_value: two-sided, of the hypothesis that the ratio is 1.
    """

    ratio: float
    low: float | None
    high: float | None
    pairs: int
    p_value: float


def paired_ratio(variant: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Geometric mean of variant / baseline with a t interval on the logarithms and a sign-flip test.

    Args:
        variant: one figure a seed, positive.
        baseline: the same seeds' figures, in the same order and unit.

    Raises:
        ValueError: no pairs, unequal lengths, or a figure that is not positive and finite.
    """
    logs = log_ratios(variant, baseline)
    ends = None if len(logs) < 2 else t_interval(logs)
    return Estimate(
        ratio=math.exp(math.fsum(logs) / len(logs)),
        low=math.exp(ends[0]) if ends else None,
        high=math.exp(min(ends[1], LARGEST_LOG)) if ends else None,
        pairs=len(logs),
        p_value=sign_flip_p(logs),
    )


def log_ratios(variant: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Natural logarithms of the paired ratios; raises as `paired_ratio` does."""
    if not variant or len(variant) != len(baseline):
        raise ValueError(f"{len(variant)} figures against {len(baseline)}: a paired ratio needs one of each a seed")
    wrong = [x for x in (*variant, *baseline) if not (math.isfinite(x) and x > 0)]
    if wrong:
        raise ValueError(f"{wrong[0]} has no ratio: figures must be positive and finite")
    return [math.log(v) - math.log(b) for v, b in zip(variant, baseline, strict=True)]


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of at least two values."""
    mean = math.fsum(values) / len(values)
    half = _t_factor(len(values)) * _standard_error(values)
    return mean - half, mean + half


def sign_flip_p(logs: Sequence[float]) -> float:
    """Two-sided p-value of a mean of 0: the share of sign patterns whose mean is as far from 0 as the observed one.

    Exact up to 12 pairs. While the mean is above 0 it never rises when a value rises: fewer patterns then reach the
    observed mean. That makes it usable with lower bounds (see `targets`).
    """
    if len(logs) < 2:
        return 1.0
    import numpy as np
    from scipy import stats

    test = stats.permutation_test(
        (np.asarray(logs),), np.mean, permutation_type="samples", n_resamples=EXACT_PATTERNS, rng=0
    )
    return float(test.pvalue)


def pairs_needed(logs: Sequence[float]) -> int | None:
    """Pairs at which a t test would find the effect and spread of `logs` with p < 0.05 in 80 % of studies.

    Never fewer than six, for the sign-flip test cannot say less. None where a thousand would not do: there is no
    effect to speak of. The power is that of the noncentral t distribution (J. Cohen, Statistical Power Analysis, 1988,
    chapter 2); the effect is the observed one, so the answer is rough while pairs are few.
    """
    if len(logs) < 2:
        return MIN_PAIRS
    mean, spread = abs(math.fsum(logs) / len(logs)), _standard_error(logs) * math.sqrt(len(logs))
    if spread == 0:
        return MIN_PAIRS if mean else None
    import numpy as np
    from scipy import stats

    n = np.arange(MIN_PAIRS, MOST_PAIRS + 1)
    effect = min(mean / spread, 5.0)  # beyond five spreads, six pairs suffice and the distribution underflows
    power = stats.nct.sf(stats.t.ppf(1 - SIGNIFICANCE / 2, n - 1), n - 1, effect * np.sqrt(n))
    enough = n[power >= POWER]
    return int(enough[0]) if enough.size else None


def mean_of(quantities: Sequence[Quantity]) -> Quantity:
    """Mean of one figure over the seeds of a variant.

    The runs share a machine, so what their intervals cover does not average out; to it, in quadrature, comes the
    spread between seeds by Student's t. Figures that are missing are left out, and the source says how many.

    Raises:
        ValueError: no quantities.
    """
    if not quantities:
        raise ValueError("a mean needs at least one quantity")
    present = [(q, q.value) for q in quantities if q.value is not None]
    first = quantities[0]
    if not present:
        return missing(first.unit, source=first.source, boundary=first.boundary)
    values = [value for _, value in present]
    mean = math.fsum(values) / len(values)
    spread = mean - t_interval(values)[0] if len(values) > 1 else 0.0
    below = _mean_distance([None if q.low is None else v - q.low for q, v in present])
    above = _mean_distance([None if q.high is None else q.high - v for q, v in present])
    bounded = any(q.lower_bound for q, _ in present)
    low = None if below is None else mean - math.hypot(below, spread)
    count = f"mean of {len(present)} of {len(quantities)} runs" if len(quantities) > 1 else ""
    return Quantity(
        value=mean,
        unit=first.unit,
        low=low if low is None or mean < 0 else min(mean, max(0.0, low)),
        high=None if above is None or bounded else mean + math.hypot(above, spread),
        method=weakest([q.method for q, _ in present]),
        source=": ".join(filter(None, (count, present[0][0].source))),
        boundary=present[0][0].boundary,
        lower_bound=bounded,
    )


def _t_factor(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def _standard_error(values: Sequence[float]) -> float:
    n = len(values)
    if len(set(values)) == 1:  # exactly 0 for counts, where rounding of the mean would leave a trace
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)


def _mean_distance(distances: Sequence[float | None]) -> float | None:
    known = [d for d in distances if d is not None]
    return math.fsum(known) / len(known) if len(known) == len(distances) else None
