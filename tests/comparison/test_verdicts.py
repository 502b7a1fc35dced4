"""Verdicts on studies whose true ratios are known."""

import math
import random
from collections.abc import Callable

import pytest

from efftrain.comparison.statistics import Estimate
from efftrain.comparison.verdicts import METRICS, compare, judge
from efftrain.record.quantities import missing
from efftrain.record.schema import METRICS as METRIC_NAMES
from efftrain.record.schema import Run, VariantSummary

Make = Callable[..., Run]
VARIANTS = {"baseline": ("fp32", False, None), "bf16": ("bf16 autocast", False, None)}


def _study(make: Make, seeds: int, ratio: float, spread: float = 0.005, **choices: object) -> list[Run]:
    rng = random.Random(3)
    runs = []
    for seed in range(seeds):
        shared = rng.gauss(1.0, 0.1)  # what seeds differ in; pairing takes it out
        runs.append(make(variant="baseline", seed=seed, joules=200 * shared))
        runs.append(
            make(variant="bf16", seed=seed, joules=200 * shared * ratio * (1 + rng.gauss(0, spread)), **choices)
        )
    return runs


def _bf16(runs: list[Run]) -> VariantSummary:
    return compare(runs, variants=VARIANTS, baseline="baseline")[1]


def test_every_metric_of_the_schema_is_compared() -> None:
    assert tuple(METRICS) == METRIC_NAMES


@pytest.mark.parametrize(("ratio", "verdict"), [(0.87, "better"), (1.2, "worse"), (1.0, "equivalent")])
def test_eight_pairs_find_the_ratio_that_was_put_in(run_record: Make, ratio: float, verdict: str) -> None:
    found = _bf16(_study(run_record, 8, ratio)).ratios["energy_per_token"]
    assert found.verdict == verdict
    assert found.low is not None
    assert found.high is not None
    assert found.low <= ratio <= found.high
    assert found.pairs == 8


def test_higher_tokens_per_second_are_better(run_record: Make) -> None:
    runs = _study(run_record, 6, 1.0, step_s=0.021)
    found = _bf16(runs).ratios
    assert found["tokens_per_second"].ratio == pytest.approx(2.0)
    assert found["tokens_per_second"].verdict == "better"
    assert found["time_to_target"].verdict == "better"
    assert found["peak_memory"].verdict == "equivalent"


def test_two_pairs_are_inconclusive_and_say_what_is_needed(run_record: Make) -> None:
    found = _bf16(_study(run_record, 2, 0.5)).ratios["energy_per_token"]
    assert found.verdict == "inconclusive"
    assert found.detail == "2 pairs; at least 6 are needed"
    assert found.p_value == 0.5


def test_a_small_effect_in_noise_needs_more_than_six(run_record: Make) -> None:
    found = _bf16(_study(run_record, 6, 0.99, spread=0.02)).ratios["energy_per_token"]
    assert found.verdict == "inconclusive"
    assert "about" in found.detail or "no effect" in found.detail


def test_only_finished_runs_of_shared_seeds_are_paired(run_record: Make) -> None:
    runs = [
        run_record(variant="baseline", seed=0),
        run_record(variant="baseline", seed=1, status="killed", steps=100),
        run_record(variant="bf16", seed=0, status="early-stopped"),
        run_record(variant="bf16", seed=1),
        run_record(variant="bf16", seed=2),
    ]
    summary = _bf16(runs)
    assert summary.ratios["energy_per_token"].pairs == 1
    assert summary.runs == ["bf16-s0", "bf16-s1", "bf16-s2"]


def test_a_variant_without_a_finished_run_has_ratios_without_a_value(run_record: Make) -> None:
    runs = [run_record(seed=0), run_record(variant="bf16", status="oom", steps=0)]
    for ratio in _bf16(runs).ratios.values():
        assert (ratio.ratio, ratio.pairs, ratio.verdict) == (None, 0, "inconclusive")
        assert ratio.detail


