"""Simulated validations whose true loss is a closed form: the interval has to hold it as often as it says."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from scipy.stats import t as student

from efftrain.training.batch import Batch
from efftrain.training.evaluation import Evaluation, evaluate
from efftrain.training.ranks import Alone
from efftrain.workload.text.batches.mixture import spread

MEANS, DEVIATIONS = np.array([2.0, 4.0]), np.array([0.3, 0.5])
"""Losses in nat of documents of two sources; the truth of a mixture is the sum of share times mean."""

TRIALS = 1000


def _session(losses: list[torch.Tensor]) -> Any:
    """A model that has a given loss for each document, whose source and number are its tokens.

    Between two classes of which the first is right, ln(1 + exp(z)) is the loss at logits 0 and z.
    """

    def forward(inputs: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        loss = torch.stack([losses[source][item] for source, item in inputs.tolist()])
        return torch.stack([torch.zeros_like(loss), torch.log(torch.expm1(loss))], dim=1)

    config = SimpleNamespace(model=SimpleNamespace(num_classes=2), precision="fp32")
    model = SimpleNamespace(eval=lambda: None, train=lambda: None)
    return SimpleNamespace(config=config, ranks=Alone(), device=torch.device("cpu"), model=model, forward=forward)


def _validate(losses: list[torch.Tensor], weights: tuple[float, ...], count: int, batch_size: int) -> Evaluation:
    pairs = np.stack(spread([len(mine) for mine in losses], weights, count), axis=1)
    batches = [
        Batch(inputs=chunk, targets=torch.zeros(len(chunk), dtype=torch.int64), per_sequence=1)
        for chunk in torch.from_numpy(pairs).split(batch_size)
    ]
    return evaluate(_session(losses), batches)


def _coverage(
    sizes: tuple[int, int], weights: tuple[float, float], count: int, batch_size: int, means: np.ndarray = MEANS
) -> int:
    """In how many of TRIALS draws of documents the 95 % interval holds the true loss of the mixture."""
    generator, truth, held = np.random.default_rng(7), float(np.dot(weights, means)), 0
    for _ in range(TRIALS):
        losses = [
            torch.from_numpy(generator.normal(mean, deviation, size))
            for mean, deviation, size in zip(means, DEVIATIONS, sizes, strict=True)
        ]
        found = _validate(losses, weights, count, batch_size)
        assert found.stderr is not None
        held += abs(found.loss - truth) <= student.ppf(0.975, found.batches - 1) * found.stderr
    return int(held)


FEWEST, MOST = (int(end) for end in binom.interval(0.999, TRIALS, 0.95))


@pytest.mark.parametrize(("sizes", "count", "batch_size"), [((60, 60), 24, 4), ((60, 60), 12, 4), ((60, 6), 12, 6)])
def test_the_interval_holds_the_truth_in_95_of_100_where_every_batch_is_the_mixture(
    sizes: tuple[int, int], count: int, batch_size: int
) -> None:
    assert FEWEST <= _coverage(sizes, (0.5, 0.5), count, batch_size) <= MOST


@pytest.mark.parametrize(
    ("sizes", "weights", "count", "batch_size"),
    [
        ((60, 6), (0.5, 0.5), 24, 4),  # half of its share
        ((60, 3), (0.5, 0.5), 24, 1),  # repeated, each document would fill several batches
        ((60, 3), (0.8, 0.2), 40, 4),
        ((60, 1), (0.9, 0.1), 40, 2),
    ],
)
def test_a_source_too_small_for_its_share_never_makes_the_interval_too_narrow(
    sizes: tuple[int, int], weights: tuple[float, float], count: int, batch_size: int
) -> None:
    alike = np.array([2.0, 2.0])
    assert FEWEST <= _coverage(sizes, weights, count, batch_size, means=alike) <= MOST
    # Where sources are not alike, batches that differ in their mixture make the interval wider than it has to be.
    assert _coverage(sizes, weights, count, batch_size) >= FEWEST


def test_a_smaller_last_batch_makes_no_bias() -> None:
    # Documents of one kind: the variance of a mean of 9 is a ninth of theirs, in batches of 4, 4 and 1 as in one.
    generator, deviation = np.random.default_rng(3), 0.4
    draws = [[torch.from_numpy(generator.normal(3.0, deviation, 9))] for _ in range(TRIALS)]
    found = [_validate(losses, (1.0,), 9, 4) for losses in draws]
    assert {e.batches for e in found} == {3}
    variances = np.array([(e.stderr or 0.0) ** 2 for e in found])
    # A variance from two degrees of freedom has a standard deviation of its own value.
    assert variances.mean() == pytest.approx(deviation**2 / 9, rel=4 / math.sqrt(TRIALS))


def test_one_batch_claims_no_error() -> None:
    found = _validate([torch.tensor([1.0, 2.0])], (1.0,), 2, 4)
    assert (found.stderr, found.batches) == (None, 1)
    assert found.loss == pytest.approx(1.5)
