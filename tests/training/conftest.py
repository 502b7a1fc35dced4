"""A model small enough to be trained in a test, and batches of random tokens that are a function of the step."""

import pytest
import torch

from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.config import OptimizerConfig, RunConfig
from efftrain.workload.models.presets import ModelConfig

TINY = ModelConfig(
    d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip


class RandomBatches:
    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def train(self, step: int) -> Batch:
        rows = self.config.batch_size * self.config.grad_accumulation
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(32, (rows, self.config.model.seq_len + 1), generator=generator)
        return next_token_batch(tokens)

    def validation(self) -> list[Batch]:
        return [self.train(10_000 + index) for index in range(3)]


@pytest.fixture
def tiny_config():
    def make(**changes: object) -> RunConfig:
        base = {"model": TINY, "steps": 6, "batch_size": 4, "eval_every": 3, "optimizer": OptimizerConfig()}
        return RunConfig(**{**base, **changes})  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def random_batches():
    return RandomBatches
