"""What a step minimises: the cross-entropy of whatever a batch asks to be predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.training.batch import Batch
from efftrain.workload.text.batches.masking import IGNORED

Forward = Callable[[Tensor, Tensor | None], Tensor]
"""(token ids [B, T], lengths [B] or None) -> logits [B, T, V], or [B, C] for classes."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over the predictions of one micro-batch, in nat: what is minimised, and the data's cross-entropy in it."""

    objective: Tensor
    data: Tensor


Objective = Callable[[Forward, Batch], Losses]
"""(forward, micro-batch) -> losses."""


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nat, summed over predictions, in float32 or wider.

    Args:
        logits: [..., V].
        targets: [...]; positions of `IGNORED` count nothing.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=IGNORED)


def data_objective(forward: Forward, batch: Batch) -> Losses:
    """The cross-entropy of the next tokens, of masked tokens, or of classes: the batch says which."""
    loss = cross_entropy_sum(forward(batch.inputs, batch.lengths), batch.targets)
    return Losses(objective=loss, data=loss.detach())
