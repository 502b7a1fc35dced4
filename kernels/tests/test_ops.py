"""The ops as torch sees them: opcheck, compilers, checkpointing, counters, and derivatives past the first."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import attention_cases as cases
import efftrain_kernels
from efftrain_kernels import _adamw, _ops, attention, costs
from efftrain_kernels._optimizer import norm, ops

FORWARD = torch.ops.efftrain.attention_forward.default


def arguments(kernel="reference", *, packed=False, sinks=False, dim=16):
    """What `attention_forward` takes, for a small causal call."""
    extra = {"sinks": cases.draw(2, seed=5).requires_grad_()} if sinks else {"sinks": None}
    if packed:
        (q, k, v), packing = cases.packed_inputs([3, 4], [5, 4], dim=dim)
        hints = list(packing.values())
    else:
        q, k, v = cases.inputs(len_q=6, len_k=9, dim=dim)
        hints = [None, None, 6, 9]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    return (*leaves, extra["sinks"], *hints, dim**-0.5, None, 0, 0.0, kernel)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("form", [{}, {"packed": True}, {"sinks": True}])
def test_opcheck(kernel, form):
    torch.library.opcheck(FORWARD, arguments(kernel, **form))
    q, k, v, sinks, *rest = (x.detach() if isinstance(x, torch.Tensor) else x for x in arguments(kernel, **form))
    out, lse = FORWARD(q, k, v, sinks, *rest)
    backward = (torch.randn_like(out), q, k, v, out, lse, torch.randn_like(lse), sinks, *rest)
    torch.library.opcheck(torch.ops.efftrain.attention_backward.default, backward)


def test_float64_gradients_by_finite_differences():
    q, k, v, sinks, *rest = arguments(sinks=True, dim=2)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v, sinks)]
    assert torch.autograd.gradcheck(lambda *x: FORWARD(*x, *rest), wide)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("constant", [True, False])
def test_a_second_derivative_raises(backend, constant):
    q, k, v = (x.requires_grad_() for x in cases.inputs(dim=16))
    out = attention(q, k, v, backend=backend)
    loss = out.sum() if constant else out.square().sum()  # the gradient that comes in is a constant, or depends on q
    (gradient,) = torch.autograd.grad(loss, q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention has no second derivative"):
        gradient.sum().backward()


def with_everything(q, k, v, sinks, backend):
    out, lse = attention(q, k, v, window=(4, 0), sinks=sinks, softcap=2.0, return_lse=True, backend=backend)
    return (out * out).sum() + lse.sum()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(with_everything, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (9, 12) if dynamic else (9,):
        q, k, v = cases.inputs(len_q=length, len_k=length, dim=16)
        results = []
        for call in (with_everything, compiled):
            leaves = [x.clone().requires_grad_() for x in (q, k, v, cases.draw(2, seed=5))]
            loss = call(*leaves, backend)
            loss.backward()
            results.append((loss.detach(), *(x.grad for x in leaves)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_plain_and_packed_calls_compile_with_settings_that_are_symbols():
    torch._dynamo.reset()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for length, scale in ((9, 0.3), (12, 0.4)):
        q, k, v = cases.inputs(len_q=length, len_k=length, dim=16)
        settings = {"causal": True, "softmax_scale": scale}
        torch.testing.assert_close(compiled(q, k, v, **settings), attention(q, k, v, **settings))
        (q, k, v), packing = cases.packed_inputs([3, length], [5, length], dim=16)
        settings |= {**packing, "softcap": 10 * scale}
        torch.testing.assert_close(compiled(q, k, v, **settings), attention(q, k, v, **settings))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
def test_compiles_with_inductor():
    torch._dynamo.reset()
    q, k, v = (x.requires_grad_() for x in cases.inputs(len_q=9, len_k=9, dim=16))
    loss = torch.compile(with_everything, fullgraph=True)(q, k, v, cases.draw(2, seed=5), "reference")
    loss.backward()
    again = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    expected = with_everything(*again, cases.draw(2, seed=5), "reference")
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for x, y in zip((q, k, v), again, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_selective_checkpointing_keeps_the_op_by_name():
    """With the op in the save set, nothing of it runs again in the backward pass."""
    q, k, v = (x.requires_grad_() for x in cases.inputs(len_q=9, len_k=9, dim=16))
    expected = torch.autograd.grad(with_everything(q, k, v, None, "reference"), (q, k, v))

    def block(q, k, v):
        return with_everything(q * 1.0, k * 1.0, v * 1.0, None, "reference")

    def keep(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op == FORWARD else CheckpointPolicy.PREFER_RECOMPUTE

    forwards = {}
    for name, settings in {
        "kept": {"context_fn": lambda: create_selective_checkpoint_contexts(keep)},
        "all": {},
    }.items():
        loss = checkpoint(block, q, k, v, use_reentrant=False, **settings)
        with FlopCounterMode(display=False) as counter:
            gradients = torch.autograd.grad(loss, (q, k, v))
        forwards[name] = counter.get_flop_counts()["Global"].get(torch.ops.efftrain.attention_forward, 0)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert torch.equal(ours, theirs)
    assert forwards == {"kept": 0, "all": 4 * 2 * 9 * 9 * 16}


def ours():
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.split(".")[0] for name in names if name.startswith("efftrain::")})


def test_every_op_has_a_cost():
    assert len(ours()) >= 2
    packets = {getattr(torch.ops.efftrain, name.removeprefix("efftrain::")) for name in ours()}
    assert packets <= set(flop_registry), "an op without a FLOP formula"
    assert set(ours()) == set(costs.BYTES), "an op without a bytes formula"


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_flops_of_both_passes(kernel):
    call = arguments(kernel)
    with FlopCounterMode(display=False) as counter:
        FORWARD(*call)[0].sum().backward()
    counts = counter.get_flop_counts()["Global"]
    product = 2 * 2 * 6 * 9 * 16  # 2 · heads · Sq · Sk · D: one product's FLOP
    assert counts[_ops.attention_forward] == 2 * product
    assert counts[_ops.attention_backward] == {"reference": 5, "triton": 7}[kernel] * product


def test_flops_of_packed_sequences_are_those_of_each():
    with FlopCounterMode(display=False) as counter:
        FORWARD(*arguments(packed=True))
    assert counter.get_total_flops() == 4 * 2 * 16 * (3 * 5 + 4 * 4)


def test_bytes_of_both_passes():
    call = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments()]
    q, k, v, *rest = call
    out, lse = FORWARD(*call)
    sizes = {name: 4 * x.numel() for name, x in {"q": q, "k": k, "v": v, "out": out, "lse": lse}.items()}
    assert costs.BYTES["efftrain::attention_forward"](*call) == sum(sizes.values())
    inputs = sizes["q"] + sizes["k"] + sizes["v"]
    backward = costs.BYTES["efftrain::attention_backward"](out, q, k, v, out, lse, None, *rest)
    assert backward == 2 * inputs + 2 * sizes["out"] + sizes["lse"]


@pytest.mark.parametrize(
    "form",
    [{}, {"amsgrad": True}, {"state_dtype": "bfloat16"}, {"state_dtype": "int8"}, {"master_weights": "float32"},
     {"master_weights": "split16", "max_grad_norm": 1.0}],
)  # fmt: skip
def test_bytes_of_a_step_are_the_formulas(form, monkeypatch):
    counted = []

    def count(name, op):
        def counting(*call):
            counted.append(costs.BYTES[f"efftrain::{name}"](*call))
            return op(*call)

        return counting

    monkeypatch.setattr(_adamw, "adamw_step", count("adamw_step", ops.adamw_step))
    monkeypatch.setattr(norm, "adamw_norm", count("adamw_norm", ops.adamw_norm))
    weight = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    efftrain_kernels.AdamW([weight], **form).step()
    clipping = form.pop("max_grad_norm", None) is not None
    least = costs.adamw_bytes(8192, param_dtype=torch.bfloat16, grad_dtype=torch.bfloat16, clipping=clipping, **form)
    assert sum(counted) == least + 2 * 4  # and the step count, read and written
