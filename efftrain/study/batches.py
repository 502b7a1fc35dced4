"""The sequences of a run as tensors on its device: the corpus's stateless batches, one call a step."""

import torch
from torch import Tensor

from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.config import RunConfig
from efftrain.workload.text.corpus import Corpus
from efftrain.workload.text.windows import batch, validation_batches


class CorpusBatches:
    """Batches of a prepared corpus; each is a function of the step and the seed alone."""

    def __init__(self, corpus: Corpus, config: RunConfig) -> None:
        self._config = config
        self._train, self._validation = corpus.train, corpus.validation
        self._device = torch.device(config.device)

    def train(self, step: int) -> Batch:
        """The sequences of all micro-batches of `step`, counted from 1."""
        config = self._config
        windows = batch(
            self._train, step=step - 1, rank=0, world_size=1, seed=config.seed,
            batch_size=config.batch_size * config.grad_accumulation, seq_len=config.model.seq_len,
        )  # fmt: skip
        return next_token_batch(self._move(torch.from_numpy(windows)))

    def validation(self) -> list[Batch]:
        """The fixed validation micro-batches, alike for every run of every seed."""
        config = self._config
        found = validation_batches(
            self._validation, batches=config.eval_batches, batch_size=config.batch_size,
            seq_len=config.model.seq_len,
        )  # fmt: skip
        return [next_token_batch(self._move(torch.from_numpy(windows))) for windows in found]

    def _move(self, tokens: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tokens.pin_memory().to(self._device, non_blocking=True)
        return tokens
