"""Energy and time to the baseline's loss against curves with a known crossing."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.comparison.targets import Reading, censored_ratio, to_target
from efftrain.record.quantities import exact, missing
from efftrain.record.schema import Loss, Run, Validation

TOTAL = exact(50.0, "J", source="counter")


def _with_curve(run: Run, points: list[tuple[float | None, float | None]]) -> Run:
    validation = [
        Validation(step=i, tokens=i * 10, loss=loss, energy_j=joules, time_s=joules)
        for i, (loss, joules) in enumerate(points, start=1)
    ]
    finite = [loss for loss, _ in points if loss is not None]
    final = exact(finite[-1], "nat/token", source="last") if finite else missing("nat/token", source="none was finite")
    return run.model_copy(
        update={"loss": Loss(train=[], validation=validation, final_validation=final, perplexity=run.loss.perplexity)}
    )


def _read(run: Run, baseline: Run) -> Reading | None:
    return to_target(run, baseline, spent=lambda v: v.energy_j, total=TOTAL)


def test_the_crossing_is_interpolated_between_evaluations(run_record: Callable[..., Run]) -> None:
    baseline = _with_curve(run_record(), [(6.0, 10.0), (4.0, 20.0)])
    # 5.0 → 3.0 between 10 and 30 J: 4.0 is half way
    assert _read(_with_curve(run_record(), [(5.0, 10.0), (3.0, 30.0)]), baseline) == Reading(20.0)
    assert _read(_with_curve(run_record(), [(3.5, 12.0), (3.0, 30.0)]), baseline) == Reading(12.0)


def test_a_run_against_itself_is_one(run_record: Callable[..., Run]) -> None:
    for curve in ([(6.0, 10.0), (5.0, 20.0), (4.0, 35.0)], [(6.0, 10.0), (3.9, 20.0), (4.0, 35.0)]):
        run = _with_curve(run_record(), curve)
        reading = _read(run, run)
        assert reading is not None
        assert not reading.censored
    monotone = _with_curve(run_record(), [(6.0, 10.0), (5.0, 20.0), (4.0, 35.0)])
    assert _read(monotone, monotone) == Reading(35.0)


def test_a_run_that_never_gets_there_used_at_least_its_total(run_record: Callable[..., Run]) -> None:
    baseline = _with_curve(run_record(), [(6.0, 10.0), (4.0, 20.0)])
    assert _read(_with_curve(run_record(), [(6.0, 10.0), (4.1, 40.0)]), baseline) == Reading(50.0, censored=True)


@pytest.mark.parametrize("points", [[], [(None, 5.0)], [(5.0, None), (3.0, 20.0)], [(5.0, 10.0), (3.0, None)]])
def test_missing_losses_and_energies_give_no_reading(
    run_record: Callable[..., Run], points: list[tuple[float | None, float | None]]
) -> None:
    baseline = _with_curve(run_record(), [(6.0, 10.0), (4.0, 20.0)])
    assert _read(_with_curve(run_record(), points), baseline) is None


def test_a_nan_on_the_way_is_stepped_over(run_record: Callable[..., Run]) -> None:
    baseline = _with_curve(run_record(), [(6.0, 10.0), (4.0, 20.0)])
    run = _with_curve(run_record(), [(5.0, 10.0), (None, 20.0), (3.0, 30.0)])
    assert _read(run, baseline) == Reading(20.0)


@given(factor=st.floats(0.1, 5.0), end=st.floats(1.1, 50.0))
def test_scaling_all_energies_scales_the_energy_to_target(
    run_record: Callable[..., Run], factor: float, end: float
) -> None:
    baseline = _with_curve(run_record(), [(6.0, 10.0), (4.0, 20.0)])
    plain = _read(_with_curve(run_record(), [(6.0, 1.0), (3.0, end)]), baseline)
    scaled = _read(_with_curve(run_record(), [(6.0, factor), (3.0, factor * end)]), baseline)
    assert plain
    assert scaled
    assert scaled.value == pytest.approx(factor * plain.value)


def test_six_bounds_above_one_are_worse_whatever_the_truth() -> None:
    ratio = censored_ratio([Reading(1.0 + 0.1 * i, censored=True) for i in range(1, 7)], [1.0] * 6)
    assert ratio.verdict == "worse"
    assert ratio.high is None
    assert ratio.low == pytest.approx(1.1)
    assert (ratio.censored, ratio.pairs) == (6, 6)


def test_a_censored_pair_never_makes_a_variant_better() -> None:
    readings = [Reading(0.5)] * 5 + [Reading(0.9, censored=True)]
    ratio = censored_ratio(readings, [1.0] * 6)
    assert ratio.verdict == "inconclusive"
    assert ratio.high is None


def test_few_censored_pairs_say_how_many_are_needed() -> None:
    ratio = censored_ratio([Reading(3.0, censored=True), Reading(2.0)], [1.0, 1.0])
    assert (ratio.verdict, ratio.low) == ("inconclusive", None)
    assert ratio.ratio == pytest.approx(math.sqrt(6.0))
    assert "1 of 2 pairs never reached" in ratio.detail
    assert "at least 6 are needed" in ratio.detail
