"""Adapters against their definition: what they change, what they compute, what they cost."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from efftrain.counting.flops import count_step, fake_mode
from efftrain.counting.memory import measure_cpu_memory, predict_memory
from efftrain.record.recorder import NullRecorder
from efftrain.study.running.costs import example_batch
from efftrain.training.config import ConfigError, LoraConfig, OptimizerConfig
from efftrain.training.evaluation import evaluate
from efftrain.training.loop import train
from efftrain.training.lora import apply_lora, count_trainable, merged_weights, target_layers, trainable_parameters
from efftrain.training.optimizer import build_optimizer
from efftrain.training.session import Session, preserved, train_step
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import HuggingFaceModel

CPU = torch.device("cpu")
LORA = LoraConfig(rank=3, alpha=6.0)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def adapted(config, *, double: bool = False) -> Session:
    """A session as build_session makes it with adapters, whose B are not 0 any more where `double` asks for float64."""
    model = build_model(config.model, torch.device(config.device), seed=config.seed)
    if config.lora:
        apply_lora(model, config.lora, config.seed)
    if double:
        generator = torch.Generator().manual_seed(9)
        for name, p in model.double().named_parameters():
            if ".lora_B." in name:
                p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return Session(config=config, model=model, optimizer=build_optimizer(model, config.optimizer))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def tokens(config, seed: int = 0) -> torch.Tensor:
    return torch.randint(32, (4, config.model.seq_len), generator=torch.Generator().manual_seed(seed))


def test_a_model_with_fresh_adapters_is_what_it_was(tiny_config):
    config = tiny_config(lora=LORA)
    plain = build_model(config.model, CPU, seed=0)
    assert torch.equal(adapted(config).model(tokens(config)), plain(tokens(config)))


@pytest.mark.parametrize("changes", [{}, {"recompute": "full"}, {"recompute": "selective"}, {"precision": "bf16"}])
def test_training_changes_the_adapters_alone(tiny_config, random_batches, changes):
    config = tiny_config(lora=LoraConfig(rank=3, dropout=0.1), optimizer=OptimizerConfig(weight_decay=0.3), **changes)
    session = adapted(config)
    before = weights(session.model)
    assert train(session, random_batches(config), NullRecorder()) == "complete"
    for name, value in session.model.state_dict().items():
        assert torch.equal(value, before[name]) == (".lora_" not in name), name


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_adapters_drop_the_same(tiny_config, random_batches, recompute):
    ended = []
    for how in ("none", recompute):
        config = tiny_config(lora=LoraConfig(rank=3, dropout=0.5), recompute=how)
        session = adapted(config)
        torch.manual_seed(3)
        train(session, random_batches(config), NullRecorder())
        ended.append(weights(session.model))
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_dropout_is_off_in_evaluation_and_warming_up_leaves_no_trace(tiny_config, random_batches):
    config = tiny_config(lora=LoraConfig(rank=3, dropout=0.5))
    session, batches = adapted(config), random_batches(config)
    train(session, batches, NullRecorder())
    first, before = evaluate(session, batches.validation()), weights(session.model)
    with preserved(session):
        train_step(session, lambda: batches.train(1), lambda _: None)
    assert evaluate(session, batches.validation()) == first
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())


def test_adapters_are_fp32_and_drawn_from_the_seed_alone(tiny_config):
    config = tiny_config(lora=LORA)
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = build_model(config.model, CPU, seed=0).bfloat16()
        state = torch.get_rng_state()
        apply_lora(model, LORA, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        models.append({n: p for n, p in model.named_parameters() if ".lora_" in n})
    assert all(torch.equal(p, models[1][name]) and p.dtype == torch.float32 for name, p in models[0].items())
    for name, p in models[0].items():
        limit = 1 / math.sqrt(p.shape[1]) if ".lora_A." in name else 0.0
        assert p.abs().max() <= limit
        assert ".lora_B." in name or p.std().item() == pytest.approx(
            limit / math.sqrt(3), rel=0.35
        )  # a few dozen draws


def test_merged_by_hand_the_plain_model_gives_the_same_logits(tiny_config):
    config = tiny_config(lora=LORA)
    session = adapted(config, double=True)
    plain = build_model(config.model, CPU).double()
    plain.load_state_dict(merged_weights(session.model.state_dict(), LORA, plain))
    got, want = session.model(tokens(config)), plain(tokens(config))
    # Two orders of summation in float64, some 50 additions deep.
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12 * want.abs().max().item())
    single = copy.deepcopy(session.model).float()(tokens(config))
    own_error = (plain.float()(tokens(config)) - want).abs().max()
    assert (single - want).abs().max() <= 4 * own_error  # two products and a sum where there was one product


def test_gradients_are_those_of_the_whole_matrix_by_the_chain_rule(tiny_config):
    config = tiny_config(lora=LORA)
    model = adapted(config, double=True).model
    plain = build_model(config.model, CPU).double()
    plain.load_state_dict(merged_weights(model.state_dict(), LORA, plain))
    for m in (model, plain):
        m(tokens(config)).square().sum().backward()
    for name, layer in target_layers(plain, ()).items():
        a, b = (model.get_parameter(f"{name}.lora_{side}.default.weight") for side in "AB")
        assert isinstance(layer, nn.Linear)
        whole, scale = layer.weight.grad, LORA.alpha / LORA.rank
        torch.testing.assert_close(a.grad, scale * b.T @ whole, rtol=1e-9, atol=1e-9 * whole.abs().max().item())
        torch.testing.assert_close(b.grad, scale * whole @ a.T, rtol=1e-9, atol=1e-9 * whole.abs().max().item())


@pytest.mark.parametrize("targets", [(), ATTENTION, ("mlp.up_proj",)])
def test_parameters_follow_the_closed_form(tiny_config, targets):
    c = tiny_config().model
    q, kv, d = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.d_model
    attention = (d + q) + 2 * (d + kv) + (q + d)
    sums = {(): attention + 3 * (d + c.d_ff), ATTENTION: attention, ("mlp.up_proj",): d + c.d_ff}
    lora = dataclasses.replace(LORA, targets=targets)
    config = tiny_config(lora=lora)
    assert count_trainable(config) == 3 * c.num_layers * sums[targets]
    assert trainable_parameters(adapted(config).model) == count_trainable(config)
    assert count_trainable(tiny_config()) is None


def test_an_unknown_target_is_named_with_those_that_there_are(tiny_config):
    with pytest.raises(ConfigError, match=r"'c_attn'.*q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"):
        adapted(tiny_config(lora=LoraConfig(targets=("q_proj", "c_attn"))))


LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 32, "n_positions": 16}


@pytest.mark.parametrize(("architecture", "layers"), [(LLAMA, 2 * 7), (GPT2, 2 * 4)])
def test_models_of_hugging_face_are_adapted_alike(tiny_config, random_batches, architecture, layers):
    model = HuggingFaceModel(
        path="config.json", architecture=architecture, causal=True, vocab_size=32, seq_len=8, num_layers=2
    )
    config = tiny_config(model=model, lora=LORA, optimizer=OptimizerConfig(learning_rate=0.1))
    session, plain = adapted(config), build_model(config.model, CPU, seed=0)
    plain.eval()
    assert torch.equal(session.model.eval()(tokens(config)), plain(tokens(config)))
    assert len(target_layers(plain, ())) == layers
    assert counted(config)[0].flops < counted(dataclasses.replace(config, lora=None))[0].flops
    before = weights(session.model)
    train(session, random_batches(config), NullRecorder())
    changed = {name for name, value in session.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    double = session.model.double().eval()
    plain.double().load_state_dict(merged_weights(double.state_dict(), LORA, plain))
    got, want = double(tokens(config)), plain(tokens(config))
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12 * want.abs().max().item())
    assert count_trainable(config) == trainable_parameters(double)


def counted(config):
    with fake_mode():
        session = adapted(config)
        batch = example_batch(config, config.batch_size)
        cost = count_step(lambda mark: train_step(session, lambda: batch, mark) and None, session.model)
        memory = predict_memory(
            lambda mark: train_step(session, lambda: batch, mark) and None,
            [session.model, session.optimizer, batch.inputs, batch.targets],
        )
    return cost, memory, session


def phase_flops(cost, phase: str) -> int:
    return sum(row.model_flops for row in cost.rows if row.phase == phase)


def test_frozen_matrices_have_no_weight_gradients_in_the_count(tiny_config):
    config = tiny_config(lora=LORA)
    cost, memory, session = counted(config)
    c, r = config.model, LORA.rank
    t = config.batch_size * c.seq_len
    shapes = [layer.weight.shape for layer in target_layers(build_model(c, CPU), ()).values()]
    frozen = sum(a * b for a, b in shapes)
    pairs = sum(r * (a + b) for a, b in shapes)
    first = [layer.weight.shape for layer in target_layers(build_model(c, CPU), ATTENTION[:3]).values()][:3]
    attention = 4 * c.num_layers * c.num_heads * c.head_dim * c.seq_len  # QK' and PV, a token
    head = c.vocab_size * c.d_model
    assert phase_flops(cost, "forward") == t * (2 * (frozen + pairs + head) + attention)
    # Frozen: the gradient of the input alone. A and B: of the weight and of the input. What the first block's
    # attention reads needs none, because nothing before it is trained.
    stopped = sum(o * i + r * i for o, i in first)
    assert phase_flops(cost, "backward") == t * (2 * (frozen + head + 2 * pairs - stopped) + 2 * attention)
    moments = [row for row in cost.rows if row.phase == "optimizer"]
    assert moments
    held = 4 * (c.parameters + trainable_parameters(session.model))
    assert memory.categories["parameters"] == held
    assert memory.categories["optimizer"] >= 2 * 4 * trainable_parameters(session.model)
    assert memory.categories["optimizer"] < 2 * 4 * c.parameters


def test_predicted_memory_is_what_the_allocator_gives(tiny_config):
    """A model wide enough that what torch allocates beside tensors does not count."""
    config = tiny_config(
        lora=LORA, model=dataclasses.replace(tiny_config().model, d_model=128, d_ff=512, vocab_size=256)
    )
    session, batch = adapted(config), example_batch(config, config.batch_size)
    held = [session.model, session.optimizer, batch.inputs, batch.targets]
    measured = measure_cpu_memory(lambda mark: train_step(session, lambda: batch, mark) and None, held)
    assert counted(config)[1].peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_adapters_compute_the_same(tiny_config, random_batches):
    model = dataclasses.replace(tiny_config().model, num_layers=1)
    losses = []
    for compiled in (False, True):
        config = tiny_config(lora=LoraConfig(rank=3, targets=("q_proj",)), model=model, steps=2, compile=compiled)
        session = adapted(config)
        train(session, random_batches(config), NullRecorder())
        losses.append(evaluate(session, random_batches(config).validation()).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
