"""Which parameters decay."""

import dataclasses

import pytest
import torch
from torch import nn

from efftrain.training.config import OptimizerConfig
from efftrain.training.optimizer import build_optimizer
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import ModelConfig

CPU = torch.device("cpu")
TINY = ModelConfig(
    d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip
MATRICES = {f"blocks.0.attention.{x}_proj.weight" for x in "qkvo"} | {
    f"blocks.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")
}


def decaying(model: nn.Module, **settings) -> set[str]:
    """Names of parameters that shrink in a step whose gradients are all zero: by 1 − learning rate · weight decay."""
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.5, **settings))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    shrunk = set()
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter, before[name]):
            torch.testing.assert_close(parameter.detach(), before[name] * 0.75)
            shrunk.add(name)
    return shrunk


@pytest.mark.parametrize("name", ["torch", "efftrain"])
@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, set()),  # the tied head is the embedding
        ({"tied_embeddings": False}, {"lm_head.weight"}),
        ({"num_classes": 3}, {"classifier.weight"}),
        ({"num_classes": 3, "causal": False, "tied_embeddings": False}, {"classifier.weight"}),
    ],
)
def test_matrices_decay_and_norms_and_embeddings_do_not(name, changes, heads):
    model = build_model(dataclasses.replace(TINY, **changes), CPU, seed=0)
    assert decaying(model, name=name) == MATRICES | heads


def test_biases_do_not_decay_and_frozen_weights_stay():
    # as with LoRA: a frozen matrix beside two small ones that are trained
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(6, 6).requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6)
            self.norm = nn.LayerNorm(6)

    torch.manual_seed(0)
    model = Adapted()
    assert decaying(model) == {"down.weight", "up.weight"}
    held = {id(p) for group in build_optimizer(model, OptimizerConfig()).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