def test_a_skipped_variant_and_the_baseline_have_no_ratios(run_record: Make) -> None:
    variants = {**VARIANTS, "fp16": ("fp16 autocast", True, "this CPU has no fp16")}
    summaries = compare(_study(run_record, 2, 1.0), variants=variants, baseline="baseline")
    assert [s.name for s in summaries] == ["baseline", "bf16", "fp16"]
    assert summaries[0].ratios == summaries[2].ratios == {}
    assert (summaries[2].skipped, summaries[2].reason) == (True, "this CPU has no fp16")


def test_a_variant_that_never_reaches_the_target_is_censored(run_record: Make) -> None:
    runs = [
        r for s in range(6) for r in (run_record(seed=s), run_record(variant="bf16", seed=s, final=4.6, joules=230))
    ]
    found = _bf16(runs).ratios
    assert found["energy_to_target"].censored == 6
    assert found["energy_to_target"].verdict == "worse"
    assert found["energy_to_target"].ratio == pytest.approx(1.15)
    assert found["final_validation"].verdict == "worse"
    assert found["time_to_target"].verdict == "inconclusive"  # all of the same time: the bound is 1


def test_a_variant_that_learns_faster_reaches_the_target_earlier(run_record: Make) -> None:
    runs = [r for s in range(6) for r in (run_record(seed=s), run_record(variant="bf16", seed=s, final=4.2))]
    found = _bf16(runs).ratios["energy_to_target"]
    # 4.2 + 2.5 (exp(-s / 150) - exp(-4)) = 4.43 at step 331; straight lines lie above a convex curve, and cross later
    crossing = -150 * math.log(0.23 / 2.5 + math.exp(-4)) / 600
    assert found.ratio is not None
    assert crossing < found.ratio < crossing * 1.04
    assert found.verdict == "better"


def test_energies_of_different_parts_are_not_compared(run_record: Make) -> None:
    runs = [run_record(seed=0, gpu=True), run_record(variant="bf16", seed=0)]
    found = _bf16(runs).ratios
    assert found["energy_per_token"].ratio is None
    assert "same parts" in found["energy_per_token"].detail
    assert found["tokens_per_second"].ratio == pytest.approx(1.0)


def test_a_missing_figure_leaves_its_pair_out(run_record: Make) -> None:
    run = run_record(variant="bf16", seed=0)
    memory = run.memory.model_copy(update={"peak": missing("B", source="profiler failed")})
    found = _bf16([run_record(seed=0), run.model_copy(update={"memory": memory})]).ratios["peak_memory"]
    assert found.ratio is None
    assert found.detail == "1 of 1 pairs left out: a figure is missing"


def test_the_pareto_front_holds_what_nothing_beats_in_both(run_record: Make) -> None:
    figures = {"baseline": (200, 4.43), "cheap": (120, 4.6), "bad": (210, 4.5), "good": (199, 4.40)}
    runs = [run_record(variant=name, joules=j, final=loss) for name, (j, loss) in figures.items()]
    runs.append(run_record(variant="dead", status="oom", steps=0))
    names = {name: ("", False, None) for name in (*figures, "dead")}
    fronts = {s.name: s.on_pareto_front for s in compare(runs, variants=names, baseline="baseline")}
    assert fronts == {"baseline": False, "cheap": True, "bad": False, "good": True, "dead": None}


def test_an_interval_that_holds_one_is_never_better() -> None:
    estimate = Estimate(ratio=0.9, low=0.8, high=1.01, pairs=12, p_value=0.01)
    assert judge(estimate, better="lower", margin=0.01) == "inconclusive"


def test_a_difference_below_the_margin_is_named_as_such(run_record: Make) -> None:
    found = _bf16(_study(run_record, 8, 0.996, spread=0.0005)).ratios["energy_per_token"]
    assert found.verdict == "better"
    assert "the difference is below 1.0%" in found.detail
