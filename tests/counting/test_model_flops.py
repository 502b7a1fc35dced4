"""Model FLOPs of decoders, encoders, windows and classifiers against 6N + 12·L·H·Q·T, spelled out here."""

import itertools

import pytest
import torch

from efftrain.counting.flops import StepCost, count_step, fake_mode
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import ModelConfig

BATCH, LENGTH = 3, 16
SHAPES = list(itertools.product((True, False), (None, 5, 12), (None, 3), ((4, True), (2, False))))
CPU = torch.device("cpu")


def config(causal=True, window=None, classes=None, form=(2, True), **changes) -> ModelConfig:
    return ModelConfig(
        d_model=32, num_layers=2, num_heads=4, num_kv_heads=form[0], head_dim=8, d_ff=48, vocab_size=80, seq_len=LENGTH,
        causal=causal, window=window, num_classes=classes, tied_embeddings=form[1], **changes,
    )  # fmt: skip


def closed_form(c: ModelConfig) -> int:
    """FLOP of a step: 6 a weight and a token that meet, and attention's own products."""
    tokens = BATCH * LENGTH
    keys = LENGTH if c.window is None else min(LENGTH, c.window if c.causal else 2 * c.window - 1)
    block = 2 * c.d_model * c.head_dim * (c.num_heads + c.num_kv_heads) + 3 * c.d_model * c.d_ff
    head = c.d_model * (c.vocab_size * tokens if c.num_classes is None else c.num_classes * BATCH)
    return 6 * c.num_layers * block * tokens + 6 * head + 12 * c.num_layers * c.num_heads * c.head_dim * keys * tokens


def count(c: ModelConfig, *, padded: bool = False, recompute="none") -> StepCost:
    with fake_mode():
        model = build_model(c, CPU, seed=0)
        apply_recompute(model, recompute)
        tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
        lengths = torch.full((BATCH,), LENGTH) if padded else None

        def step(mark):
            mark("forward")
            loss = model(tokens, lengths).sum()
            mark("backward")
            loss.backward()
            model.zero_grad()

        return count_step(step, model)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "efftrain"])
def test_counted_is_the_closed_form(attention):
    for number, (causal, window, classes, form) in enumerate(SHAPES):
        c = config(causal, window, classes, form, attention=attention)
        assert closed_form(c) == BATCH * LENGTH * c.model_flops_per_token
        assert count(c, padded=number % 3 == 0).model_flops == closed_form(c), c


@pytest.mark.parametrize("attention", ["eager", "sdpa", "efftrain"])
def test_recomputation_and_dropout_change_nothing_in_it(attention):
    for recompute in ("full", "selective"):
        c = config(window=5, attention=attention, dropout=0.0 if attention == "efftrain" else 0.1)
        assert count(c, recompute=recompute).model_flops == closed_form(c)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_saves_the_device_nothing(attention):
    plain, windowed = (count(config(window=w, attention=attention)) for w in (None, 5))
    assert windowed.flops == plain.flops
    assert windowed.model_flops < plain.model_flops


@pytest.mark.parametrize("causal", [True, False])
def test_parameters_are_counted_by_the_closed_form(causal):
    for window, classes, form in itertools.product((None, 5), (None, 3), ((4, True), (2, True), (2, False))):
        c = config(causal, window, classes, form)
        with fake_mode():
            assert sum(p.numel() for p in build_model(c, CPU).parameters()) == c.parameters
