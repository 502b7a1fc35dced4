"""AdamW's settings on the CPU: what is refused and how, tensors for numbers, scalers, and what PyTorch expects."""

import copy

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1e-3}, "lr must be a finite number of at least 0, not -0.001"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": torch.tensor(-1e-3)}, "lr must be"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"eps": -1.0}, "eps must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"betas": (-0.1, 0.9)}, "betas must be two numbers"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be above 0"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamW(parameters(), **settings)
    if "max_grad_norm" not in settings:
        with pytest.raises(ValueError, match=message):
            AdamW([{"params": parameters(), **settings}])


def test_no_parameters():
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamW([])


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="complex64; expected real numbers"):
        AdamW([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_sparse_gradients_are_refused_before_anything_changes():
    dense, sparse = params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    dense.grad, sparse.grad = torch.ones(3), torch.ones(3).to_sparse()
    optimizer = AdamW(params)
    with pytest.raises(TypeError, match=r"gradient of shape \[3\] is sparse"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(3))


@pytest.mark.parametrize("name", ["params", "named", "groups"])
def test_nothing_has_changed_when_loading_is_refused(name):
    optimizer = AdamW(parameters(), lr=0.5)
    train(optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    saved_state = copy.deepcopy(before)
    if name == "params":
        saved_state["state"][0]["exp_avg"] = torch.zeros(3, 3)
    elif name == "named":
        saved_state["param_groups"][0]["lr"] = -1.0
    else:
        saved_state["param_groups"].append(saved_state["param_groups"][0])
    with pytest.raises(ValueError, match=r"exp_avg is a Tensor of shape \[3, 3\]|learning rate: -1|parameter groups"):
        optimizer.load_state_dict(saved_state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][0][key], before["state"][0][key]) for key in before["state"][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_dtype": "float16"}, "state_dtype must be one of 'float32', 'bfloat16', 'int8', not 'float16'"),
        ({"master_weights": "int16"}, "master_weights must be one of None, 'float32', 'split16', not 'int16'"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'reference', not 'cuda'"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": 1 << 32}, "seed must be an integer"),
        ({"stochastic_rounding": True, "master_weights": "split16"}, "without master weights"),
        ({"differentiable": True}, "differentiable=True is refused"),
    ],
)
def test_options_that_cannot_be_had(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamW(parameters(), **settings)


@pytest.mark.parametrize("settings", [{"stochastic_rounding": True}, {"master_weights": "split16"}])
def test_options_for_bfloat16_refuse_float16_and_leave_no_group_behind(settings):
    optimizer = AdamW(parameters(torch.bfloat16), **settings)
    with pytest.raises(ValueError, match="is float16"):
        optimizer.add_param_group({"params": parameters(torch.float16)})
    assert len(optimizer.param_groups) == 1


def test_the_first_arguments_stand_in_torchs_order():
    ours = AdamW(parameters(), 0.1, (0.5, 0.6), 1e-3, 0.3, True)
    theirs = torch.optim.AdamW(parameters(), 0.1, (0.5, 0.6), 1e-3, 0.3, True)
    assert set(ours.param_groups[0]) == set(theirs.param_groups[0])
    assert all(ours.param_groups[0][k] == v for k, v in theirs.param_groups[0].items() if k != "params")


@pytest.mark.parametrize("lr", [torch.tensor(0.01), torch.tensor([0.01]), torch.tensor(0.01, dtype=torch.float64)])
def test_a_learning_rate_that_is_a_tensor_counts_as_its_value(lr):
    def run(optimizer):
        params = optimizer.param_groups[0]["params"]
        for step in range(4):
            set_gradients(params, step)
            optimizer.step()
            group = optimizer.param_groups[0]
            group["lr"] = group["lr"].mul_(0.5) if isinstance(group["lr"], torch.Tensor) else group["lr"] * 0.5
        return params

    value = lr.item()
    assert equal(run(AdamW(parameters(), lr=lr)), run(torch.optim.AdamW(parameters(), lr=value, foreach=True)))


def test_a_number_in_the_place_of_a_tensor_is_seen():
    optimizer = AdamW(parameters(), lr=torch.tensor(0.5), weight_decay=0.0)
    set_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(optimizer.param_groups[0]["params"])
    optimizer.step()
    assert equal(optimizer.param_groups[0]["params"], before)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradients_are_unscaled_before_they_are_clipped(clip):
    scaled, plain = (AdamW(parameters(), max_grad_norm=clip) for _ in range(2))
    for step in range(3):
        for optimizer, scale in ((scaled, 1024.0), (plain, 1.0)):
            set_gradients(optimizer.param_groups[0]["params"], step, scale)
        scaled.grad_scale, scaled.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        scaled.step()
        plain.step()
        if clip:
            torch.testing.assert_close(scaled.grad_norm, plain.grad_norm)
    for left, right in zip(scaled.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(left, right)


def test_a_step_that_found_infinity_writes_nothing():
    optimizer = AdamW(parameters(), max_grad_norm=1.0)
    train(optimizer, 2)
    params, before = optimizer.param_groups[0]["params"], copy.deepcopy(optimizer.state_dict())
    values = copy.deepcopy(params)
    params[0].grad.fill_(float("nan"))
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    optimizer.step()
    assert equal(params, values)
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before["state"][number][key]) for key, value in state.items())


def test_grad_scaler_skips_and_resumes_as_with_torchs_fused():
    def run(optimizer):
        params = optimizer.param_groups[0]["params"]
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(5):
            set_gradients(params, step, scaler.get_scale())
            scaler.scale(torch.zeros(()))
            if step == 2:
                params[1].grad[0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        return params, scaler.get_scale()

    (ours, our_scale), (theirs, their_scale), (unfused, _) = (
        run(make(parameters(), fused=True if i < 2 else None))
        for i, make in enumerate((AdamW, torch.optim.AdamW, AdamW))
    )
    assert our_scale == their_scale
    for left, middle, right in zip(ours, theirs, unfused, strict=True):
        torch.testing.assert_close(left, middle)
        assert torch.equal(left, right)  # the scaler's own unscaling, exact for a power of two


def test_only_fused_promises_to_scale_by_itself():
    assert not AdamW(parameters())._step_supports_amp_scaling
    assert AdamW(parameters(), fused=True)._step_supports_amp_scaling
    assert copy.deepcopy(AdamW(parameters(), fused=True))._step_supports_amp_scaling
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        AdamW(parameters(), fused=True, foreach=True)


def test_a_backward_pass_notices_that_its_inputs_have_changed():
    (weight,) = params = [nn.Parameter(torch.ones(3))]
    loss = (weight**2).sum()
    weight.grad = torch.ones(3)
    AdamW(params).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_another_type_than_their_parameters():
    params, others = parameters(), parameters()
    set_gradients(params, 0)
    for p, other in zip(params, others, strict=True):
        other.grad_dtype = torch.bfloat16
        other.grad = p.grad.bfloat16()
        p.grad = other.grad.float()
    for some in (params, others):
        AdamW(some, max_grad_norm=0.5).step()
    assert equal(params, others)
