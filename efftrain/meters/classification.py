"""How well a classifier tells classes apart, from the confusion matrix of its last evaluation.

Documents of the validation set are draws from a population of such, so that every share of them is binomial: accuracy
among all, recall among those of a class, precision among those taken for it. Their intervals are Wilson's score
intervals (JASA 22, 1927), which hold at shares of 0 and 1 and for few documents (Brown, Cai and DasGupta, 2001). F1 is
2 J / (1 + J), where J is the share of true positives among all documents of a class or taken for it; it rises with J,
so the ends of J's interval give those of F1's.

Means over classes (macro) are no binomial shares, but behave like one of fewer documents: Wilson's interval is taken at
the effective sample size, at which a binomial share has the variance that the mean has by the delta method (Korn and
Graubard, Survey Methodology 24, 1998). For that variance, and nothing else, half a document that is right and half a
one that is wrong are added to each class, so that where no error was seen the next is expected to be anyhow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity
from efftrain.record.schema import Classification, ClassScore

Floats = NDArray[np.float64]

BOUNDARY = "validation split"


@dataclass(frozen=True, slots=True)
class _Shares:
    """Shares, with the ends of their 95 % intervals; [K], one for each class."""

    value: Floats
    low: Floats
    high: Floats

    def quantity(self, index: int, source: str) -> Quantity:
        value, low, high = (float(x[index]) for x in (self.value, self.low, self.high))
        return Quantity(
            value=value, unit="1", low=low, high=high, u_random=(high - low) / (2 * COVERAGE_FACTOR), u_systematic=0.0,
            method="measured", source=source, boundary=BOUNDARY,
        )  # fmt: skip


def accuracy_of(evaluation: Line) -> float | None:
    """Share of documents whose class was found; None where no classes were told apart."""
    confusion = evaluation.get("confusion") or []
    documents = sum(map(sum, confusion))
    return sum(row[i] for i, row in enumerate(confusion)) / documents if documents else None


def classification(journal: Journal) -> Classification | None:
    """The figures of the last evaluation; None where no classes were told apart.

    A class that has no document, or is never predicted, has a recall, precision or F1 of 0, as scikit-learn's
    zero_division=0, whose interval says that nothing is known.
    """
    evaluations = [line for line in journal.of("evaluation") if accuracy_of(line) is not None]
    if not evaluations:
        return None
    confusion = np.array(evaluations[-1]["confusion"])
    source = f"evaluation after step {evaluations[-1]['step']}"
    right, of_class, taken = _marginals(confusion)
    recall, precision = _wilson(right, of_class), _wilson(right, taken)
    f1 = _f1(_wilson(right, of_class + taken - right))
    smoothed = _smoothed(confusion)

    def macro(shares: _Shares, mean: float, variance: float) -> Quantity:
        documents = mean * (1 - mean) / variance if variance else float(of_class.sum())
        interval = _wilson(shares.value.mean(keepdims=True) * documents, np.array([documents]))
        return interval.quantity(0, f"{source}: mean over classes")

    return Classification(
        accuracy=_wilson(right.sum(keepdims=True), of_class.sum(keepdims=True)).quantity(0, source),
        precision=macro(precision, *_mean_of_shares(smoothed.T)),
        recall=macro(recall, *_mean_of_shares(smoothed)),
        f1=macro(f1, *_mean_of_f1(smoothed)),
        classes=[
            ClassScore(
                name=name, documents=int(of_class[i]), precision=precision.quantity(i, source),
                recall=recall.quantity(i, source), f1=f1.quantity(i, source),
            )
            for i, name in enumerate(_names(journal.header, len(confusion)))
        ],
        confusion=confusion.tolist(),
    )  # fmt: skip


def _marginals(confusion: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Documents [K] that are rightly taken for each class, are of it, and are taken for it."""
    counts = confusion.astype(np.float64)
    return np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)


def _wilson(successes: Floats, trials: Floats) -> _Shares:
    """Shares with Wilson's 95 % interval; without trials a share of 0 in [0, 1]. [K] each."""
    none = trials <= 0
    n, z2 = np.where(none, 1.0, trials), COVERAGE_FACTOR**2
    share = np.where(none, 0.0, successes / n)
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = COVERAGE_FACTOR / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    # The formula meets 0 and 1 at the share's own ends, but for rounding.
    low = np.where(none | (share <= 0), 0.0, np.minimum(centre - half, share))
    high = np.where(none | (share >= 1), 1.0, np.maximum(centre + half, share))
    return _Shares(share, low, high)


def _f1(jaccard: _Shares) -> _Shares:
    return _Shares(*(2 * end / (1 + end) for end in (jaccard.value, jaccard.low, jaccard.high)))


def _smoothed(confusion: NDArray[Any]) -> Floats:
    """Half a document more in each class that is right, and half a one that is wrong, spread over the others."""
    count = len(confusion)
    return confusion + np.where(np.eye(count, dtype=bool), 0.5, 0.5 / max(1, count - 1))


def _mean_of_shares(confusion: Floats) -> tuple[float, float]:
    """Mean over rows of the diagonal's share in the row, and its variance: rows are draws of their own."""
    right, total, _ = _marginals(confusion)
    share = right / total
    return float(share.mean()), float((share * (1 - share) / total).sum()) / len(share) ** 2


def _mean_of_f1(confusion: Floats) -> tuple[float, float]:
    """Mean over classes of F1, and its variance by the delta method under multinomial sampling.

    With s_i documents of class i plus those taken for it, F1_i = 2 c_ii / s_i. A document more that is rightly of
    class i moves the sum over classes by (2 − 2 F1_i) / s_i, one of class i that is taken for j by
    −F1_i / s_i − F1_j / s_j. These sum to 0 over all documents, so their squares sum to the variance.
    """
    right, of_class, taken = _marginals(confusion)
    s = of_class + taken
    f1 = 2 * right / s
    moves = -np.add.outer(f1 / s, f1 / s)
    np.fill_diagonal(moves, (2 - 2 * f1) / s)
    return float(f1.mean()), float((confusion * moves**2).sum()) / len(f1) ** 2


def _names(header: Line, count: int) -> Sequence[str]:
    """What the corpus calls its classes, or their numbers."""
    names = header["corpus"].get("classes") or ()
    return [str(name) for name in names] if len(names) == count else [str(number) for number in range(count)]
