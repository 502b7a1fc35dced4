"""A study of one run: what it cost, with what was not read, and nothing about comparing."""

from io import StringIO

import pytest
from records import run_record
from rich.console import Console

from efftrain.record.quantities import missing
from efftrain.record.schema import Run, Study, VariantSummary
from efftrain.report.bill import bill
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.terminal import render

SILLY = (
    "Nothing to compare", "after 0 steps", "1 variant", "means over seeds", "mean over seeds", "no run has the figures",
)  # fmt: skip


def study_of(*runs: Run) -> Study:
    names = dict.fromkeys(run.variant for run in runs)
    variants = [
        VariantSummary(name=name, runs=[], skipped=False, reason=None, ratios={}, on_pareto_front=None)
        for name in names
    ]
    return Study(
        schema="efftrain.study/1", study_id="mine", created="today", command="mine", baseline=runs[0].variant,
        runs=[run.run_id for run in runs], variants=variants, checks=[],
    )  # fmt: skip


@pytest.fixture
def failed() -> Run:
    """A command that used energy, had no steps and no tokens, and failed."""
    run = run_record(variant="train", gpu=True, status="failed", notes=("failed: exit status 7",))
    none = missing("J/token", source="no token was trained")
    energy = run.energy.model_copy(update={"per_token": none})
    return run.model_copy(update={"steps": 0, "tokens": 0, "energy": energy})


def test_one_run_has_a_bill_whatever_its_end(failed: Run):
    rows = {row.label: row for row in bill(study_of(failed), [failed])}
    assert list(rows)[:3] == ["time", "energy", "of which GPU"]
    assert rows["energy"].text.startswith("≥ 200 J")
    assert rows["of which rest of node"].text == "missing"
    assert rows["of which rest of node"].source == "no meter at the plug"
    assert "energy per token" not in rows
    assert "CO₂e" in rows


def test_more_runs_are_compared(failed: Run):
    other = run_record(variant="train", seed=1)
    assert bill(study_of(failed, other), [failed, other]) == []
    assert bill(study_of(failed, run_record(variant="bf16")), [failed]) == []


def test_no_page_speaks_of_comparing(failed: Run):
    study, out = study_of(failed), StringIO()
    render(study, [failed], Console(file=out, width=140))
    for text in (out.getvalue(), markdown(study, [failed]), html(study, [failed])):
        assert "exit status 7" in text
        assert "200 J" in text
        assert "no meter at the plug" in text
        for silly in SILLY:
            assert silly not in text


@pytest.mark.parametrize("status", ["killed", "interrupted", "failed"])
def test_one_run_shows_phases_and_carbon_whatever_its_end(failed: Run, status: str):
    known = failed.energy.model_copy(update={"attribution": "phases were not told apart: too short"})
    run, out = failed.model_copy(update={"status": status, "steps": 7, "energy": known}), StringIO()
    render(study_of(run), [run], Console(file=out, width=140))
    for text in (out.getvalue(), markdown(study_of(run), [run]), html(study_of(run), [run])):
        assert "phases were not told apart" in text
        assert "95 % interval" in text
    assert "location-based" in markdown(study_of(run), [run])


def test_an_unfinished_run_among_others_shows_neither(failed: Run):
    known = failed.energy.model_copy(update={"attribution": "phases were not told apart: too short"})
    run = failed.model_copy(update={"steps": 7, "energy": known})
    runs = [run, run.model_copy(update={"run_id": "train-s1", "seed": 1})]
    assert "phases were not told apart" not in markdown(study_of(*runs), runs)
