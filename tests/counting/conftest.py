"""A training step as the loop takes it: micro-batches, clipping, AdamW, gradients set to None."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.counting.flops import PhaseMark
from efftrain.counting.memory import Held
from efftrain.training.config import Recompute
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.presets import ModelConfig
from efftrain.workload.models.transformer import Transformer
from efftrain_kernels import AdamW

BATCH = 2


@dataclass
class Training:
    config: ModelConfig
    micro_batches: int = 1
    bf16: bool = False
    recompute: Recompute = "none"
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW
    optimizer_settings: dict[str, Any] = field(default_factory=lambda: {"foreach": True})

    def __post_init__(self) -> None:
        self.model = Transformer(self.config)
        apply_recompute(self.model, self.recompute)
        self.optimizer = self.optimizer_class(self.model.parameters(), **self.optimizer_settings)
        self.tokens_bt = torch.zeros(BATCH, self.config.seq_len + 1, dtype=torch.int64)

    @property
    def tokens(self) -> int:
        return self.micro_batches * BATCH * self.config.seq_len

    @property
    def held(self) -> list[Held]:
        return [self.model, self.optimizer, self.tokens_bt]

    def step(self, mark: PhaseMark) -> None:
        for _ in range(self.micro_batches):
            mark("data")
            inputs, targets = self.tokens_bt[:, :-1], self.tokens_bt[:, 1:]
            mark("forward")
            loss = self._loss(inputs, targets)
            mark("backward")
            loss.backward()
        mark("optimizer")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()) / self.micro_batches


class Lines:
    """A recorder that keeps what it is told about costs and memory."""

    def __init__(self) -> None:
        self.costs: list[dict[str, Any]] = []
        self.memories: list[dict[str, Any]] = []

    def cost(self, **fields: Any) -> None:
        self.costs.append(fields)

    def memory(self, **fields: Any) -> None:
        self.memories.append(fields)


SMALL: dict[str, Any] = {
    "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 80,
    "seq_len": 16,
}  # fmt: skip


@pytest.fixture(scope="session")
def config() -> Callable[..., ModelConfig]:
    return lambda **changes: ModelConfig(**{**SMALL, **changes})


@pytest.fixture(scope="session")
def training(config: Callable[..., ModelConfig]) -> Callable[..., Training]:
    """Build a training of the small model; keywords of `Training`, and `model={...}` for its configuration."""

    def build(*, model: dict[str, Any] | None = None, efftrain_adamw: bool = False, **settings: Any) -> Training:
        if efftrain_adamw:
            settings |= {"optimizer_class": AdamW, "optimizer_settings": {}}
        return Training(config(**model or {}), **settings)

    return build


@pytest.fixture
def lines() -> Lines:
    return Lines()
