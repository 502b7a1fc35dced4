"""AdamW over a model's parameters, with weight decay where it belongs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import efftrain_kernels
from efftrain.training.config import OptimizerConfig, OptimizerName

OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "torch": torch.optim.AdamW,
    "efftrain": efftrain_kernels.AdamW,
}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in two groups: weight matrices decay; norms, biases and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    build = OPTIMIZERS[config.name]
    return build([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, eps=config.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
