"""Each expectation is broken once, by hand, and must be flagged; whole records must pass."""

from collections.abc import Callable

import pytest

from efftrain.comparison.checks import RUN_CHECKS, run_checks, study_checks
from efftrain.comparison.verdicts import compare
from efftrain.record.quantities import Quantity, missing
from efftrain.record.schema import Check, Run

Make = Callable[..., Run]


def _of(run: Run) -> dict[str, str]:
    return {check.name: check.status for check in run_checks(run)}


def test_a_sound_gpu_run_is_warned_of_what_is_missing_and_no_more(run_record: Make) -> None:
    run = run_record(gpu=True, steps=600, tokens_per_step=32_768, peak=9.89e14, mfu=0.4, hfu=0.4)
    assert {name for name, status in _of(run).items() if status != "passed"} == {"energy_complete"}


@pytest.mark.parametrize(
    ("check", "status", "choices"),
    [
        ("run_complete", "failed", {"status": "killed", "steps": 250}),
        ("utilization_below_peak", "failed", {"mfu": 1.2, "hfu": 1.2}),
        ("utilization_below_peak", "failed", {"mfu": 0.9, "hfu": 1.01}),
        ("utilization_below_peak", "skipped", {"mfu": None, "hfu": None}),
        ("hfu_at_least_mfu", "failed", {"mfu": 0.4, "hfu": 0.3}),
        ("hfu_at_least_mfu", "skipped", {"mfu": 0.4, "hfu": None}),
        ("energy_complete", "warning", {}),
        ("energy_measured", "warning", {}),
        ("energy_measured", "passed", {"gpu": True}),
        ("tokens_per_parameter", "warning", {}),
        ("tokens_per_parameter", "passed", {"parameters": 10_000}),
        ("memory_as_predicted", "warning", {"memory": 1.06e9, "predicted": 1e9}),
        ("memory_as_predicted", "passed", {"memory": 1.04e9, "predicted": 1e9}),
        ("loss_below_unigram_entropy", "warning", {"final": 5.96}),
        ("loss_below_unigram_entropy", "passed", {"final": 5.94}),
        ("loss_below_unigram_entropy", "skipped", {"steps": 50}),
        ("sensors_kept", "warning", {"notes": ("sensor gpu0 was lost: Unknown Error",)}),
        ("sensors_kept", "passed", {"notes": ("3 lines could not be written",)}),
        ("energy_above_device_floor", "skipped", {}),
    ],
)  # fmt: skip
def test_each_expectation_is_flagged(run_record: Make, check: str, status: str, choices: dict[str, object]) -> None:
    assert _of(run_record(**choices))[check] == status


@pytest.mark.parametrize(("share", "status"), [(0.99, "warning"), (1.01, "passed")])
def test_the_floor_is_flops_at_peak_rate_and_power_limit(run_record: Make, share: float, status: str) -> None:
    # 600 steps of 2.9e9 FLOP at 1e9 FLOP/s and 100 W: 1740 s of 100 W; the GPU is 0.9 of the energy here.
    floor = 600 * 2.9e9 / 1e9 * 100
    run = run_record(gpu=True, peak=1e9, power_limit_w=100.0, joules=share * floor / 0.9)
    assert _of(run)["energy_above_device_floor"] == status


def _with_peak(run: Run, rate: float, *, lower_bound: bool = False) -> Run:
    """`run` with a peak rate and without utilizations, as a meter leaves them out where they cannot be."""
    absent = missing("1", source="cannot be")
    peak = Quantity(
        value=rate, unit="FLOP/s", method="measured", source="calibrated on a busy machine", lower_bound=lower_bound
    )
    return run.model_copy(
        update={"flops": run.flops.model_copy(update={"peak_rate": peak, "mfu": absent, "hfu": absent})}
    )


def test_a_utilization_that_was_left_out_for_being_impossible_fails(run_record: Make) -> None:
    run = run_record(mfu=0.4, hfu=0.4)
    assert run.time.step.value
    reached = 2.9e9 / run.time.step.value  # FLOP of a step over its seconds
    found = {c.name: c for c in run_checks(_with_peak(run, reached / 1.3))}["utilization_below_peak"]
    assert found.status == "failed"
    assert "MFU 130.0%" in found.detail
    assert "calibrated on a busy machine" in found.detail
    assert _of(_with_peak(run, reached * 1.3))["utilization_below_peak"] == "skipped"


