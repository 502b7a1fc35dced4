"""Windows, padding and bidirectional order, against attention written out by hand in float64."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from efftrain.counting.flops import fake_mode
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.attention import ATTENTION, attention_layout, band_mask
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import ModelConfig
from efftrain.workload.models.transformer import Transformer

LENGTH = 12
SMALL = ModelConfig(
    d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=40, vocab_size=50, seq_len=LENGTH,
)  # fmt: skip
ENCODER = replace(SMALL, causal=False)
LENGTHS = torch.tensor([12, 7, 1])
WINDOWS = (None, 1, 4, 12)
CASES = list(itertools.product(ATTENTION, (True, False), WINDOWS, (True, False)))


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    model = build_model(config, torch.device("cpu"), seed=seed).double()
    assert isinstance(model, Transformer)
    for parameter in model.parameters():  # initial weights make attention nearly uniform; these do not
        parameter.data *= 2
    return model


def tokens(batch: int = 3, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def sees(query: int, key: int, *, causal: bool, window: int | None, length: int) -> bool:
    if key >= length or (causal and key > query):
        return False
    return window is None or abs(query - key) < window


def by_hand(q, k, v, lengths, *, causal, window):
    """Row by row: the softmax over the keys that are seen, of the values at them."""
    out = torch.full_like(q, math.nan)
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        group = h * k.shape[1] // q.shape[1]
        for i in range(int(lengths[b])):
            keys = [j for j in range(LENGTH) if sees(i, j, causal=causal, window=window, length=int(lengths[b]))]
            scores = torch.stack([q[b, h, i] @ k[b, group, j] for j in keys]) / math.sqrt(q.shape[-1])
            out[b, h, i] = scores.softmax(0) @ v[b, group, keys]
    return out


def attend(attention, q, k, v, lengths, *, causal, window):
    config = replace(SMALL, attention=attention, causal=causal, window=window)
    layout = attention_layout(config, band_mask(config), LENGTH, lengths)
    window = window if window is not None and window < LENGTH else None
    return ATTENTION[attention](q, k, v, layout, causal=causal, window=window, dropout=0.0)


@pytest.mark.parametrize(("attention", "causal", "window", "padded"), CASES)
def test_a_query_gathers_what_it_sees(attention, causal, window, padded):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, heads, LENGTH, 6, dtype=torch.float64, generator=generator) for heads in (4, 2, 2))
    lengths = LENGTHS if padded else torch.full((3,), LENGTH)
    truth = by_hand(q, k, v, lengths, causal=causal, window=window)
    real = ~truth.isnan()
    out = attend(attention, q, k, v, lengths if padded else None, causal=causal, window=window)
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out[real], truth[real], rtol=1e-12, atol=1e-14)
    # float32 rounds the inputs, the scores and the sum: its own error, measured on eager attention, and as much again.
    singles = [x.float() for x in (q, k, v)]
    eager = attend("eager", *singles, lengths if padded else None, causal=causal, window=window)
    tolerance = 2 * (eager[real].double() - truth[real]).abs().max().item() + torch.finfo(torch.float32).eps
    single = attend(attention, *singles, lengths if padded else None, causal=causal, window=window)
    torch.testing.assert_close(single[real].double(), truth[real], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("causal", "window", "classes"), list(itertools.product((True, False), (None, 4), (None, 3))))
def test_implementations_agree_on_logits_and_gradients(causal, window, classes):
    config = replace(SMALL, causal=causal, window=window, num_classes=classes)
    found = []
    for attention in ATTENTION:
        model = build(replace(config, attention=attention))
        logits = model(tokens(), LENGTHS)
        if classes is None:
            logits = torch.cat([row[: int(n)] for row, n in zip(logits, LENGTHS, strict=True)])
        found.append((logits, torch.autograd.grad(logits.square().mean(), list(model.parameters()))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(attention, causal, window):
    for classes in (None, 3):
        model = build(replace(SMALL, attention=attention, causal=causal, window=window, num_classes=classes))
        first, second = tokens(), tokens()
        for row, length in enumerate(LENGTHS.tolist()):
            second[row, length:] = (second[row, length:] + 1) % 50
        before, after = model(first, LENGTHS), model(second, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            real = slice(length) if classes is None else slice(None)
            assert torch.equal(before[row, real], after[row, real])


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("causal", [True, False])
def test_classes_of_a_padded_batch_are_those_of_each_sequence_alone(attention, causal):
    model = build(replace(SMALL, attention=attention, causal=causal, num_classes=3, window=5))
    together = model(tokens(), LENGTHS)
    assert together.shape == (3, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(tokens()[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(tokens(), torch.full((3,), LENGTH)), model(tokens()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("causal", [True, False])
def test_a_token_is_felt_in_its_window_alone(attention, causal):
    model = build(replace(SMALL, attention=attention, causal=causal, window=3, num_layers=1))
    first, second = tokens(), tokens()
    second[:, 6] = (second[:, 6] + 1) % 50
    changed = (model(first) != model(second)).any(dim=-1)
    seen = torch.tensor([sees(i, 6, causal=causal, window=3, length=LENGTH) for i in range(LENGTH)])
    assert torch.equal(changed, seen.expand(3, LENGTH))


@pytest.mark.parametrize("attention", ATTENTION)
def test_an_encoder_sees_what_comes_later(attention):
    model = build(replace(ENCODER, attention=attention))
    changed = tokens()
    changed[:, -1] = (changed[:, -1] + 1) % 50
    assert bool((model(tokens()) != model(changed)).any(dim=-1).all())


def test_an_encoder_without_positions_does_not_know_the_order():
    model = build(replace(ENCODER, rope_theta=1.0))
    model.cos_tq.fill_(1.0)  # pyright: ignore
    model.sin_tq.fill_(0.0)  # pyright: ignore
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens()[:, order]), model(tokens())[:, order], rtol=1e-10, atol=1e-12)


def test_a_window_that_holds_all_is_the_plain_call():
    wide = build(replace(SMALL, window=LENGTH))
    assert wide.band_tt is None
    assert torch.equal(wide(tokens()), build(SMALL)(tokens()))
    short = build(replace(SMALL, window=8))
    assert torch.equal(short(tokens(length=8)), build(SMALL)(tokens(length=8)))


@pytest.mark.parametrize("causal", [True, False])
def test_dropout_acts_in_training_alone_and_in_both_places(causal):
    model = build(replace(SMALL, dropout=0.5, causal=causal, window=4))
    still = build(replace(SMALL, causal=causal, window=4))
    torch.manual_seed(0)
    assert not torch.equal(model(tokens(), LENGTHS), model(tokens(), LENGTHS))
    model.eval()
    assert torch.equal(model(tokens(), LENGTHS), still(tokens(), LENGTHS))
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 4, LENGTH, 6, dtype=torch.float64, generator=generator) for _ in range(3))
    for attention in ("eager", "sdpa"):
        plain = ATTENTION[attention](q, k, v, None, causal=causal, window=None, dropout=0.0)
        draws = [ATTENTION[attention](q, k, v, None, causal=causal, window=None, dropout=0.3) for _ in range(4000)]
        # Weights are dropped and the others scaled by 1 / 0.7, so that the mean stays: 5 standard errors of it.
        stacked = torch.stack(draws)
        error = stacked.std(dim=0) / math.sqrt(len(draws))
        assert bool(((stacked.mean(dim=0) - plain).abs() <= 5 * error + 1e-12).all())
        assert bool((error > 0).any())


def test_what_the_kernel_lacks_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match=r"attention 'efftrain' has no dropout, and 0\.1 is asked for: use 'sdpa'"):
        replace(SMALL, attention="efftrain", dropout=0.1)


@pytest.mark.parametrize("attention", ATTENTION)
def test_layouts_are_made_of_fake_tensors_too(attention):
    config = replace(ENCODER, attention=attention, window=4, num_classes=2)
    with fake_mode():
        model = build_model(config, torch.device("cpu"), seed=0)
        assert model(torch.zeros(3, LENGTH, dtype=torch.int64), torch.full((3,), 5)).shape == (3, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # what torch.compile imports
@pytest.mark.parametrize(("attention", "recompute"), [("sdpa", "selective"), ("efftrain", "none")])
def test_compiled_models_are_the_same(attention, recompute):
    model = build(replace(ENCODER, attention=attention, window=4, num_classes=2))
    apply_recompute(model, recompute)

    def logits_and_gradients(forward, lengths):
        logits = forward(tokens(), lengths)
        return logits, torch.autograd.grad(logits.square().mean(), list(model.parameters()))

    compiled = torch.compile(model)
    for lengths in (LENGTHS, None):
        torch.testing.assert_close(
            logits_and_gradients(compiled, lengths), logits_and_gradients(model, lengths), rtol=1e-9, atol=1e-12
        )
