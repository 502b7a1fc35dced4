"""Recomputation gives the gradients that were to be had without it, and keeps what it says."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import ModelConfig
from efftrain.workload.models.transformer import Transformer

TINY = ModelConfig(
    d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip
CASES = list(itertools.product(("eager", "sdpa", "efftrain"), (True, False), (None, 3)))


def tokens() -> torch.Tensor:
    return torch.randint(32, (3, 8), generator=torch.Generator().manual_seed(0))


def step(config: ModelConfig, recompute) -> tuple[list[torch.Tensor], int]:
    """Gradients, and how often the first block's attention was computed."""
    model = build_model(config, torch.device("cpu"), seed=0)
    assert isinstance(model, Transformer)
    apply_recompute(model, recompute)
    calls: list[object] = []
    model.get_submodule("blocks.0.attention").register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    logits = model(tokens(), None if config.causal else torch.tensor([8, 5, 1]))
    F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None], len(calls)


@pytest.mark.parametrize(("attention", "causal", "window"), CASES)
def test_gradients_are_the_same_bit_for_bit(attention, causal, window):
    config = dataclasses.replace(TINY, attention=attention, causal=causal, window=window)
    if attention != "efftrain":
        config = dataclasses.replace(config, dropout=0.2)
    plain, once = step(config, "none")
    assert once == 1
    for recompute in ("full", "selective"):
        again, twice = step(config, recompute)
        assert twice == 2
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def saved_bytes(recompute) -> int:
    model = build_model(dataclasses.replace(TINY, causal=False), torch.device("cpu"), seed=0)
    apply_recompute(model, recompute)
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(tokens())
    return sum(kept.values())


def test_less_is_kept():
    assert saved_bytes("full") < saved_bytes("none")