def test_a_utilization_of_a_peak_that_is_a_lower_bound_is_at_most_that(run_record: Make) -> None:
    run = run_record(mfu=0.4, hfu=0.5)
    flops = _with_peak(run, 1e9, lower_bound=True).flops.model_copy(update={"mfu": run.flops.mfu, "hfu": run.flops.hfu})
    found = {c.name: c for c in run_checks(run.model_copy(update={"flops": flops}))}["utilization_below_peak"]
    assert found.status == "warning"
    assert found.detail == "MFU 40.0%, HFU 50.0% at most: calibrated on a busy machine"


def test_all_checks_are_listed_in_order(run_record: Make) -> None:
    checks = run_checks(run_record())
    assert [c.name for c in checks] == list(RUN_CHECKS)
    assert all(c.detail for c in checks)


def test_a_run_without_a_step_can_be_checked(run_record: Make) -> None:
    assert _of(run_record(status="oom", steps=0))["run_complete"] == "failed"


def _study(make: Make, runs: list[Run]) -> dict[str, Check]:
    names = {r.variant: ("", False, None) for r in runs}
    return {c.name: c for c in study_checks(runs, compare(runs, variants=names, baseline="baseline"))}


def test_a_sound_study_passes(run_record: Make) -> None:
    runs = [
        run_record(variant=name, seed=seed, recompute=name == "recompute", joules=200 if name == "baseline" else 230)
        for name in ("baseline", "recompute")
        for seed in range(6)
    ]
    said = {name: c.status for name, c in _study(run_record, runs).items()}
    assert said.pop("idle_steady") == "skipped"
    assert set(said.values()) == {"passed"}


@pytest.mark.parametrize(
    ("after", "status"), [(62.0, "passed"), (70.0, "warning"), (50.0, "warning"), (None, "skipped")]
)
def test_idle_power_that_moved_is_flagged(after: float | None, status: str) -> None:
    settings = {"idle_before": {"gpu0": {"watts": 60.0, "u_watts": 0.1}}}
    if after is not None:
        settings["idle_after"] = {"gpu0": {"watts": after, "u_watts": 0.1}}
    found = {c.name: c for c in study_checks([], [], settings)}["idle_steady"]
    assert found.status == status
    assert ("60 W before" in found.detail) == (after is not None)


@pytest.mark.parametrize(
    ("check", "status", "choices"),
    [
        ("same_tokens", "failed", {"tokens_per_step": 1024}),
        ("same_corpus", "failed", {"corpus": "cd" * 32}),
        ("same_devices", "failed", {"threads": 4}),
        ("same_devices", "failed", {"gpu": True}),
        ("enough_seeds", "warning", {}),
        ("recompute_costs_energy", "warning", {"recompute": True, "joules": 180}),
        ("recompute_costs_energy", "passed", {"recompute": True, "joules": 250}),
        ("recompute_costs_energy", "skipped", {"recompute": True, "joules": 180, "tokens_per_step": 1024}),
        ("recompute_costs_energy", "skipped", {}),
    ],
)  # fmt: skip
def test_each_rule_of_a_study_is_flagged(run_record: Make, check: str, status: str, choices: dict[str, object]) -> None:
    found = _study(run_record, [run_record(), run_record(variant="other", **choices)])[check]
    assert found.status == status
    assert found.detail


def test_boards_are_told_apart_by_their_uuid(run_record: Make) -> None:
    baseline = run_record(gpu=True)
    assert _study(run_record, [baseline, run_record(variant="a", gpu=True)])["same_devices"].status == "passed"
    other = run_record(variant="a", gpu=True, device="GPU-9")
    assert _study(run_record, [baseline, other])["same_devices"].status == "failed"


def test_an_empty_study_can_be_checked(run_record: Make) -> None:
    assert {c.status for c in study_checks([], [])} == {"skipped"}
