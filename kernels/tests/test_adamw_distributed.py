"""AdamW on DTensors: two ranks train what one does, bit for bit, and a checkpoint is resharded with its state."""

import subprocess
import sys

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")

RANK = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from efftrain_kernels import AdamW

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
SHAPES = [((5, 3), Shard(0)), ((64, 80), Shard(0)), ((4, 6), Shard(1)), ((7,), Replicate()), ((1, 2), Shard(0))]


def parameters(dtype, distributed):
    torch.manual_seed(0)
    plain = [(torch.randn(shape).to(dtype), placement) for shape, placement in SHAPES]
    return [nn.Parameter(distribute_tensor(x, mesh, [p]) if distributed else x) for x, p in plain]


def step(optimizer, number, distributed):
    torch.manual_seed(10 + number)
    for p, (shape, placement) in zip(optimizer.param_groups[0]["params"], SHAPES):
        g = torch.randn(shape).to(p.dtype)
        p.grad = distribute_tensor(g, mesh, [placement]) if distributed else g
    optimizer.step()


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def compare(dtype, exact, **options):
    kinds = {d: AdamW(parameters(dtype, d), lr=0.05, **options) for d in (True, False)}
    for number in range(3):
        for distributed, optimizer in kinds.items():
            step(optimizer, number, distributed)
    pairs = list(zip(*(optimizer.param_groups[0]["params"] for optimizer in kinds.values())))
    for i, (p, q) in enumerate(pairs):
        assert isinstance(kinds[True].state[p]["exp_avg"], DTensor)
        if exact and i != 2:  # columns are numbered within the shard
            assert torch.equal(whole(p), q), (i, dtype, options)
        else:
            torch.testing.assert_close(whole(p), q, rtol=0.02, atol=0.02)
    if kinds[False].grad_norm is not None:
        torch.testing.assert_close(kinds[True].grad_norm, kinds[False].grad_norm, rtol=1e-6, atol=0)
    for p, q in zip(*(optimizer.master_parameters() for optimizer in kinds.values())):
        assert whole(p).shape == q.shape
    return kinds[True]


compare(torch.float32, True)
compare(torch.bfloat16, True, state_dtype="bfloat16", stochastic_rounding=True)
compare(torch.bfloat16, True, master_weights="split16", amsgrad=True)
clipped = compare(torch.float32, False, max_grad_norm=0.1)

again = AdamW(parameters(torch.float32, True), lr=0.05, max_grad_norm=0.1)
again.load_state_dict(clipped.state_dict())
for left, right in zip(clipped.state.values(), again.state.values()):
    assert torch.equal(whole(left["exp_avg_sq"]), whole(right["exp_avg_sq"]))

mixed = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])), nn.Parameter(torch.ones(3))
optimizer = AdamW(mixed, max_grad_norm=1e9)
mixed[0].grad, mixed[1].grad = distribute_tensor(torch.full((4,), 2.0), mesh, [Shard(0)]), torch.ones(3)
optimizer.step()
assert optimizer.grad_norm.item() == 19 ** 0.5 or abs(optimizer.grad_norm.item() - 19 ** 0.5) < 1e-6

mixed[0].grad = None
mixed[0].grad = distribute_tensor(torch.ones(4), mesh, [Replicate()])
before = mixed[1].detach().clone()
try:
    optimizer.step()
except ValueError as error:
    assert "is placed (Replicate(),), its parameter (Shard(dim=0),)" in str(error), error
else:
    raise AssertionError("a gradient placed otherwise was taken")
assert torch.equal(before, mixed[1])

try:
    AdamW(parameters(torch.float32, True), state_dtype="int8")
except ValueError as error:
    assert "is a DTensor; blocks of 8-bit moments do not survive resharding" in str(error), error
else:
    raise AssertionError("8-bit moments of DTensors were taken")

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).bfloat16()
    for layer in made:
        fully_shard(layer)
    return fully_shard(made)

def train(made, optimizer, number):
    torch.manual_seed(number)
    made(torch.randn(4, 6).bfloat16()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()

first = model()
optimizer = AdamW(first.parameters(), master_weights="split16", max_grad_norm=1.0)
train(first, optimizer, 0)
saved = {"optimizer": get_optimizer_state_dict(first, optimizer), "model": first.state_dict()}
dcp.save(saved, checkpoint_id=store + "-checkpoint")
second = model()
resumed = AdamW(second.parameters(), master_weights="split16", max_grad_norm=1.0)
loaded = {"optimizer": get_optimizer_state_dict(second, resumed), "model": second.state_dict()}
dcp.load(loaded, checkpoint_id=store + "-checkpoint")
second.load_state_dict(loaded["model"])
set_optimizer_state_dict(second, resumed, loaded["optimizer"])
for made, opt in ((first, optimizer), (second, resumed)):
    train(made, opt, 1)
for p, q in zip(first.parameters(), second.parameters()):
    assert torch.equal(p.full_tensor(), q.full_tensor())
dist.destroy_process_group()
print("the same")
"""


@pytest.mark.slow
def test_two_ranks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-W", "ignore", str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            out, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors
            assert "the same" in out
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
