import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from efftrain.workload.models.attention import ATTENTION
from efftrain.workload.models.initialisation import initialise
from efftrain.workload.models.presets import PRESETS, ModelConfig
from efftrain.workload.models.transformer import Transformer, rotary_tables, rotate

SMALL = ModelConfig(
    d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=40, vocab_size=50, seq_len=16,
)  # fmt: skip


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
    model = Transformer(config)
    initialise(model, seed)
    return model.to(dtype)


def tokens(batch=3, length=16, seed=0):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(config, dtype):
    model = build(config, dtype=dtype)
    for parameter in model.parameters():  # initial weights make attention nearly uniform; these do not
        parameter.data *= 2
    logits = model(tokens())
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    return logits, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("attention", [name for name in ATTENTION if name != "eager"])
def test_attention_implementations_agree(attention, kv_heads):
    config = replace(SMALL, num_kv_heads=kv_heads)
    eager = loss_and_gradients(replace(config, attention="eager"), torch.float64)
    other = loss_and_gradients(replace(config, attention=attention), torch.float64)
    torch.testing.assert_close(other, eager, rtol=1e-10, atol=1e-12)
    small = loss_and_gradients(replace(config, attention=attention), torch.float32)
    torch.testing.assert_close(small[0].double(), eager[0], rtol=1e-3, atol=1e-4)


def test_grouped_heads_are_repeated_heads():
    # A model whose key and value heads are copies of each other's is the one with fewer heads.
    few, many = build(replace(SMALL, num_kv_heads=2)), build(replace(SMALL, num_kv_heads=4))
    weights = few.state_dict()
    for name, weight in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weight.unflatten(0, (2, 6)).repeat_interleave(2, dim=0).flatten(0, 1)
    many.load_state_dict(weights)
    torch.testing.assert_close(many(tokens()), few(tokens()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_later_token_changes_nothing_before_it(attention):
    model = build(replace(SMALL, attention=attention))
    first, second = tokens(), tokens()
    second[:, 9] = (second[:, 9] + 1) % 50
    before, after = model(first), model(second)
    assert torch.equal(before[:, :9], after[:, :9])
    assert bool((before[:, 9:] != after[:, 9:]).any(dim=-1).all())


def test_a_prefix_has_the_logits_of_the_whole():
    model = build(SMALL)
    torch.testing.assert_close(model(tokens()[:, :5]), model(tokens())[:, :5], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="17 tokens in a sequence; this model holds 16"):
        model(tokens(length=17))


def test_rotary_turns_pairs_by_their_position():
    cos, sin = (x.double() for x in rotary_tables(8, 6, 100.0))
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, cos, sin)
    pairs = torch.complex(x[..., :3], x[..., 3:])
    angle = torch.arange(8)[:, None] * torch.tensor([100.0 ** (-i / 3) for i in range(3)])
    expected = pairs * torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1), rtol=1e-6, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    cos, sin = (x.double() for x in rotary_tables(32, 8, 10_000.0))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, dtype=torch.float64, generator=generator).expand(32, 8) for _ in range(2))
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores.diagonal(0)[0], scores.diagonal(-7)[0])


def closed_form(config):
    attention = 2 * config.d_model * config.head_dim * (config.num_heads + config.num_kv_heads)
    block = attention + 3 * config.d_model * config.d_ff + 2 * config.d_model
    heads = 1 if config.tied_embeddings else 2
    return config.num_layers * block + config.d_model + heads * config.vocab_size * config.d_model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_parameter_count(kv_heads, tied):
    config = replace(SMALL, num_kv_heads=kv_heads, tied_embeddings=tied)
    model = build(config)
    assert sum(p.numel() for p in model.parameters()) == closed_form(config)
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(w.numel() for w in linear) == config.matmul_parameters


@pytest.mark.parametrize(("name", "millions"), [("nano", 0.92), ("micro", 3.3), ("small", 124), ("1b", 1236)])
def test_presets_have_the_size_that_they_say(name, millions):
    with torch.device("meta"):
        model = Transformer(PRESETS[name])
    count = sum(p.numel() for p in model.parameters())
    assert count == closed_form(PRESETS[name])
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_model_flops_are_the_matrix_products_of_a_step(kv_heads, tied):
    config = replace(SMALL, num_kv_heads=kv_heads, tied_embeddings=tied, attention="eager")
    model = build(config, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(tokens()).sum().backward()
    assert counter.get_total_flops() == config.model_flops_per_token * 3 * 16


def test_initialising_is_reproducible_and_scaled():
    config = replace(SMALL, d_model=96, d_ff=200, num_layers=8)
    first, again, other = (build(config, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    for name, parameter in first.named_parameters():
        if parameter.ndim < 2:
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = (1 / math.sqrt(16) if residual else 1.0) / math.sqrt(parameter.shape[1])
        # The standard error of a standard deviation is σ / √(2n); 5 of them.
        assert abs(parameter.std().item() - expected) < 5 * expected / math.sqrt(2 * parameter.numel())


def test_the_untrained_loss_is_that_of_a_guess_with_logits_of_unit_variance():
    # E[log Σ exp z] = log V + σ²/2 for V normal logits, large V; the target's own logit has mean 0.
    model = build(replace(SMALL, d_model=96, tied_embeddings=False))
    with torch.no_grad():
        logits = model(tokens(batch=64))
    assert logits.std().item() == pytest.approx(1.0, rel=0.1)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(batch=64, seed=1).flatten())
    assert loss.item() == pytest.approx(math.log(50) + 0.5, abs=0.1)
