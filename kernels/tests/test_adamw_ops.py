"""AdamW as operators: PyTorch's own checks, one node under torch.compile, and a cost for each."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from efftrain_kernels import AdamW, costs
from efftrain_kernels import _adamw as adamw

OPS = (torch.ops.efftrain.adamw_step, torch.ops.efftrain.adamw_norm)
OPTIONS = [
    pytest.param({}, marks=pytest.mark.slow),
    {"master_weights": "split16", "amsgrad": True, "max_grad_norm": 1.0},
    pytest.param({"state_dtype": "int8"}, marks=pytest.mark.slow),
]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((4100,), (5, 3))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_step_passes_opcheck(monkeypatch, options, backend):
    calls = []
    monkeypatch.setattr(adamw, "adamw_step", lambda *arguments: calls.append(arguments))
    AdamW(parameters(torch.bfloat16), backend=backend, **options).step()
    for arguments in calls:
        detached = tuple(
            [x.detach() if isinstance(x, torch.Tensor) else x for x in a] if isinstance(a, list) else a
            for a in arguments
        )
        torch.library.opcheck(torch.ops.efftrain.adamw_step.default, detached)


@pytest.mark.parametrize("kernels", [False, True])
def test_the_norm_passes_opcheck(kernels):
    torch.library.opcheck(torch.ops.efftrain.adamw_norm.default, ([torch.randn(5), torch.randn(3, 2)], kernels))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_is_whole_and_sees_a_new_learning_rate(backend):
    torch._dynamo.reset()
    lr = torch.tensor(1e-2)
    ours, plain = (AdamW(parameters(), lr=lr, max_grad_norm=1.0) for _ in range(2))
    ours.step()  # makes the state; a step that makes it is another program
    plain.step()
    names = []

    def recording(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    step = torch.compile(ours.step, backend=recording, fullgraph=True)
    for _ in range(3):
        lr.mul_(0.5)
        step()
        plain.step()
    pairs = zip(ours.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert [name.split(".")[1] for name in names if name.startswith("efftrain")] == ["adamw_norm", "adamw_step"]


def test_every_operator_has_a_cost():
    ours = {name for name in dir(torch.ops.efftrain) if name.startswith("adamw")}
    assert ours == {"adamw_step", "adamw_norm"}
    assert all(op in flop_registry for op in OPS)
    with FlopCounterMode(display=False) as counter:
        AdamW(parameters(), max_grad_norm=1.0).step()
    assert counter.get_total_flops() == 0


BF16, FP32 = torch.bfloat16, torch.float32


# Bytes a parameter, read and written, of the formats' tensors: 4 for float32, 2 for 16 bits, 1 for 8, p, m, v in and
# out, the gradient in, the master weight in and out.
@pytest.mark.parametrize(
    ("param", "grad", "options", "expected"),
    [
        (FP32, FP32, {}, 16 + 12),
        (FP32, BF16, {}, 14 + 12),
        (BF16, BF16, {"master_weights": "float32"}, 14 + 14),
        (BF16, BF16, {"master_weights": "split16"}, 14 + 12),
        (BF16, BF16, {"master_weights": "split16", "state_dtype": "bfloat16"}, 10 + 8),
        (BF16, BF16, {"state_dtype": "bfloat16"}, 8 + 6),
        (BF16, BF16, {"state_dtype": "int8"}, 6 + 4 + 4 * 4 / 256),
        (FP32, FP32, {"clipping": True}, 28 + 4),
        (BF16, BF16, {"clipping": True, "state_dtype": "bfloat16"}, 14 + 2),
        (FP32, FP32, {"amsgrad": True}, 28 + 8),
        (FP32, FP32, {"master_weights": "float32"}, 28),
    ],
)
def test_bytes_of_a_step(param, grad, options, expected):
    count = 1 << 20
    assert costs.adamw_bytes(count, param_dtype=param, grad_dtype=grad, **options) == expected * count


def test_bytes_are_those_of_the_tensors():
    options = {"state_dtype": "int8", "master_weights": "split16", "amsgrad": True}
    optimizer = AdamW(parameters(BF16), **options)
    optimizer.step()
    for p in optimizer.param_groups[0]["params"]:
        state = sum(x.nbytes for key, x in optimizer.state[p].items() if key != "step")
        expected = 2 * state + 2 * p.nbytes + p.grad.nbytes
        assert costs.adamw_bytes(p.numel(), param_dtype=BF16, grad_dtype=BF16, **options) == expected
