"""Smaller state: that it trains, that it travels to torch.optim.AdamW and back, and that nothing loses bits unasked."""

import copy

import pytest
import torch
from torch import nn

from efftrain_kernels import AdamW

SHAPES = [(7, 5), (), (64, 80)]
FORMATS = [
    {"state_dtype": "bfloat16"}, {"state_dtype": "int8"}, {"master_weights": "float32"},
    {"master_weights": "split16"}, {"state_dtype": "int8", "master_weights": "split16", "amsgrad": True},
]  # fmt: skip


def parameters(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(optimizer, steps, start=0):
    params = optimizer.param_groups[0]["params"]
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return params


def equal_states(left, right):
    return all(
        left[i].keys() == right[i].keys() and all(torch.equal(left[i][key], right[i][key]) for key in left[i])
        for i in (*left, *right)
    )


@pytest.mark.parametrize("options", [*FORMATS, {"stochastic_rounding": True, "state_dtype": "bfloat16"}])
def test_resuming_changes_nothing(options):
    whole = AdamW(parameters(), **options)
    train(whole, 2)
    params = copy.deepcopy(whole.param_groups[0]["params"])
    resumed = AdamW(params, **options)
    resumed.load_state_dict(whole.state_dict())
    assert equal_states(resumed.state_dict()["state"], whole.state_dict()["state"])
    for left, right in zip(train(whole, 2, start=2), train(resumed, 2, start=2), strict=True):
        assert torch.equal(left, right)
    assert equal_states(resumed.state_dict()["state"], whole.state_dict()["state"])


@pytest.mark.parametrize("options", FORMATS)
def test_types_of_the_state(options):
    optimizer = AdamW(parameters(), **options)
    small, _, large = (optimizer.state[p] for p in train(optimizer, 1))
    narrow = options.get("state_dtype", "float32")
    first = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[narrow]
    assert large["exp_avg"].dtype == first
    assert small["exp_avg"].dtype == (torch.float32 if narrow == "int8" else first)
    assert ("exp_avg_scale" in large) == (narrow == "int8")
    master = {None: set(), "float32": {"master"}, "split16": {"remainder"}}[options.get("master_weights")]
    assert {"master", "remainder"} & set(large) == master


def test_what_is_exact_in_the_format_survives_the_way_to_torch_and_back():
    for options in FORMATS:
        amsgrad = options.get("amsgrad", False)
        first = AdamW(parameters(), **options)
        params = train(first, 3)
        plain = copy.deepcopy(first.to_torch_state_dict())
        theirs = torch.optim.AdamW([nn.Parameter(p) for p in first.master_parameters()], amsgrad=amsgrad)
        theirs.load_state_dict(plain)
        moments = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
        for state in theirs.state.values():
            assert set(state) == {"step", *moments}
            assert {state[key].dtype for key in moments} == {torch.float32}
        back = AdamW(copy.deepcopy(params), **options)
        back.from_torch_state_dict(theirs.state_dict())
        again = back.to_torch_state_dict()["state"]
        for number, state in plain["state"].items():
            for key, value in state.items():
                torch.testing.assert_close(again[number][key], value, rtol=1e-6, atol=0.0)


def test_torch_goes_on_where_master_weights_stopped():
    ours = AdamW(parameters(), master_weights="split16", weight_decay=0.1)
    train(ours, 3)
    theirs = torch.optim.AdamW([nn.Parameter(p) for p in ours.master_parameters()], weight_decay=0.1, foreach=True)
    theirs.load_state_dict(ours.to_torch_state_dict())
    generator = torch.Generator().manual_seed(9)
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        p.grad = torch.randn(p.shape, generator=generator).bfloat16()
        q.grad = p.grad.float()
    ours.step()
    theirs.step()
    assert all(
        torch.equal(p, q) for p, q in zip(ours.master_parameters(), theirs.param_groups[0]["params"], strict=True)
    )


@pytest.mark.parametrize("master_weights", ["float32", "split16"])
def test_master_weights_are_float32_training_bit_for_bit(master_weights):
    ours = AdamW(parameters(), master_weights=master_weights, lr=1e-5)  # most of a step is below a bfloat16
    theirs = torch.optim.AdamW([nn.Parameter(p.detach().float()) for p in parameters()], lr=1e-5, foreach=True)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            q.grad = p.grad.float()
        ours.step()
        theirs.step()
    for p, full, q in zip(parameters(), ours.master_parameters(), theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(full, q)
        assert not torch.equal(full, p.float())


def test_parameters_of_torchs_bfloat16_state_are_cast_up():
    theirs = torch.optim.AdamW(parameters(), foreach=True)
    train(theirs, 2)
    ours = AdamW(parameters())
    ours.load_state_dict(theirs.state_dict())
    for state, old in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert state["exp_avg"].dtype == torch.float32
        assert torch.equal(state["exp_avg"], old["exp_avg"].float())
        assert state["step"].dtype == torch.float32


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        ({}, {"state_dtype": "bfloat16"}, "exp_avg is torch.float32, but this optimizer keeps torch.bfloat16"),
        ({}, {"state_dtype": "int8"}, "exp_avg is torch.float32, but this optimizer keeps torch.int8"),
        ({"state_dtype": "int8"}, {}, "exp_avg is torch.int8, but this optimizer keeps torch.float32"),
        ({}, {"master_weights": "split16"}, "has no master weights saved, but master_weights='split16'"),
        ({"master_weights": "float32"}, {}, "has 'float32' master weights saved, but master_weights=None"),
    ],
)
def test_other_formats_are_converted_only_when_asked(saved, loading, message):
    first = AdamW(parameters(), **saved)
    train(first, 2)
    second = AdamW(parameters(), **loading)
    with pytest.raises(ValueError, match=message):
        second.load_state_dict(first.state_dict())
    assert not second.state
    second.from_torch_state_dict(first.to_torch_state_dict())
    train(second, 1)


