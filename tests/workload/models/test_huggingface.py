"""Models of transformers against transformers itself."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from efftrain.counting.flops import count_step, fake_mode
from efftrain.study.planning.hub_worker import describe_here
from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.config import OptimizerConfig
from efftrain.training.objectives import data_objective
from efftrain.training.optimizer import build_optimizer
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.build import blocks, build_model
from efftrain.workload.models.huggingface import HuggingFaceLM
from efftrain.workload.models.presets import HuggingFaceModel

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 80}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = {
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "mistral": {"model_type": "mistral", **SIZES, "num_key_value_heads": 2, "sliding_window": 5},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 80, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    "bert": {"model_type": "bert", **SIZES, **NO_DROPOUT, "max_position_embeddings": 64},
    "roberta": {"model_type": "roberta", **SIZES, **NO_DROPOUT, "max_position_embeddings": 66, "pad_token_id": 1},
    "modernbert": {
        "model_type": "modernbert", **SIZES, **IDS, "max_position_embeddings": 64, "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
}  # fmt: skip
CAUSAL = ("llama", "mistral", "gpt2")
MASKED = ("bert", "roberta", "modernbert")
LENGTH = 16


def describe(name: str, *, attention="sdpa", seq_len=LENGTH, task=None, **changes) -> HuggingFaceModel:
    return describe_here(architecture={**CONFIGS[name], **changes}, task=task, seq_len=seq_len, attention=attention)


@pytest.fixture(scope="module")
def described() -> dict[str, HuggingFaceModel]:
    return {name: describe(name) for name in CONFIGS}


def build(config: HuggingFaceModel, seed: int | None = 0) -> HuggingFaceLM:
    model = build_model(config, CPU, seed=seed)
    assert isinstance(model, HuggingFaceLM)
    return model.double()


def tokens(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, 80, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_loss_is_transformers_own(described, name):
    model, ids = build(described[name]), tokens()
    own = model.model(input_ids=ids, labels=ids).loss
    batch = next_token_batch(ids)
    losses = data_objective(model, batch)
    # transformers' loss is computed in float32, whatever the logits' type.
    torch.testing.assert_close((losses.data / batch.predictions).to(own.dtype), own.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_loss_is_transformers_own(described, name):
    model, ids = build(described[name]), tokens()
    targets = torch.full_like(ids, -100)
    targets[:, [2, 7, 11]] = ids[:, [2, 7, 11]]
    inputs = ids.clone()
    inputs[:, [2, 7]] = 4
    own = model.model(input_ids=inputs, labels=targets).loss
    losses = data_objective(model, Batch(inputs=inputs, targets=targets, per_sequence=3))
    torch.testing.assert_close((losses.data / 9).to(own.dtype), own.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_order_and_padding(described, name):
    model = build(described[name]).eval()
    first, second, lengths = tokens(), tokens(), torch.tensor([16, 9, 3])
    for row, length in enumerate(lengths.tolist()):
        second[row, length:] = 5
    before, after = model(first, lengths), model(second, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(before[row, :length], after[row, :length], rtol=1e-9, atol=1e-12)
    later = tokens()
    later[:, 9] = 5
    unchanged = (model(later) == model(first)).all(dim=-1)[:, :9]
    assert bool(unchanged.all()) == (name in CAUSAL)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["eager", "efftrain"])
def test_attention_implementations_agree(described, name, attention):
    sdpa, other = build(described[name]), build(replace(described[name], attention=attention)).float()
    for lengths in ([LENGTH] * 3, [LENGTH, 9, 3]):
        real = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
        given = None if min(lengths) == LENGTH else torch.tensor(lengths)
        truth = sdpa.double()(tokens(), given)[real]
        # sdpa's own error in float32, and as much again
        tolerance = 2 * (sdpa.float()(tokens(), given)[real] - truth).abs().max().item()
        torch.testing.assert_close(other(tokens(), given)[real].double(), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "modernbert"])
def test_recomputation_changes_no_gradient(described, name):
    def gradients(recompute):
        model = build(described[name])
        apply_recompute(model, recompute)
        calls: list[object] = []
        norm = next(m for m in blocks(model)[0].modules() if "Norm" in type(m).__name__)
        norm.register_forward_pre_hook(lambda *_: calls.append(1))
        F.cross_entropy(model(tokens()).flatten(0, 1), tokens().flatten()).backward()
        assert len(calls) == (1 if recompute == "none" else 2)
        return [p.grad for p in model.parameters()]

    plain = gradients("none")
    for recompute in ("full", "selective"):
        for a, b in zip(plain, gradients(recompute), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_description_counts_what_is_built(described, name):
    model = build(described[name])
    assert described[name].parameters == model.model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert len(blocks(model)) == described[name].num_layers == 2
    assert described[name].causal == (name in CAUSAL)
    assert model(tokens()).shape == (3, LENGTH, 80)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bert", "modernbert"])
def test_model_flops_are_the_closed_form(described, name):
    """6 for each weight of a matrix product, and 12·H·Q·T a layer, T being the window's where there is one."""
    model = build(described[name]).model
    matrices = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "wte" not in n and "wpe" not in n
    ]
    tied = model.config.tie_word_embeddings
    products = sum(p.numel() for p in matrices) + (80 * 32 if tied else 0)
    keys = {"mistral": (5, 5), "modernbert": (LENGTH, 2 * 4 + 1)}.get(name, (LENGTH, LENGTH))
    assert described[name].model_flops_per_token == 6 * products + sum(12 * 32 * t for t in keys)


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "modernbert"])
def test_what_is_counted_is_what_is_trained(described, name):
    """On fake tensors, too, no mask is made for rows that need none, and the same ops follow."""

    def rows(context):
        with context:
            model, ids = build_model(described[name], CPU, seed=0), torch.zeros(2, LENGTH, dtype=torch.int64)

            def step(mark):
                mark("forward")
                loss = model(ids).sum()
                mark("backward")
                loss.backward()
                model.zero_grad()

            return count_step(step, model).rows

    assert rows(fake_mode()) == rows(nullcontext())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_step_reads_nothing_back_from_the_device(described, name, recompute):
    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops.append(str(func))
            return func(*args, **(kwargs or {}))

    model = build_model(described[name], CPU, seed=0)
    apply_recompute(model, recompute)
    with Watch() as watch:
        model(tokens()).sum().backward()
    assert "aten.mm.default" in watch.ops
    assert "aten._local_scalar_dense.default" not in watch.ops


def test_an_eager_window_is_counted_in_full(described):
    full = describe("mistral", sliding_window=None)
    assert describe("mistral", attention="eager").model_flops_per_token == full.model_flops_per_token
    assert described["mistral"].model_flops_per_token < full.model_flops_per_token
    for name in ("mistral", "modernbert"):
        counted = describe(name, attention="efftrain").model_flops_per_token
        assert counted == described[name].model_flops_per_token


def test_weights_are_a_function_of_the_seed(described):
    before = torch.get_rng_state()
    first, again, other = (build(described["bert"], seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_norms_biases_and_embeddings_do_not_decay(described, name):
    model = build_model(described[name], CPU, seed=0)
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    spared = ("bias", "embeddings", "wte", "wpe", "LayerNorm", "ln_", "lm_head", "decoder")
    for parameter_name, parameter in model.named_parameters():
        expected = 0.0 if any(part in parameter_name for part in spared) else 0.1
        assert decays[id(parameter)] == expected, parameter_name


def test_context_is_what_positions_allow():
    for name, limit in (("llama", 64), ("roberta", 64), ("gpt2", 64)):
        assert describe(name, seq_len=None).seq_len == limit
    assert describe("llama", seq_len=None, max_position_embeddings=4096).seq_len == 512
