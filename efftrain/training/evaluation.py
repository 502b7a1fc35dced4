"""How good a model is on held-out sequences: its cross-entropy, and for classes which it took for which."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from efftrain.training.batch import Batch
from efftrain.training.objectives import cross_entropy_sum
from efftrain.training.precision.autocast import autocast
from efftrain.training.session import Session


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        loss: mean cross-entropy in nat a prediction.
        stderr: its standard error, from the spread between micro-batches; None where there is only one.
        batches: how many micro-batches that is.
        confusion: [true class][predicted class] -> documents; None where no classes are told apart.
    """

    loss: float
    stderr: float | None
    batches: int
    confusion: list[list[int]] | None = None


def evaluate(session: Session, validation: list[Batch]) -> Evaluation:
    """Mean cross-entropy over the validation predictions, and the confusion matrix of a classification.

    Ranks take the micro-batches in turn, and all of them learn the same result: that of one rank that takes them all.
    """
    classes, ranks = session.config.model.num_classes, session.ranks
    losses = torch.zeros(len(validation), dtype=torch.float64, device=session.device)
    confusion = torch.zeros(classes or 0, classes or 0, dtype=torch.int64, device=session.device)
    session.model.eval()
    with torch.no_grad(), autocast(session.config.precision, session.device):
        for first in range(0, len(validation), ranks.size):
            index = first + ranks.rank
            # Sharded ranks call the model equally often: one without a batch of its own repeats what nobody counts.
            batch = validation[min(index, len(validation) - 1)]
            logits = session.forward(batch.inputs, batch.lengths)
            if index >= len(validation):
                continue
            losses[index] = cross_entropy_sum(logits, batch.targets) / batch.predictions
            if classes:
                confusion += _confusion(logits, batch.targets, classes)
    session.model.train()
    losses, confusion = ranks.total(losses), ranks.total(confusion)
    weights = torch.tensor([b.predictions for b in validation], dtype=torch.float64, device=losses.device)
    weights, degrees = weights / weights.sum(), len(losses) - 1
    loss = (losses * weights).sum()
    # The variance of a micro-batch's mean goes with 1 / size, so this is without bias where the last one is smaller.
    variance = (weights * (losses - loss) ** 2).sum().item() / degrees if degrees else None
    return Evaluation(
        loss=loss.item(),
        stderr=None if variance is None else math.sqrt(variance),
        batches=len(losses),
        confusion=confusion.tolist() if classes else None,
    )


def _confusion(logits_bc: Tensor, targets_b: Tensor, classes: int) -> Tensor:
    pairs = targets_b * classes + logits_bc.argmax(dim=-1)
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