def test_eight_bit_state_without_its_scales_or_in_other_strides_is_refused():
    first = AdamW(parameters(), state_dtype="int8")
    train(first, 1)
    broken = copy.deepcopy(first.state_dict())
    del broken["state"][2]["exp_avg_sq_scale"]
    with pytest.raises(ValueError, match="exp_avg_sq_scale must have 20 elements for a parameter of 5120"):
        AdamW(parameters(), state_dtype="int8").load_state_dict(broken)
    turned = parameters()
    turned[2] = nn.Parameter(torch.randn(80, 64).t().bfloat16())
    with pytest.raises(ValueError, match="other strides"):
        AdamW(turned, state_dtype="int8").load_state_dict(first.state_dict())


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("load", ["load_state_dict", "from_torch_state_dict"])
def test_state_that_lacks_a_part_is_refused_by_name(load, key):
    first, second = AdamW(parameters()), AdamW(parameters())
    train(first, 1)
    broken = copy.deepcopy(first.state_dict())
    del broken["state"][2][key]
    with pytest.raises(ValueError, match=rf"parameter 2, of shape \[64, 80\], has no {key};"):
        getattr(second, load)(broken)
    assert not second.state


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_a_second_moment_does_not_stall(state_dtype):
    # A constant gradient of 1 from 1/2: after t steps the second moment is 1 − 0.999ᵗ / 2, a change of 1/2000 a step,
    # which rounding to the nearest loses in bfloat16.
    p = nn.Parameter(torch.zeros(64, 64))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p], lr=0.0, state_dtype=state_dtype)
    half = {"step": torch.tensor(1.0), "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.full_like(p, 0.5)}
    optimizer.from_torch_state_dict({**optimizer.state_dict(), "state": {0: half}})
    for _ in range(60):
        optimizer.step()
    moment = optimizer.to_torch_state_dict()["state"][0]["exp_avg_sq"]
    expected = 1 - 0.999**60 / 2
    # Every step adds a rounding error of at most a step of the format, 2⁻⁹ or 4/255, independent of the others.
    spread = {"bfloat16": 2**-9, "int8": 4 / 255}[state_dtype] * 60**0.5
    assert abs(moment.double().mean().item() - expected) < 5 * spread / 64
    assert torch.tensor(0.5 * 0.999 + 0.001).bfloat16() == 0.5
    assert expected > 0.529


@pytest.mark.parametrize("stochastic_rounding", [False, True])
def test_stochastic_rounding_moves_weights_that_the_nearest_would_leave(stochastic_rounding):
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p], lr=1e-4, weight_decay=0.0, stochastic_rounding=stochastic_rounding)
    for _ in range(100):
        optimizer.step()
    mean = p.detach().double().mean().item()
    # 100 steps of 1e-4 against a spacing of 2⁻⁸ below 1: a sum of roundings with a variance of 1e-4 · 2⁻⁸ each.
    assert mean == 1.0 if not stochastic_rounding else abs(mean - 0.99) < 5 * (100 * 1e-4 * 2**-8 / 4096) ** 0.5


@pytest.mark.slow
def test_losses_of_smaller_states_follow_those_of_float32():
    def loss_after(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        x = torch.randn(256, 16)
        y = torch.sin(x.sum(1, keepdim=True))
        optimizer = AdamW(model.parameters(), **{"lr": 3e-3, **options})
        for _ in range(40):
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    full, untrained = loss_after(), loss_after(lr=0.0)
    assert full < 0.6 * untrained
    for state_dtype in ("bfloat16", "int8"):
        assert abs(loss_after(state_dtype=state_dtype) - full) < 0.02 * untrained


def test_copies_keep_their_format():
    optimizer = AdamW(parameters(), state_dtype="int8", master_weights="split16", seed=3)
    train(optimizer, 1)
    other = copy.deepcopy(optimizer)
    for left, right in zip(train(optimizer, 2, start=1), train(other, 2, start=1), strict=True):
        assert torch.equal(left, right)
