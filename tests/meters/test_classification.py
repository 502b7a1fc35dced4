"""Figures of a confusion matrix against scikit-learn and scipy, and their intervals against simulated truths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from efftrain.meters.assemble import assemble
from efftrain.meters.classification import accuracy_of, classification
from efftrain.record.journal import Journal
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Classification

MACRO = ("precision", "recall", "f1")


def journal_of(*confusions: list[list[int]] | None, names: tuple[str, ...] = ()) -> Journal:
    lines = [
        {"kind": "evaluation", "t": n, "step": n, "tokens": n, "loss": 1.0, "stderr": 0.1, "confusion": confusion}
        for n, confusion in enumerate(confusions, start=1)
    ]
    return Journal(header={"corpus": {"classes": list(names)}}, lines=lines, defects=[])


def found_in(confusion: list[list[int]]) -> Classification:
    found = classification(journal_of(confusion))
    assert found is not None
    return found


@st.composite
def matrices(draw) -> list[list[int]]:
    count = draw(st.integers(2, 6))
    cell = st.one_of(st.just(0), st.integers(0, 12))
    rows = draw(st.lists(st.lists(cell, min_size=count, max_size=count), min_size=count, max_size=count))
    rows[0][0] += 1  # one document at least
    return rows


@settings(deadline=None, max_examples=150)
@given(matrices())
def test_figures_are_those_of_scikit_learn(confusion: list[list[int]]):
    cells = [(i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) for _ in range(n)]
    true, predicted = zip(*cells, strict=True)
    labels = list(range(len(confusion)))
    found = found_in(confusion)
    assert found.accuracy.value == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    for average in ("macro", None):
        theirs = precision_recall_fscore_support(true, predicted, labels=labels, average=average, zero_division=0)  # pyright: ignore[reportArgumentType]
        for name, expected in zip(MACRO, theirs[:3], strict=True):
            if average == "macro":
                assert getattr(found, name).value == pytest.approx(expected, abs=1e-12)
            else:
                assert [getattr(c, name).value for c in found.classes] == pytest.approx(list(expected), abs=1e-12)
    for share in [*(getattr(found, name) for name in ("accuracy", *MACRO)), *(c.f1 for c in found.classes)]:
        assert 0 <= share.low <= share.value <= share.high <= 1
        assert share.low < share.high, "no finite sample is certain"


@pytest.mark.parametrize(("right", "wrong"), [(0, 7), (1, 9), (45, 5), (30, 0), (999, 1)])
def test_shares_have_wilsons_interval(right: int, wrong: int):
    def same(share: Quantity, successes: int, trials: int) -> bool:
        ci = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        return (share.low, share.high) == pytest.approx((ci.low, ci.high), abs=2e-5)  # z = 1.96 and not 1.95996

    found = found_in([[right, wrong], [3, 4]])
    assert same(found.accuracy, right + 4, right + wrong + 7)
    assert same(found.classes[0].recall, right, right + wrong)
    assert same(found.classes[0].precision, right, right + 3)


def test_where_all_classes_have_as_many_documents_the_mean_recall_is_the_accuracy():
    """Its errors are then those of one binomial share, whichever class they fall into, but for the smoothing."""
    found = found_in([[90, 10, 0], [0, 90, 10], [10, 0, 90]])
    assert found.recall.value == pytest.approx(found.accuracy.value)
    assert found.recall.low == pytest.approx(found.accuracy.low, abs=0.001)
    assert found.recall.high == pytest.approx(found.accuracy.high, abs=0.001)


def test_a_class_without_documents_is_0_and_unknown():
    found = found_in([[5, 0, 0], [1, 4, 0], [0, 0, 0]])
    nothing = found.classes[2]
    assert nothing.documents == 0
    for share in (nothing.precision, nothing.recall, nothing.f1):
        assert (share.value, share.low, share.high) == (0.0, 0.0, 1.0)


def test_the_last_evaluation_counts_and_classes_have_names():
    found = classification(journal_of([[1, 0], [0, 1]], [[2, 1], [0, 3]], names=("ham", "spam")))
    assert found is not None
    assert [(c.name, c.documents) for c in found.classes] == [("ham", 3), ("spam", 3)]
    assert found.confusion == [[2, 1], [0, 3]]
    assert found.accuracy.source == "evaluation after step 2"
    assert [c.name for c in found_in([[1, 0], [0, 1]]).classes] == ["0", "1"]


@pytest.mark.parametrize("confusion", [None, [], [[0, 0], [0, 0]]])
def test_where_nothing_was_classified_there_is_nothing(confusion):
    journal = journal_of(confusion)
    assert classification(journal) is None
    assert accuracy_of(journal.lines[0]) is None


def test_a_record_has_accuracies_and_losses_in_their_own_unit(journal, run_lines):
    lines = [{**x, "confusion": [[3, 1], [0, x["step"]]]} if x["kind"] == "evaluation" else x for x in run_lines]
    run = assemble(journal(lines, config={"steps": 20, "task": "classification"}, corpus={"classes": ["a", "b"]}))
    assert [v.accuracy for v in run.loss.validation] == [13 / 14, 23 / 24]
    assert run.loss.final_validation.unit == "nat/document"
    assert run.classification is not None
    assert run.classification.classes[1].recall.value == 1.0
    plain = assemble(journal(run_lines))
    assert (plain.classification, plain.loss.validation[0].accuracy) == (None, None)
    assert plain.loss.final_validation.unit == "nat/token"
    masked = assemble(journal(run_lines, config={"task": "masked"}))
    assert masked.loss.final_validation.unit == "nat/masked token"


TRUTHS = {
    "often wrong": (2, 0.3, 100),
    "good": (2, 0.02, 200),
    "several": (5, 0.1, 200),
    "nearly perfect": (10, 0.003, 1000),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str):
    """Drawn 400 times, 95 % come out as 93 to 97 %; that Wilson's coverage ripples with the share adds 2 %."""
    count, error, documents = TRUTHS[name]
    draw = np.random.default_rng(count)
    rows = [np.insert(error * draw.dirichlet(np.ones(count - 1)), i, 1 - error) for i in range(count)]
    cells = np.stack(rows) / count
    of_class, taken, right = cells.sum(axis=1), cells.sum(axis=0), np.diag(cells)
    truth = {
        "accuracy": right.sum(), "recall": (right / of_class).mean(), "precision": (right / taken).mean(),
        "f1": (2 * right / (of_class + taken)).mean(),
    }  # fmt: skip
    held = dict.fromkeys(truth, 0)
    for _ in range(400):
        found = found_in(draw.multinomial(documents, cells.ravel()).reshape(count, count).tolist())
        for measure, value in truth.items():
            share = getattr(found, measure)
            held[measure] += share.low - 1e-9 <= value <= share.high + 1e-9
    assert all(times >= 0.91 * 400 for times in held.values()), held
    assert all(times <= 0.99 * 400 for times in held.values()), held
