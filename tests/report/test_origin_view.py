"""What a checkpoint had cost stands beside a run's bill on every page, and in none of its sums."""

from io import StringIO

import pytest
from records import run_record
from rich.console import Console

from efftrain.comparison.checks import run_checks
from efftrain.record.quantities import Quantity, estimate, missing
from efftrain.record.schema import Origin, Run, Study, VariantSummary
from efftrain.report.bill import bill
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.origin_view import origin_lines
from efftrain.report.overview import overview
from efftrain.report.terminal import render

COST = estimate(4321.0, "J", method="measured", source="record of first-s0, 600 steps; NVML", u_systematic=100.0)


def begun(energy: Quantity = COST, **choices: object) -> Run:
    origin = Origin(path="/c", run_id="first-s0", steps=600, tokens=307_200, training_energy=energy)
    return run_record(**choices).model_copy(update={"origin": origin})


def study_of(run: Run) -> Study:
    variant = VariantSummary(
        name=run.variant, runs=[run.run_id], skipped=False, reason=None, ratios={}, on_pareto_front=None
    )
    return Study(
        schema="efftrain.study/1", study_id="mine", created="today", command="mine", baseline=run.variant,
        runs=[run.run_id], variants=[variant], checks=[],
    )  # fmt: skip


@pytest.mark.parametrize("status", ["complete", "failed"])
def test_every_page_says_it_in_a_sentence_and_in_the_bill(status: str):
    run, out = begun(status=status), StringIO()
    study = study_of(run)
    render(study, [run], Console(file=out, width=220))
    said = (
        "This run took ≥ 200 J (assumed); the checkpoint that it began with (first-s0, 600 steps, 307,200 tokens) had"
        " cost 4.32 kJ (measured), which is not in this bill."
    )
    pages = markdown(study, [run]), html(study, [run])
    for page in (out.getvalue(), *pages):
        assert page.count(said) == 1
        assert page.count("the checkpoint before, not in it") == 1
    assert all("record of first-s0, 600 steps; NVML" in page for page in pages)


def test_its_joules_are_in_no_sum():
    run, plain = begun(), run_record()
    rows = {row.label: row.text for row in bill(study_of(run), [run])}
    apart = rows.pop("the checkpoint before, not in it")
    assert apart == "4.32 kJ [4.12, 4.52]"
    assert rows == {row.label: row.text for row in bill(study_of(plain), [plain])}


def test_what_is_not_known_is_said():
    run = begun(missing("J", source="no record beside the checkpoint"))
    (line,) = origin_lines([run])
    assert "had cost what nobody knows (no record beside the checkpoint), which is not in this bill." in line
    assert {row.label: row.text for row in bill(study_of(run), [run])}["the checkpoint before, not in it"] == "missing"


def test_several_runs_from_one_checkpoint_are_one_sentence():
    runs = [begun(seed=0, joules=200.0), begun(seed=1, joules=400.0)]
    (line,) = origin_lines(runs)
    assert line.startswith("These runs, on average, took ≥ 300 J (assumed); the checkpoint that they began with")


def test_adapters_are_counted():
    run = begun().model_copy(update={"trainable_parameters": 38_912})
    assert "38,912 weights are trained (LoRA); the model itself has 860,000." in origin_lines([run])


def test_tokens_per_parameter_say_nothing_of_weights_that_were_trained_before():
    run = begun()
    (check,) = (c for c in run_checks(run) if c.name == "tokens_per_parameter")
    assert check.status == "skipped"
    assert not any("tokens per parameter" in line for line in overview(study_of(run), [run]).legend)
