"""Counts against closed forms, per step, phase, module and op."""

from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import flop_counter

import efftrain_kernels
from efftrain.counting.flops import CostCounter, CostRow, StepCost, count_step, fake_mode
from efftrain.counting.ops import formulas_by_op
from efftrain.workload.models.attention import ATTENTION

FORMS = {
    "mha": {"num_kv_heads": 4},
    "gqa": {},
    "untied": {"tied_embeddings": False},
    "mha-untied": {"num_kv_heads": 4, "tied_embeddings": False},
    "dropout": {"dropout": 0.1},
}


def count(training, **settings) -> StepCost:
    with fake_mode():
        trained = training(**settings)
        return count_step(trained.step, trained.model)


@pytest.fixture(scope="module")
def plain(training) -> StepCost:
    return count(training)


@pytest.fixture(scope="module")
def recomputed(training) -> StepCost:
    return count(training, recompute="full")


def flops_of(cost: StepCost, name: str = "flops") -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for row in cost.rows:
        sums[row.phase] += getattr(row, name)
    return sums


def closed_form(training, **settings) -> int:
    """(6N + 12·L·H·Q·T) · tokens with N from the modules themselves, not from the configuration's own formula."""
    trained = training(**settings)
    n = sum(m.weight.numel() for m in trained.model.modules() if isinstance(m, nn.Linear))
    c = trained.config
    return (6 * n + 12 * c.num_layers * c.num_heads * c.head_dim * c.seq_len) * trained.tokens


def block_forward(training, attention: str) -> dict[str, int]:
    """FLOP of one block's forward pass by module."""
    trained = training(model={"attention": attention})
    c = trained.config
    products = {
        name: 2 * m.weight.numel() * trained.tokens
        for name, m in trained.model.blocks[0].named_modules()
        if isinstance(m, nn.Linear)
    }
    return products | {"attention": 4 * trained.tokens * c.seq_len * c.num_heads * c.head_dim}


@pytest.mark.parametrize("form", FORMS)
def test_model_flops_are_the_closed_form(training, form):
    settings = {"model": FORMS[form]}
    assert count(training, **settings).model_flops == closed_form(training, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"attention": "eager"}},
        {"model": {"attention": "eager", "num_kv_heads": 4, "tied_embeddings": False}},
        {"model": {"attention": "efftrain"}},
        {"model": {"attention": "efftrain", "num_kv_heads": 4}},
        {"bf16": True},
        {"micro_batches": 2},
        {"micro_batches": 2, "recompute": "full", "bf16": True},
        {"efftrain_adamw": True},
    ],
    ids=str,
)
def test_model_flops_are_the_closed_form_however_the_step_is_taken(training, settings):
    assert count(training, **settings).model_flops == closed_form(training, **settings)


def test_backward_is_twice_forward_in_the_model_and_more_in_a_fused_kernel(training, plain):
    eager = count(training, model={"attention": "eager"})
    for attention, extra, cost in (("eager", 0.0, eager), ("sdpa", 0.5, plain)):
        hardware, model = flops_of(cost), flops_of(cost, "model_flops")
        attention_forward = 2 * block_forward(training, attention)["attention"]
        assert model["forward"] == hardware["forward"]
        assert model["backward"] == 2 * model["forward"]
        assert hardware["backward"] == model["backward"] + extra * attention_forward
        assert hardware["optimizer"] == 0


def test_recomputation_adds_the_blocks_up_to_the_early_stop(training, plain, recomputed):
    settings = {"model": {"attention": "eager"}, "bf16": True}
    eager = count(training, **settings), count(training, recompute="full", **settings)
    for attention, (once, twice) in {"sdpa": (plain, recomputed), "eager": eager}.items():
        # down_proj saves its input for backward, and nothing else of the block is needed: its product is not done.
        block = block_forward(training, attention)
        extra = sum(block.values()) - block["mlp.down_proj"]
        assert twice.flops - once.flops == flops_of(twice)["recompute"] == 2 * extra
        assert twice.model_flops == once.model_flops
        assert flops_of(twice, "model_flops")["recompute"] == 0
        assert flops_of(twice)["forward"] == flops_of(once)["forward"]
        assert flops_of(twice)["backward"] == flops_of(once)["backward"]
        assert flops_of(once)["recompute"] == 0


@pytest.mark.parametrize("attention", ["sdpa", "efftrain", "reference"])
def test_attention_in_the_save_set_is_not_computed_again(training, attention, monkeypatch):
    if attention == "reference":  # the op of our own kernels, which a CPU takes where torch cannot express the call
        monkeypatch.setitem(ATTENTION, "efftrain", attend_by_op)
    settings = {"model": {"attention": "sdpa" if attention == "sdpa" else "efftrain"}}
    full, selective = (count(training, recompute=r, **settings) for r in ("full", "selective"))
    again = sum(r.flops for r in full.rows if r.phase == "recompute" and "attention" in r.op)
    assert again > 0
    assert not [r for r in selective.rows if r.phase == "recompute" and "attention" in r.op and r.flops]
    assert full.flops - selective.flops == again
    assert full.model_flops == selective.model_flops


