"""AdamW on a CUDA device: graphs that hold a step, and steps that wait for nothing. The kernels' numerics are tested in
test_adamw_kernels.py, on whatever device there is."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from efftrain_kernels import AdamW
from efftrain_kernels._optimizer import tables

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
OPTIONS = [
    {}, {"max_grad_norm": 0.1}, {"state_dtype": "int8", "stochastic_rounding": True, "max_grad_norm": 0.1},
    {"master_weights": "split16", "amsgrad": True},
]  # fmt: skip


def build(lr, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1)).to("cuda", torch.bfloat16)
    return model, AdamW(model.parameters(), lr=lr, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_captured_step_trains_like_an_eager_one(options):
    x = torch.randn(32, 64, device="cuda", dtype=torch.bfloat16)
    results = []
    for captured in (False, True):
        lr = torch.tensor(1e-2, device="cuda")
        model, optimizer = build(lr, **options)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=True)
            model(x).float().square().mean().backward()
            optimizer.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                step()
        for _ in range(4):
            graph.replay() if captured else step()
            lr.mul_(0.5)
        results.append([p.detach().clone() for p in model.parameters()])
        assert optimizer.state[next(model.parameters())]["step"].item() == 7
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_waits_for_nothing(options):
    model, optimizer = build(1e-2, **options)
    x = torch.randn(32, 64, device="cuda", dtype=torch.bfloat16)
    for number in range(4):
        model(x).float().square().mean().backward()
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        try:
            optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad(set_to_none=number % 2 == 0)


def test_a_capture_without_a_step_before_it_says_so(monkeypatch):
    monkeypatch.setattr(tables, "_spares", defaultdict(list))  # what other tests have left
    model, optimizer = build(1e-2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with (
        pytest.raises(RuntimeError, match="take a few on a side stream first"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
