"""Ratios, intervals and p-values against closed forms, simulation and textbook powers."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from efftrain.comparison.statistics import mean_of, paired_ratio, pairs_needed, sign_flip_p, t_interval
from efftrain.record.quantities import estimate, exact, missing

positive = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(("pairs", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125), (12, 2**-11)])
def test_all_ratios_on_one_side_give_the_smallest_p_value_there_is(pairs: int, p: float) -> None:
    logs = [0.1 + 0.01 * i for i in range(pairs)]
    assert sign_flip_p(logs) == pytest.approx(p, rel=1e-12)
    assert sign_flip_p([-x for x in logs]) == pytest.approx(p, rel=1e-12)


def test_the_p_value_counts_sign_patterns() -> None:
    # 1, 2, 4 and -3 sum to 4. Patterns of ±1 ±2 ±4 ±3 whose sum is at least 4: 10, 8, 6, 4, 4; at most -4: as many.
    assert sign_flip_p([1.0, 2.0, 4.0, -3.0]) == pytest.approx(10 / 16)


def test_more_pairs_than_can_be_gone_through_still_give_a_p_value() -> None:
    assert sign_flip_p([0.1] * 20) < 0.001
    assert sign_flip_p([0.1, -0.1] * 10) == 1.0


def test_the_interval_is_that_of_a_one_sample_t_test() -> None:
    variant, baseline = [0.8, 0.9, 0.85, 0.95, 0.82, 0.9], [1.0, 1.1, 0.9, 1.0, 1.05, 0.97]
    result = paired_ratio(variant, baseline)
    logs = np.log(np.divide(variant, baseline))
    low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert result.ratio == pytest.approx(stats.gmean(np.divide(variant, baseline)))
    assert (result.low, result.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert result.pairs == 6


def test_one_pair_claims_no_interval() -> None:
    result = paired_ratio([2.0], [1.0])
    assert (result.ratio, result.low, result.high, result.p_value) == (2.0, None, None, 1.0)


def test_equal_ratios_have_an_interval_of_no_width() -> None:
    result = paired_ratio([3.0] * 6, [4.0] * 6)
    assert result.low == result.ratio == result.high == pytest.approx(0.75)
    assert paired_ratio([4.0] * 6, [4.0] * 6).p_value == 1.0


@pytest.mark.parametrize(("variant", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [math.nan])])
def test_figures_without_a_ratio_are_refused(variant: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="ratio"):
        paired_ratio(variant, baseline)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_exchanging_variant_and_baseline_inverts_everything(pairs: list[tuple[float, float]]) -> None:
    variant, baseline = [v for v, _ in pairs], [b for _, b in pairs]
    there, back = paired_ratio(variant, baseline), paired_ratio(baseline, variant)
    assert there.ratio == pytest.approx(1 / back.ratio, rel=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    if there.low and back.high and back.high < 1e300:  # two pairs far apart reach beyond what a float holds
        assert there.low == pytest.approx(1 / back.high, rel=1e-6)


@given(st.lists(st.floats(0.01, 3.0), min_size=4, max_size=7), st.integers(0, 3), st.floats(0.0, 5.0))
@settings(max_examples=40, deadline=None)
def test_a_ratio_that_rises_never_raises_the_p_value(logs: list[float], which: int, rise: float) -> None:
    mixed = [*logs, -0.5]
    if sum(mixed) <= 0:
        return
    risen = [x + rise if i == which else x for i, x in enumerate(mixed)]
    assert sign_flip_p(risen) <= sign_flip_p(mixed) + 1e-12


@pytest.mark.parametrize("pairs", [2, 6, 12])
def test_the_interval_covers_95_percent(pairs: int) -> None:
    trials, truth, rng = 2000, math.log(0.9), random.Random(11 + pairs)
    covered = 0
    for _ in range(trials):
        low, high = t_interval([rng.gauss(truth, 0.03) for _ in range(pairs)])
        covered += low <= truth <= high
    least, most = stats.binom.ppf([0.001, 0.999], trials, 0.95)
    assert least <= covered <= most


def test_equal_variants_are_told_apart_in_at_most_5_percent_of_studies() -> None:
    trials, rng = 400, random.Random(5)
    alarms = sum(sign_flip_p([rng.gauss(0, 0.02) for _ in range(8)]) < 0.05 for _ in range(trials))
    assert alarms <= stats.binom.ppf(0.999, trials, 0.05)
    assert alarms > 0  # a test that never rejects would pass too


@pytest.mark.parametrize(("effect", "pairs"), [(1.0, 10), (0.5, 34), (0.2, 199), (3.0, 6)])
def test_pairs_needed_are_those_of_published_power_tables(effect: float, pairs: int) -> None:
    # One-sample two-sided t test, alpha 0.05, power 0.80: G*Power prints 10, 34 and 199 for d = 1, 0.5 and 0.2.
    logs = [effect - math.sqrt(0.5), effect + math.sqrt(0.5)]  # mean `effect`, standard deviation 1
    assert pairs_needed(logs) == pairs


def test_pairs_needed_where_nothing_can_be_said() -> None:
    assert pairs_needed([0.3]) == 6
    assert pairs_needed([0.3, 0.3]) == 6
    assert pairs_needed([0.0, 0.0]) is None
    assert pairs_needed([1.0, -1.0]) is None


def test_a_mean_keeps_what_the_machine_shares_and_adds_the_spread_of_seeds() -> None:
    runs = [
        estimate(value, "J", method="measured", source="counter", u_systematic=0.05 * value) for value in (9.0, 11.0)
    ]
    mean = mean_of(runs)
    spread = stats.t.ppf(0.975, 1) * 1.0  # standard deviation √2, over √2
    assert mean.value == 10.0
    assert mean.high == pytest.approx(10 + math.hypot(1.96 * 0.5, spread))
    assert mean.low == 0.0  # 10 − 12.7 is no energy
    assert "2 of 2 runs" in mean.source


def test_a_mean_of_exact_equal_counts_is_exact() -> None:
    mean = mean_of([exact(7.0, "B", source="allocator")] * 3)
    assert mean.low == mean.value == mean.high == 7.0


def test_a_mean_leaves_missing_figures_out_and_keeps_lower_bounds() -> None:
    bound = estimate(4.0, "J", method="assumed", source="model", limits=(2.0, 9.0), lower_bound=True)
    mean = mean_of([bound, missing("J", source="sensor lost")])
    assert (mean.value, mean.low, mean.high, mean.lower_bound, mean.method) == (4.0, 2.0, None, True, "assumed")
    assert "1 of 2 runs" in mean.source
    assert mean_of([missing("J", source="sensor lost")]).value is None
