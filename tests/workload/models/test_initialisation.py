import math

import pytest
import torch
from torch import nn

from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import ModelConfig

CPU = torch.device("cpu")


def config(**changes) -> ModelConfig:
    base = dict(
        d_model=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384, vocab_size=512, seq_len=8
    )
    return ModelConfig(**{**base, **changes})


VARIANCE = {
    "xavier": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
}


@pytest.mark.parametrize("initialisation", VARIANCE)
def test_matrices_have_the_published_variance(initialisation):
    model = build_model(config(initialisation=initialisation, tied_embeddings=False), CPU, seed=3)
    layers = [(m.weight, m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    layers += [(m.weight, m.embedding_dim, m.num_embeddings) for m in model.modules() if isinstance(m, nn.Embedding)]
    assert len(layers) == 2 + 2 * 7
    for weight, fan_in, fan_out in layers:
        variance, count = VARIANCE[initialisation](fan_in, fan_out), weight.numel()
        # The sample variance of n normal draws has a relative standard error of √(2/n), their mean of σ/√n.
        assert weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
        assert abs(weight.mean().item()) < 5 * math.sqrt(variance / count)
    assert all(bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.RMSNorm))


@pytest.mark.parametrize("initialisation", ["scaled", "xavier", "he"])
def test_weights_are_a_function_of_the_seed(initialisation):
    first, again, other = (build_model(config(initialisation=initialisation), CPU, seed=s) for s in (1, 1, 2))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


def test_a_normal_layer_keeps_what_it_is_made_for():
    # Glorot: variance of activations and of gradients, averaged; He: second moment through a rectifier.
    generator = torch.Generator().manual_seed(0)
    model = build_model(config(initialisation="he"), CPU, seed=0)
    x = torch.randn(4096, 128, generator=generator).relu()
    up = model.blocks[0].mlp.up_proj.weight  # pyright: ignore
    ratio = (x @ up.T).square().mean() / (2 * x.square().mean())
    assert ratio.item() == pytest.approx(1.0, rel=0.05)
