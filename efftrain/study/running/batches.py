"""The sequences of a rank as tensors on its device: the corpus's stateless batches, one call a step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efftrain.training.batch import Batch, Batches
from efftrain.training.config import RunConfig
from efftrain.training.ranks import Alone, Ranks
from efftrain.workload.text.batches.labelled import LabelledRows, labelled_batch, labelled_validation_batches
from efftrain.workload.text.batches.masking import IGNORED, mask_tokens
from efftrain.workload.text.batches.mixture import shortage
from efftrain.workload.text.batches.windows import batch, count_windows, validation_batches
from efftrain.workload.text.corpus import Corpus

Move = Callable[[np.ndarray], Tensor]


def corpus_batches(corpus: Corpus, config: RunConfig, ranks: Ranks | None = None) -> Batches:
    """Batches of a prepared corpus for what the run is to learn; each is a function of step, rank and seed alone.

    Args:
        corpus: prepared for the run's task.
        config: of the run.
        ranks: the processes that share each step's sequences.
    """
    kinds = {"causal": NextTokenBatches, "masked": MaskedBatches, "classification": LabelledBatches}
    return kinds[config.task](corpus, config, ranks or Alone())


def validation_shortage(corpus: Corpus, config: RunConfig) -> str | None:
    """Why a run's validation is smaller than asked for, where a source is too small for its share; None: it is not."""
    if config.task == "classification":
        kind, sizes = "documents", [len(texts.labels) for texts in corpus.labelled("validation")]
    else:
        kind, lookahead = "sequences", 1 if config.task == "causal" else 0
        sizes = [count_windows(held, config.model.seq_len, lookahead) for held in corpus.validation_sources]
    names = [source.name for source in corpus.sources]
    return shortage(names, sizes, corpus.weights, config.eval_batches * config.batch_size, kind=kind)


class _CorpusBatches:
    def __init__(self, corpus: Corpus, config: RunConfig, ranks: Ranks) -> None:
        self._corpus, self._config, self._ranks = corpus, config, ranks
        self._device = torch.device(config.device)
        self._rows = config.batch_size * config.grad_accumulation

    def _step(self, step: int) -> dict[str, Any]:
        """Which of the corpus's rows this rank reads in `step`, counted from 1."""
        return {
            "step": step - 1, "rank": self._ranks.rank, "world_size": self._ranks.size, "seed": self._config.seed,
            "batch_size": self._rows, "seq_len": self._config.model.seq_len, "weights": self._corpus.weights,
        }  # fmt: skip

    def _validation(self) -> dict[str, Any]:
        config = self._config
        return {
            "batches": config.eval_batches, "batch_size": config.batch_size, "seq_len": config.model.seq_len,
            "weights": self._corpus.weights,
        }  # fmt: skip

    def _move(self, rows: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(rows)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor


class NextTokenBatches(_CorpusBatches):
    """Each token predicts the one after it."""

    def train(self, step: int) -> Batch:
        """See `Batches.train`."""
        return self._batch(batch(self._corpus.train_sources, **self._step(step)))

    def validation(self) -> list[Batch]:
        """See `Batches.validation`."""
        return [self._batch(rows) for rows in validation_batches(self._corpus.validation_sources, **self._validation())]

    def _batch(self, rows: np.ndarray) -> Batch:
        tokens = self._move(rows)
        return Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:], per_sequence=tokens.shape[1] - 1)


class MaskedBatches(_CorpusBatches):
    """Hidden tokens are predicted from those on both sides; validation hides the same ones every time."""

    def train(self, step: int) -> Batch:
        """See `Batches.train`."""
        rows = batch(self._corpus.train_sources, **self._step(step), lookahead=0)
        return self._batch(rows, step=step - 1, first_row=self._ranks.rank * self._rows, seed=self._config.seed)

    def validation(self) -> list[Batch]:
        """See `Batches.validation`."""
        found = validation_batches(self._corpus.validation_sources, **self._validation(), lookahead=0)
        return [self._batch(rows, step=0, first_row=first, seed=0) for first, rows in _numbered(found)]

    def _batch(self, rows: np.ndarray, *, step: int, first_row: int, seed: int) -> Batch:
        corpus = self._corpus
        assert corpus.mask_id is not None, "the corpus was prepared for masked tokens"
        inputs, targets = mask_tokens(
            rows, step=step, first_row=first_row, seed=seed, mask_id=corpus.mask_id, vocab_size=corpus.vocab_size,
            end_id=corpus.end_id,
        )  # fmt: skip
        hidden = int((targets[0] != IGNORED).sum())  # alike in every row
        return Batch(inputs=self._move(inputs), targets=self._move(targets), per_sequence=hidden)


class LabelledBatches(_CorpusBatches):
    """Documents, each with its class."""

    def train(self, step: int) -> Batch:
        """See `Batches.train`."""
        return self._batch(labelled_batch(self._corpus.labelled("train"), **self._step(step)))

    def validation(self) -> list[Batch]:
        """See `Batches.validation`."""
        found = labelled_validation_batches(self._corpus.labelled("validation"), **self._validation())
        return [self._batch(rows) for rows in found]

    def _batch(self, rows: LabelledRows) -> Batch:
        tokens, lengths, labels = map(self._move, rows)
        return Batch(inputs=tokens, targets=labels, lengths=lengths, per_sequence=1)


def _numbered(batches: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Each batch with the number of its first row."""
    first = 0
    for rows in batches:
        yield first, rows
        first += len(rows)
