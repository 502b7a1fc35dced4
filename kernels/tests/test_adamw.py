"""AdamW on the CPU against torch's own, bit for bit, with the settings, scalers and errors that go with it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from efftrain_kernels import AdamW

SHAPES = [(7, 5), (5,), (), (3, 2, 2)]


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def set_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)


def train(optimizer, steps, start=0, before=None, scale=1.0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        set_gradients(params, step, scale)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        if before:
            before(params)
        optimizer.step()
    return params


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_bit_equal_to_torchs_foreach_in_float32(weight_decay, maximize, amsgrad):
    settings = {
        "betas": (0.9, 0.95), "eps": 1e-7, "weight_decay": weight_decay, "maximize": maximize, "amsgrad": amsgrad,
    }  # fmt: skip
    ours = train(AdamW(parameters(), **settings), 20)
    theirs = train(torch.optim.AdamW(parameters(), foreach=True, **settings), 20)
    assert equal(ours, theirs)
    assert not equal(ours, parameters())


def test_bit_equal_to_torchs_foreach_in_float64():
    ours = train(AdamW(parameters(torch.float64)), 5)
    assert equal(ours, train(torch.optim.AdamW(parameters(torch.float64), foreach=True), 5))


def test_groups_have_their_own_settings():
    def groups():
        first, *rest = parameters()
        return [{"params": [first], "weight_decay": 0.5}, {"params": rest, "betas": (0.5, 0.6)}]

    assert equal(train(AdamW(groups()), 5), train(torch.optim.AdamW(groups(), foreach=True), 5))


@pytest.mark.parametrize("limit", [0.01, 3.0, 1e9])
def test_clipping_is_that_of_clip_grad_norm(limit):
    norms = []
    theirs = torch.optim.AdamW(parameters(), foreach=True)
    expected = train(theirs, 10, before=lambda params: norms.append(clip_grad_norm_(params, limit)))
    optimizer = AdamW(parameters(), max_grad_norm=limit)
    assert equal(train(optimizer, 10), expected)
    assert torch.equal(optimizer.grad_norm, norms[-1])


def test_clipping_leaves_the_gradients_alone():
    params = parameters()
    set_gradients(params, 0, scale=100.0)
    before = [p.grad.clone() for p in params]
    AdamW(params, max_grad_norm=1.0).step()
    assert equal([p.grad for p in params], before)


def test_the_norm_of_bfloat16_gradients_is_taken_in_float32():
    params = parameters(torch.bfloat16)
    set_gradients(params, 0)
    optimizer = AdamW(params, max_grad_norm=1.0)
    optimizer.step()
    exact = torch.cat([p.grad.double().flatten() for p in params]).norm()
    torch.testing.assert_close(optimizer.grad_norm.double(), exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_parameters_have_float32_moments_and_round_once_a_step(dtype):
    params = parameters(dtype)
    optimizer = AdamW(params)
    # The same in float32, with the parameters rounded after each step, is the whole difference.
    shadows = [nn.Parameter(p.detach().float()) for p in params]
    theirs = torch.optim.AdamW(shadows, foreach=True)
    for step in range(10):
        set_gradients(params, step)
        for p, shadow in zip(params, shadows, strict=True):
            shadow.grad = p.grad.float()
        optimizer.step()
        theirs.step()
        with torch.no_grad():
            for shadow in shadows:
                shadow.copy_(shadow.to(dtype))
        assert equal([p.float() for p in params], shadows)
    for p, shadow in zip(params, shadows, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][key].dtype == torch.float32
            assert torch.equal(optimizer.state[p][key], theirs.state[shadow][key])


def test_mixed_types_in_one_group():
    mixed = [
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(2)),
    ]
    optimizer = AdamW(mixed, lr=0.5, weight_decay=0.0, max_grad_norm=1e9)
    for p in mixed:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    # The first step of Adam is lr · sign(gradient) where eps is small.
    for p in mixed:
        torch.testing.assert_close(p.float(), torch.full_like(p, 0.5).float())


def test_parameters_without_a_gradient_stay():
    params = parameters()
    set_gradients(params[:1], 0)
    optimizer = AdamW(params)
    optimizer.step()
    assert equal(params[1:], parameters()[1:])
    assert set(optimizer.state) == {params[0]}
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 1


def saved(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}])
@pytest.mark.parametrize("way", ["ours-ours", "ours-theirs", "theirs-ours"])
def test_resuming_across_a_checkpoint_changes_nothing(way, options):
    def make(params, kind):
        if kind == "ours":
            return AdamW(params, betas=(0.8, 0.9), **options)
        return torch.optim.AdamW(params, betas=(0.8, 0.9), foreach=True, **options)

    writer, reader = way.split("-")
    whole = train(make(parameters(), writer), 8)
    first = make(parameters(), writer)
    params = [nn.Parameter(p.detach().clone()) for p in train(first, 4)]
    second = make(params, reader)
    second.load_state_dict(saved(first))
    assert equal(train(second, 4, start=4), whole)


def test_state_dict_keys_are_torchs():
    ours, theirs = AdamW(parameters()), torch.optim.AdamW(parameters())
    for optimizer in (ours, theirs):
        train(optimizer, 1)
    state, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert {i: {k: (v.dtype, v.shape, v.device) for k, v in s.items()} for i, s in state.items()} == {
        i: {k: (v.dtype, v.shape, v.device) for k, v in s.items()} for i, s in expected.items()
    }
    assert set(ours.state_dict()["param_groups"][0]) == set(theirs.state_dict()["param_groups"][0])


def test_loading_keeps_float32_moments_of_bfloat16_parameters():
    first = AdamW(parameters(torch.bfloat16))
    train(first, 3)
    second = AdamW(parameters(torch.bfloat16))
    seen = []
    second.register_load_state_dict_post_hook(lambda o: seen.extend(s["exp_avg"].dtype for s in o.state.values()))
    second.load_state_dict(saved(first))
    assert seen == [torch.float32] * len(SHAPES)
    for old, new in zip(first.state.values(), second.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_loading_copies():
    first = AdamW(parameters())
    train(first, 1)
    second = AdamW(parameters())
    second.load_state_dict(first.state_dict())
    before = first.state_dict()["state"][0]["exp_avg"].clone()
    train(second, 1)
    assert torch.equal(first.state_dict()["state"][0]["exp_avg"], before)


def test_other_peoples_hooks_are_heard():
    first, second = AdamW(parameters()), AdamW(parameters())
    train(first, 1)

    def forget(_, state_dict):
        return {**state_dict, "state": {}}

    second.register_load_state_dict_pre_hook(forget)
    second.load_state_dict(first.state_dict())
    assert not second.state


def test_copies_and_pickles_keep_their_settings():
    optimizer = AdamW(parameters(), max_grad_norm=0.5)
    train(optimizer, 2)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.max_grad_norm == 0.5
        assert equal(train(other, 2, start=2), train(copy.deepcopy(optimizer), 2, start=2))


def test_closure_and_scheduler():
    (weight,) = params = [nn.Parameter(torch.tensor([2.0]))]
    optimizer = AdamW(params, lr=0.1, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(weight.detach(), torch.tensor([1.9]))
