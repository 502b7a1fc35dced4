"""What reports say, held against the records by hand."""

import pytest

from efftrain.record.quantities import exact
from efftrain.record.schema import Run, Study, Teacher
from efftrain.report.format import figure
from efftrain.report.overview import overview

Case = tuple[Study, list[Run]]


def test_a_run_on_a_processor_is_named_by_it(small: Case, large: Case) -> None:
    assert "5 variants × 2 seeds on Intel(R) Xeon(R) Processor, 2 threads;" in overview(*small).subtitle
    assert "on NVIDIA H200;" in overview(*large).subtitle


def test_the_heading_says_which_variants_are_missing(small: Case, large: Case, damaged: Case) -> None:
    assert overview(*small).subtitle.endswith(
        "10 of 10 runs ended as planned; 5 of 6 variants measured, fp16 skipped: this CPU has no fp16 matrix product"
    )
    assert overview(*large).subtitle.endswith("ended as planned")
    why = "the baseline with seed 1 did not finish: <killed> [red]"
    assert overview(*damaged).subtitle.endswith(f"; 2 of 4 variants measured, distilled skipped: {why}")


def test_means_are_over_finished_runs_only(damaged: Case) -> None:
    view = overview(*damaged)
    bf16 = next(v for v in view.variants if v.name == "bf16")
    assert bf16.runs_ok == "1/2"
    assert bf16.means["energy_total"].value == 200.0  # the diverged run stopped at 100 J
    recompute = next(v for v in view.variants if v.name == "recompute")
    assert all(q.value is None for q in recompute.means.values())


def test_the_mean_of_two_seeds_is_their_mean(small: Case) -> None:
    view = overview(*small)
    for variant in view.variants:
        values = [r.energy.per_token.value for r in small[1] if r.variant == variant.name]
        assert variant.means["energy_per_token"].value == pytest.approx(sum(v for v in values if v) / 2)


def test_few_seeds_are_said_once(small: Case) -> None:
    assert overview(*small).findings == [
        "No verdicts yet: 2 pairs of seeds; at least 6 are needed (--seeds 6 or more)."
    ]


def test_findings_name_each_metric_once(large: Case) -> None:
    view = overview(*large)
    assert len(view.findings) == 4
    recompute = next(f for f in view.findings if f.startswith("recompute"))
    assert "worse in energy per token (+2" in recompute
    assert "better in peak memory (−42 %)" in recompute
    for finding in view.findings:
        for label in ("energy per token", "energy to target", "peak memory", "final validation loss"):
            assert finding.count(label) == 1


def test_changes_below_the_margin_are_called_slight(large: Case) -> None:
    bf16 = next(f for f in overview(*large).findings if f.startswith("bf16"))
    assert "final validation loss (+0.10 %, less than 0.5 % matters little)" in bf16


def test_legend_says_what_the_signs_mean(small: Case, large: Case) -> None:
    text = "\n".join(overview(*small).legend)
    assert "4 W (2 to 10) per busy thread" in text
    assert "not read here: rest of node, embodied carbon" in text
    assert "geometric mean of 2 pairs" in text
    assert "Trained on 0.36 to 0.71 tokens per parameter; about 20 are needed" in text
    assert "that is too few here" in text
    assert "that is met" in "\n".join(overview(*large).legend)


def test_every_unfinished_run_and_every_skipped_variant_is_named(damaged: Case) -> None:
    view = overview(*damaged)
    assert [line.split(":")[0] for line in view.unfinished] == ["baseline-s1", "bf16-s0", "recompute-s0"]
    assert "killed after 250 steps and 128,000 tokens" in view.unfinished[0]
    assert view.not_run == [("distilled", "the baseline with seed 1 did not finish: <killed> [red]")]


def test_a_variant_of_which_one_run_was_not_made_is_named_too(small: Case) -> None:
    study, runs = small
    why = "distilled-s1 was not made: its baseline failed"
    variants = [s.model_copy(update={"reason": why}) if s.name == "distilled" else s for s in study.variants]
    assert ("distilled", why) in overview(study.model_copy(update={"variants": variants}), runs).not_run


def test_alike_checks_of_many_runs_are_one_flag(small: Case) -> None:
    flags = overview(*small).flagged("warning")
    assert [f.where for f in flags if f.check == "energy_measured"] == ["10 runs"]
    tokens = next(f for f in flags if f.check == "tokens_per_parameter")
    assert tokens.where == "baseline-s0"
    assert tokens.detail.endswith("(and 9 runs like it)")


def test_failed_flags_come_first(damaged: Case) -> None:
    statuses = [f.status for f in overview(*damaged).flagged("failed", "warning")]
    assert statuses == sorted(statuses)
    assert "failed" in statuses


def test_provenance_holds_what_a_reader_needs_to_repeat_it(large: Case) -> None:
    facts = dict(overview(*large).provenance)
    assert facts["trained on"] == "NVIDIA H200"
    assert facts["devices"] == "name NVIDIA H200, uuid GPU-1234, power limit w 700.0"
    assert f"sha256 {'ab' * 32}" in facts["corpus"]
    assert facts["versions"] == "python 3.11.2, torch 2.13.0"
    assert facts["configuration of baseline-s0"] == "steps 600, precision fp32"
    assert facts["command"] == large[0].command
    assert facts["PUE"].startswith("1.00 assumed; no PUE given")
    assert "world average" in facts["carbon intensity"]


def test_the_plan_kept_in_the_settings_is_no_provenance(small: Case) -> None:
    study = small[0].model_copy(update={"settings": {"preset": "quick", "plan": {"runs": [{"seed": 0}]}}})
    facts = dict(overview(study, small[1]).provenance)
    assert facts["preset"] == "quick"
    assert "plan" not in facts
    assert "devices" not in facts  # a processor alone


def test_regions_are_those_of_the_baseline(large: Case) -> None:
    baseline = large[1][0]
    france = next(row for row in overview(*large).regions if row[0] == "FRA")
    assert baseline.energy.total.value
    assert france[2].startswith(f"≥ {baseline.energy.total.value * 56.0 / 3.6e6 * 1000:.0f} mg")


def test_an_empty_study_says_so(empty: Case) -> None:
    view = overview(*empty)
    assert view.subtitle == "no run was recorded"
    assert view.findings == ["Nothing to compare: no variant stands beside the baseline."]
    assert view.legend == []


def test_what_a_teacher_cost_to_train_stands_apart(small: Case) -> None:
    study, runs = small
    energy = {r.run_id: r.energy.total for r in runs}
    taught = [
        r.model_copy(
            update={"teacher": Teacher(run_id="the baseline", training_energy=energy[f"baseline-s{r.seed}"])}
        )
        if r.variant == "distilled"
        else r
        for r in runs
    ]  # fmt: skip
    (line,) = [text for text in overview(study, taught).legend if "teacher" in text]
    mean = sum(energy[f"baseline-s{seed}"].value or 0.0 for seed in (0, 1)) / 2
    assert line.startswith("distilled: its teacher's passes are in its bill; training the teacher took ")
    assert figure(exact(mean, "J", source="by hand"), interval=False) in line
    assert not any("teacher" in text for text in overview(study, runs).legend)
