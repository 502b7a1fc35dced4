"""One step's sequences on the device, and what is to be predicted in them."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences of equal length.

    Attributes:
        inputs: token ids [B, T] int64.
        targets: [B, T] int64: the token to predict at each position, or `IGNORED`; for classification [B], the classes.
        lengths: [B] int64: tokens of each sequence; what follows is padding. None: all are whole.
        per_sequence: predictions in each sequence, alike for all, so that nobody must count them on the device.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    per_sequence: int

    @property
    def predictions(self) -> int:
        """Predictions in the whole batch: what a sum of losses is divided by."""
        return self.per_sequence * self.inputs.shape[0]

    def chunk(self, parts: int) -> "list[Batch]":
        """The batch in up to `parts` micro-batches of equal size."""
        inputs, targets = self.inputs.chunk(parts), self.targets.chunk(parts)
        lengths = self.lengths.chunk(parts) if self.lengths is not None else [None] * len(inputs)
        return [
            Batch(inputs=i, targets=t, lengths=n, per_sequence=self.per_sequence)
            for i, t, n in zip(inputs, targets, lengths, strict=True)
        ]


def next_token_batch(tokens: Tensor) -> Batch:
    """Token ids [B, T + 1] as a batch in which each of the first T predicts the one after it."""
    return Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:], per_sequence=tokens.shape[1] - 1)


class Batches(Protocol):
    """Where a rank's sequences come from; a function of the step, without state."""

    def train(self, step: int) -> Batch:
        """The sequences of all micro-batches of `step`, counted from 1."""
        ...

    def validation(self) -> list[Batch]:
        """The fixed validation micro-batches, alike for all ranks of all runs."""
        ...