def attend_by_op(q, k, v, layout, **_):
    return efftrain_kernels.attention(q, k, v, causal=True, backend="reference")


def test_every_product_stands_under_its_module(training, recomputed):
    block = block_forward(training, "sdpa")
    cost = recomputed
    found = {(r.phase, r.module): r.flops for r in cost.rows if r.flops and r.module.startswith("blocks.1.")}
    expected = {}
    for name, flops in block.items():
        expected["forward", f"blocks.1.{name}"] = flops
        expected["backward", f"blocks.1.{name}"] = flops * 5 // 2 if name == "attention" else 2 * flops
        if name != "mlp.down_proj":
            expected["recompute", f"blocks.1.{name}"] = flops
    assert found == expected
    assert {r.op for r in cost.rows if r.module == "blocks.1.mlp.up_proj" and r.flops} == {"aten.mm"}


def test_rows_name_modules_of_the_model_only(training, plain, recomputed):
    names = set(dict(training().model.named_modules()))
    assert {row.module for row in [*plain.rows, *recomputed.rows]} <= names
    assert {row.module for row in plain.rows if row.phase == "optimizer"} == {""}


def test_accumulating_a_gradient_stands_under_the_owner_of_the_weight(training, plain):
    def sums(cost: StepCost) -> dict[str, int]:
        return {r.module: r.bytes for r in cost.rows if r.phase == "backward" and r.op == "aten.add_"}

    weights = {n.removesuffix(".weight"): p.numel() for n, p in training().model.named_parameters()}
    assert sums(plain) == {}
    # the second micro-batch's gradient is added to the first's: two reads and a write of float32; tied weights are
    # the embedding's
    assert sums(count(training, micro_batches=2)) == {name: 12 * numel for name, numel in weights.items()}


def test_a_custom_function_stands_under_its_module():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        def backward(ctx, *grads):
            (x,) = ctx.saved_tensors
            return grads[0] @ x.T + x.T @ grads[0]

    class Layer(nn.Module):
        def forward(self, x):
            return Square.apply(x)

    model = nn.Sequential(nn.Linear(4, 4, bias=False), Layer())
    with CostCounter(model) as counter:
        counter.mark("forward")
        model(torch.ones(4, 4)).sum().backward()
    products = {(r.phase, r.module): r.flops for r in counter.cost().rows if r.op == "aten.mm"}
    assert products == {("forward", "0"): 128, ("forward", "1"): 128, ("backward", "1"): 256, ("backward", "0"): 128}


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_teacher_costs_hardware_flops_alone(training, plain, guard):
    with fake_mode():
        student, teacher = training(), training(model={"num_layers": 1})

        def step(mark):
            mark("forward")
            with guard():
                teacher.model(student.tokens_bt[:, :-1])
            student.step(mark)

        cost = count_step(step, student.model, teacher=teacher.model)
    rows = [row for row in cost.rows if row.module.split(".")[0] == "teacher"]
    weights = sum(m.weight.numel() for m in teacher.model.modules() if isinstance(m, nn.Linear))
    attention = block_forward(training, "sdpa")["attention"]
    assert sum(row.flops for row in rows) == 2 * weights * student.tokens + attention
    assert sum(row.model_flops for row in rows) == 0
    assert cost.flops == plain.flops + sum(row.flops for row in rows)
    assert cost.model_flops == plain.model_flops


def test_counting_leaves_registry_and_later_counts_alone(training, plain):
    before = dict(flop_counter.flop_registry)
    assert count(training) == plain
    assert flop_counter.flop_registry == before


def test_counting_leaves_the_real_training_alone(training):
    def frozen(trained) -> list[torch.Tensor]:
        state = [x for s in trained.optimizer.state.values() for x in s.values()]
        return [x.clone() for x in [*trained.model.state_dict().values(), *state, torch.get_rng_state()]]

    settings = {"model": {"dropout": 0.1}, "recompute": "full"}
    real = training(**settings)
    real.step(lambda phase: None)
    before = frozen(real)
    count(training, **settings)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(real), strict=True))


def test_optimizer_state_is_not_made_in_the_counted_step(training, plain):
    rows = [row for row in plain.rows if row.phase == "optimizer"]
    parameters = sum(p.numel() for p in training().model.parameters())
    assert not any(row.op == "aten.zeros_like" for row in rows)
    # at the least, weight, gradient and both moments are read, and three of them written, in float32
    assert sum(row.bytes for row in rows) >= 28 * parameters


