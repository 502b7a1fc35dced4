"""AdamW with float32 master weights against AdamW written out by hand, and what surrounds an optimizer."""

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import efftrain_kernels
from efftrain.training.precision.master_weights import MasterWeightsAdamW

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in ((5, 3), (7,))]


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()


def written_out(master: Tensor, m: Tensor, v: Tensor, gradient: Tensor, step: int) -> None:
    """One step of arXiv:1711.05101, algorithm 2, in float32, in place."""
    (beta1, beta2), lr = SETTINGS["betas"], SETTINGS["lr"]
    g = gradient.float()
    master.mul_(1 - lr * SETTINGS["weight_decay"])
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(SETTINGS["eps"])
    master.addcdiv_(m, root, value=-lr / (1 - beta1**step))


def test_steps_are_those_of_a_float32_master_rounded_to_bf16_bit_for_bit():
    parameters = weights()
    optimizer = MasterWeightsAdamW(parameters, **SETTINGS)
    states = [(p.detach().float(), torch.zeros(p.shape), torch.zeros(p.shape)) for p in parameters]
    for step in range(1, 6):
        gradients(parameters, step)
        optimizer.step()
        for parameter, (master, m, v) in zip(parameters, states, strict=True):
            assert parameter.grad is not None
            written_out(master, m, v, parameter.grad, step)
            assert torch.equal(parameter, master.bfloat16())
            assert torch.equal(optimizer.state[parameter]["master"], master)
            assert optimizer.state[parameter]["exp_avg_sq"].dtype == torch.float32


def test_it_agrees_with_the_kernels_package():
    ours, theirs = weights(), weights()
    first = MasterWeightsAdamW(ours, **SETTINGS)
    second = efftrain_kernels.AdamW(theirs, master_weights="float32", **SETTINGS)
    for step in range(1, 30):
        for parameters, optimizer in ((ours, first), (theirs, second)):
            gradients(parameters, step)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first.state[p]["master"], second.state[q]["master"], rtol=1e-6, atol=1e-7)


def test_updates_below_the_resolution_of_bf16_add_up_with_masters_alone():
    """200 steps of 1e-4 from 1.0, where bf16's next number below is 1 − 2⁻⁸: each one would be rounded away."""
    settings = {**SETTINGS, "lr": 1e-4, "weight_decay": 0.0}
    found = {}
    for name, kind in (("masters", MasterWeightsAdamW), ("none", torch.optim.AdamW)):
        parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = kind([parameter], **settings)
        for _ in range(200):
            parameter.grad = torch.ones(4, dtype=torch.bfloat16)
            optimizer.step()
        found[name] = parameter.detach().float()
    assert torch.equal(found["none"], torch.ones(4))
    expected = torch.full((4,), 1 - 200 * 1e-4)  # a constant gradient moves Adam by lr a step
    assert torch.equal(found["masters"], expected.bfloat16().float())


@pytest.mark.parametrize("through_file", [False, True])
def test_a_saved_state_goes_on_bit_for_bit(tmp_path, through_file: bool):
    parameters = weights()
    optimizer = MasterWeightsAdamW(parameters, **SETTINGS)
    gradients(parameters, 1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    if through_file:
        torch.save(saved, tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = [nn.Parameter(p.detach().clone()) for p in parameters]
    other = MasterWeightsAdamW(resumed, lr=1.0)
    other.load_state_dict(saved)
    for step in (2, 3):
        for members, each in ((parameters, optimizer), (resumed, other)):
            gradients(members, step)
            each.step()
    assert other.param_groups[0]["lr"] == SETTINGS["lr"]
    for p, q in zip(parameters, resumed, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["master"], other.state[q]["master"])
        assert optimizer.state[p]["master"].data_ptr() != other.state[q]["master"].data_ptr()


def test_what_has_no_gradient_stays_and_a_closure_is_called():
    first, second = weights()
    optimizer = MasterWeightsAdamW([{"params": [first]}, {"params": [second], "weight_decay": 0.0}], **SETTINGS)
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert torch.equal(second, before)
    assert second not in optimizer.state
    optimizer.zero_grad()
    assert first.grad is None


def test_it_can_be_copied_without_a_warning():
    optimizer = MasterWeightsAdamW(weights(), **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(optimizer).defaults["betas"] == SETTINGS["betas"]
