"""How well classifiers tell classes apart: a line and a table for each variant that was trained to.

Shares are percentages; precision, recall and F1 of all classes together are means over classes (macro).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from efftrain.comparison.statistics import mean_of
from efftrain.comparison.verdicts import COUNTED
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Classification, Run
from efftrain.report.format import percent
from efftrain.report.overview import VariantView

MEASURES = ("accuracy", "precision", "recall", "f1")
WORDS = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
METHOD = (
    "Wilson's interval; for means over classes at the effective number of documents, for documents of the validation "
    "set as draws from others like them"
)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class, or all of them, in words."""

    name: str
    documents: int
    precision: str
    recall: str
    f1: str


@dataclass(frozen=True, slots=True)
class ClassificationView:
    """What is shown of one variant.

    Attributes:
        variant: its name.
        line: means over its runs, in one line: `accuracy 91.3 % [88.1, 93.7], …`.
        run: the run of the table, its first.
        rows: a row a class, and one for their mean.
    """

    variant: str
    line: str
    run: str
    rows: list[ClassRow]


def classification_views(variants: Sequence[VariantView]) -> list[ClassificationView]:
    """One view for each variant that has a finished run of a classifier, or the only run whatever its end."""
    alone = sum(len(variant.runs) for variant in variants) == 1
    views = (_view(variant.name, [r for r in variant.runs if alone or r.status in COUNTED]) for variant in variants)
    return [view for view in views if view is not None]


def measures(found: Classification) -> dict[str, Quantity]:
    """The figures of all classes together, by their names in reports."""
    macro = {name: getattr(found, name) for name in MEASURES}
    return {WORDS[name] + ("" if name == "accuracy" else ", mean over classes"): q for name, q in macro.items()}


def _view(variant: str, runs: Sequence[Run]) -> ClassificationView | None:
    known = [(run.run_id, run.classification) for run in runs if run.classification]
    if not known:
        return None
    run, first = known[0]
    means = {WORDS[name]: _mean([getattr(found, name) for _, found in known]) for name in MEASURES}
    return ClassificationView(
        variant=variant,
        line=", ".join(f"{name} {percent(mean, interval=True)}" for name, mean in means.items()),
        run=run,
        rows=[
            *(_row(each.name, each.documents, each.precision, each.recall, each.f1) for each in first.classes),
            _row(
                "mean over classes", sum(each.documents for each in first.classes), first.precision, first.recall,
                first.f1,
            ),
        ],
    )  # fmt: skip


def _mean(shares: Sequence[Quantity]) -> Quantity:
    """The mean over runs, whose interval does not leave what a share can be."""
    mean = mean_of(shares)
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (mean.low, mean.high))
    return replace(mean, low=low, high=high)


def _row(name: str, documents: int, precision: Quantity, recall: Quantity, f1: Quantity) -> ClassRow:
    return ClassRow(name, documents, *(percent(share, interval=True) for share in (precision, recall, f1)))
