"""AdamW over a model's parameters, with weight decay where it belongs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import efftrain_kernels
from efftrain.training.config import OptimizerConfig, OptimizerName, Precision
from efftrain.training.precision.master_weights import MasterWeightsAdamW

OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "torch": torch.optim.AdamW,
    "efftrain": efftrain_kernels.AdamW,
}

WITH_MASTER_WEIGHTS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "torch": MasterWeightsAdamW,
    "efftrain": partial(efftrain_kernels.AdamW, master_weights="float32"),
}
"""For weights below float32: `pure-bf16`."""


def build_optimizer(model: nn.Module, config: OptimizerConfig, precision: Precision = "fp32") -> torch.optim.Optimizer:
    """AdamW in two groups: weight matrices decay; norms, biases and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    build = (WITH_MASTER_WEIGHTS if precision == "pure-bf16" else OPTIMIZERS)[config.name]
    return build([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, eps=config.eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