def test_data_is_not_counted():
    with CostCounter(nn.Module()) as counter:
        torch.ones(3, 3) @ torch.ones(3, 3)
        counter.mark("forward")
        torch.ones(3, 3) @ torch.ones(3, 3)
        counter.mark("data")
        torch.ones(3, 3) @ torch.ones(3, 3)
    assert counter.cost().flops == 54


def traffic(function, *tensors) -> int:
    with CostCounter(nn.Module()) as counter:
        counter.mark("forward")
        function(*tensors)
    return sum(row.bytes for row in counter.cost().rows)


X = torch.ones(4, 6)

TRAFFIC = {
    "reads and writes": (torch.exp, 2 * 96),
    "one tensor twice is read once": (lambda x: x * x, 2 * 96),
    "a row broadcast": (lambda x: x[0].expand(4, 6).exp(), 24 + 96),
    "half of a tensor": (lambda x: x[:2].exp(), 2 * 48),
    "two halves of one storage": (lambda x: x[:2] + x[2:], 3 * 48),
    "views": (lambda x: x.view(24).unsqueeze(0).T.detach(), 0),
    "views that the schema does not declare": (lambda x: torch.ops.aten._unsafe_view(x, [6, 4]), 0),
    "in place": (lambda x: x.clone().mul_(2), 2 * 96 + 2 * 96),
    "in place with another": (lambda x: x.clone().add_(x), 2 * 96 + 3 * 96),
    "overwritten": (lambda x: torch.empty(4, 6).copy_(x), 2 * 96),
    "filled": (lambda x: torch.empty(4, 6).zero_(), 96),
    "allocated": (torch.empty_like, 0),
    "made like another": (torch.zeros_like, 96),
    "out=": (lambda x: torch.exp(x, out=torch.empty(4, 6)), 2 * 96),
    "a list": (lambda x: torch._foreach_mul([x, x + 0], 2.0), 2 * 96 + 4 * 96),
    "rows of a table": (lambda x: F.embedding(torch.tensor([1]), x), 24 + 8 + 24),
    "another type": (lambda x: x.to(torch.float64), 96 + 192),
}


@pytest.mark.parametrize("case", TRAFFIC)
def test_bytes_of_ops(case):
    function, expected = TRAFFIC[case]
    assert traffic(function, X) == expected


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_product_costs_2mnk_flops_and_its_three_matrices(m, k, n):
    with CostCounter(nn.Module()) as counter:
        counter.mark("forward")
        torch.empty(m, k) @ torch.empty(k, n)
    (row,) = counter.cost().rows
    assert row == CostRow("forward", "", "aten.mm", 1, 2 * m * k * n, 2 * m * k * n, 4 * (m * k + k * n + m * n))


def test_an_op_without_a_formula_has_bytes_alone(plain):
    (row,) = [r for r in plain.rows if r.op == "aten.silu" and r.module == "blocks.0.mlp" and r.phase == "forward"]
    assert (row.calls, row.flops, row.model_flops, row.bytes) == (1, 0, 0, 2 * 4 * 2 * 16 * 48)


def test_attention_with_wider_values_than_keys_does_twice_its_forward_in_backward():
    batch, heads, length, key, value = 2, 3, 8, 4, 12
    q, k = (torch.empty(batch, heads, length, key, device="meta") for _ in range(2))
    v, out = (torch.empty(batch, heads, length, value, device="meta") for _ in range(2))
    lse, seed = torch.empty(batch, heads, length, device="meta"), torch.empty((), dtype=torch.int64, device="meta")
    with CostCounter(nn.Module()) as counter:
        counter.mark("backward")
        torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            out, q, k, v, None, out, lse, seed, seed, 0.0, [True, True, True, False]
        )
    rows = [row for row in counter.cost().rows if row.flops]
    forward = 2 * batch * heads * length * length * (key + value)
    scores = 2 * batch * heads * length * length * key
    assert [(row.flops, row.model_flops) for row in rows] == [(2 * forward + scores, 2 * forward)]


def test_recorded_lines_are_the_rows(training, plain, lines):
    plain.record(lines, from_step=7)
    assert len(lines.costs) == len(plain.rows)
    first = plain.rows[0]
    assert lines.costs[0] == {
        "from_step": 7, "phase": "forward", "module": "embedding", "op": "aten.embedding", "calls": 1, "flops": 0,
        "model_flops": 0, "bytes": first.bytes,
    }  # fmt: skip
    assert sum(line["model_flops"] for line in lines.costs) == closed_form(training)


def test_every_attention_backward_takes_query_key_and_value_where_they_are_looked_for():
    named = (op for op in formulas_by_op() if hasattr(op, "overloads"))
    ops = [op for op in named if "attention" in str(op) and "backward" in str(op)]
    assert len(ops) >= 6
    for op in ops:
        names = [argument.name for argument in op.default._schema.arguments]
        assert names[1:4] in (["query", "key", "value"], ["q", "k", "v"]), op
