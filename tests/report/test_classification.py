"""What reports say of classifiers, and that they say nothing of them where there are none."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from efftrain.comparison.checks import run_checks
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Classification, ClassScore, Run, Study, VariantSummary
from efftrain.report.bill import bill
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.prometheus import write_prometheus
from efftrain.report.terminal import render


def share(value: float) -> Quantity:
    return Quantity(
        value=value, unit="1", low=value - 0.05, high=min(1.0, value + 0.04), method="measured", source="evaluation"
    )  # fmt: skip


@pytest.fixture
def classifier(run_record: Callable[..., Run]) -> Callable[..., Run]:
    def build(seed: int = 0, accuracy: float = 0.9, **more) -> Run:
        run = run_record(seed=seed, **more)
        classes = [
            ClassScore(name=name, documents=40, precision=share(0.8), recall=share(0.85), f1=share(0.824))
            for name in ("ham|<b>", "spam")
        ]
        found = Classification(
            accuracy=share(accuracy), precision=share(0.81), recall=share(0.86), f1=share(0.834), classes=classes,
            confusion=[[34, 6], [6, 34]],
        )  # fmt: skip
        final = run.loss.final_validation
        loss = run.loss.model_copy(update={"final_validation": _in_documents(final)})
        return run.model_copy(update={"classification": found, "loss": loss})

    return build


def _in_documents(loss: Quantity) -> Quantity:
    return Quantity(value=loss.value, unit="nat/document", method=loss.method, source=loss.source)


def study_of(*runs: Run) -> Study:
    variants = [
        VariantSummary(name=name, runs=[], skipped=False, reason=None, ratios={}, on_pareto_front=None)
        for name in dict.fromkeys(run.variant for run in runs)
    ]
    return Study(
        schema="efftrain.study/1", study_id="mine", created="today", command="mine", baseline=runs[0].variant,
        runs=[run.run_id for run in runs], variants=variants, checks=[],
    )  # fmt: skip


def terminal(study: Study, runs: list[Run]) -> str:
    out = StringIO()
    render(study, runs, Console(file=out, width=140))
    return out.getvalue()


def test_a_single_classifier_has_its_figures_on_the_bill(classifier):
    run = classifier()
    rows = {row.label: row.text for row in bill(study_of(run), [run])}
    assert rows["accuracy"] == "90.0 % [85.0, 94.0]"
    assert rows["F1, mean over classes"] == "83.4 % [78.4, 87.4]"
    assert list(rows)[-1] == "CO₂e"
    text = terminal(study_of(run), [run])
    assert text.count("90.0 %") == 1
    assert "nat/document" in text


def test_every_page_has_a_table_of_classes(classifier):
    runs = [classifier()]
    page, text = html(study_of(*runs), runs), markdown(study_of(*runs), runs)
    for written in (page, text):
        assert "85.0 % " in written
        assert "mean over classes" in written
        assert "Wilson" in written
        assert "nat/document" in written
    assert "ham|&lt;b&gt;" in page
    assert "ham\\|\\<b>" in text or "ham\\|\\<b\\>" in text


def test_a_comparison_shows_the_mean_over_seeds_within_what_a_share_can_be(classifier):
    runs = [classifier(0, 0.9), classifier(1, 0.99)]
    text = terminal(study_of(*runs), runs)
    assert "accuracy 94.5 % [" in text
    assert ", 100]" in text, "Student's t on two seeds reaches beyond"
    assert "nat/" not in next(line for line in text.splitlines() if "4.43" in line)


def test_models_of_language_have_no_classes(run_record):
    run = run_record()
    for written in (terminal(study_of(run), [run]), markdown(study_of(run), [run]), html(study_of(run), [run])):
        assert "accuracy" not in written
        assert "Classes" not in written


def test_a_classifier_is_not_held_against_the_entropy_of_tokens(classifier):
    check = {check.name: check for check in run_checks(classifier())}["loss_below_unigram_entropy"]
    assert check.status == "skipped"


def test_prometheus_has_accuracy_where_there_is_one(classifier, run_record, tmp_path: Path):
    write_prometheus(tmp_path / "m.prom", [classifier(), run_record(seed=1)])
    lines = [x for x in (tmp_path / "m.prom").read_text().splitlines() if x.startswith("efftrain_accuracy_ratio{")]
    assert len(lines) == 1
    assert lines[0].endswith(" 0.9")
