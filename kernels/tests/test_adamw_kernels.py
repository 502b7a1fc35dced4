"""The Triton kernels, in the interpreter or on a device, against float64 and against the PyTorch reference.

Shapes are such that each form has aligned tensors and ragged ones, one and several chunks, and 8-bit moments with a
short last block.
"""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from efftrain_kernels import AdamW
from efftrain_kernels._optimizer import layout, tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(), (113,), (16, 300), (4129,)]
SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS = (
    {}, {"amsgrad": True, "maximize": True, "max_grad_norm": 1.0}, {"master_weights": "float32"},
    {"master_weights": "split16", "amsgrad": True}, {"stochastic_rounding": True, "max_grad_norm": 0.5},
)  # fmt: skip
STATES = ("float32", "bfloat16", "int8")


def possible(dtype, options):
    for_bfloat16 = options.get("stochastic_rounding") or options.get("master_weights") == "split16"
    return dtype == torch.bfloat16 or not (for_bfloat16 and dtype == torch.float16)


def case(dtype, state_dtype, options):
    """bfloat16 with every option is quick enough; the other types differ in one load and one store."""
    name = f"{layout.SHORT[dtype]}-{state_dtype}-{'-'.join(map(str, options.values())) or 'plain'}"
    return pytest.param(
        dtype, state_dtype, options, id=name, marks=() if dtype == torch.bfloat16 or not options else pytest.mark.slow
    )


CASES = [case(*values) for values in product(DTYPES, STATES, OPTIONS) if possible(values[0], values[2])]


def make(dtype, backend, **options):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype)) for shape in SHAPES]
    return AdamW(params, backend=backend, **{**SETTINGS, **options})


def step(optimizer, number, grad_dtype=None):
    generator = torch.Generator().manual_seed(100 + number)
    for p in optimizer.param_groups[0]["params"]:
        if grad_dtype:
            p.grad_dtype = grad_dtype
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE, grad_dtype or p.dtype)
    optimizer.step()


def params_of(optimizer):
    return optimizer.param_groups[0]["params"]


def exact(optimizer, steps, *, amsgrad=False, maximize=False, max_grad_norm=None):
    """AdamW in float64, written out from the paper: arXiv:1711.05101, algorithm 2."""
    lr, (beta1, beta2) = SETTINGS["lr"], SETTINGS["betas"]
    values = [p.detach().cpu().double() for p in params_of(optimizer)]
    firsts, seconds, largest = ([torch.zeros_like(p) for p in values] for _ in range(3))
    for number in range(steps):
        generator = torch.Generator().manual_seed(100 + number)
        drawn = [torch.randn(p.shape, generator=generator) for p in values]
        grads = [g.to(p.dtype).double() for g, p in zip(drawn, params_of(optimizer), strict=True)]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        factor = min(1.0, max_grad_norm / (norm.item() + 1e-6)) if max_grad_norm else 1.0
        for i, grad in enumerate(grads):
            g = grad * factor * (-1 if maximize else 1)
            firsts[i] = beta1 * firsts[i] + (1 - beta1) * g
            seconds[i] = beta2 * seconds[i] + (1 - beta2) * g**2
            largest[i] = torch.maximum(largest[i], seconds[i])
            first = firsts[i] / (1 - beta1 ** (number + 1))
            second = (largest if amsgrad else seconds)[i] / (1 - beta2 ** (number + 1))
            values[i] = values[i] * (1 - lr * SETTINGS["weight_decay"])
            values[i] = values[i] - lr * first / (second.sqrt() + SETTINGS["eps"])
    return values


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"maximize": True}, {"max_grad_norm": 1.0}, {"max_grad_norm": 1e9}],
    ids=["plain", "amsgrad", "maximize", "clipped", "unclipped"],
)
def test_float32_is_as_near_to_float64_as_torch(options):
    ours, plain = make(torch.float32, "triton", **options), make(torch.float32, "reference", **options)
    truth = exact(ours, 3, **options)
    for number in range(3):
        step(ours, number)
        step(plain, number)
    for p, q, t in zip(params_of(ours), params_of(plain), truth, strict=True):
        rounding = ((t.float() + 0.3) - 0.3 - t.float()).abs().max()
        bound = 2 * (q.detach().cpu().double() - t).abs().max() + 2 * rounding
        assert (p.detach().cpu().double() - t).abs().max() <= bound


@pytest.mark.parametrize("master_weights", ["float32", "split16"])
def test_master_weights_are_as_near_to_float64_as_float32_is(master_weights):
    ours = make(torch.bfloat16, "triton", master_weights=master_weights)
    truth = exact(ours, 3)
    for number in range(3):
        step(ours, number)
    for p, full, t in zip(params_of(ours), ours.master_parameters(), truth, strict=True):
        # Three steps of some ten float32 operations each on weights below 4.
        assert (full.cpu().double() - t).abs().max() <= 30 * 4 * 2**-24
        assert torch.equal(p.detach().float(), full.bfloat16().float())


@pytest.mark.parametrize(("dtype", "state_dtype", "options"), CASES)
def test_kernels_and_reference_take_the_same_step(dtype, state_dtype, options):
    ours, plain = (make(dtype, backend, state_dtype=state_dtype, **options) for backend in ("triton", "reference"))
    step(plain, 0)
    ours.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch._foreach_copy_(params_of(ours), params_of(plain))
    for optimizer in (ours, plain):
        step(optimizer, 1)
    unequal, count = 0, 0
    for p, q in zip(params_of(ours), params_of(plain), strict=True):
        spacing = torch.finfo(dtype).eps
        torch.testing.assert_close(p, q, rtol=2 * spacing, atol=1e-6)  # the next number, where one rounded otherwise
        assert ours.state[p].keys() == plain.state[q].keys()
        for key, value in plain.state[q].items():
            mine = ours.state[p][key]
            assert mine.dtype == value.dtype
            if key.startswith("remainder"):
                continue  # compared as master weights below
            coded = value.dtype in (torch.int8, torch.uint8)
            loose = {"rtol": 2**-7, "atol": 1e-8} if value.dtype == torch.bfloat16 else {"rtol": 2e-6, "atol": 1e-7}
            torch.testing.assert_close(mine.int() if coded else mine, value.int() if coded else value,
                                       **({"rtol": 0, "atol": 1} if coded else loose))  # fmt: skip
            if coded or value.dtype == torch.bfloat16:
                unequal, count = unequal + (mine != value).sum().item(), count + value.numel()
    # The random bits are the same, so that a rounding differs only where float32 does: in a word out of hundreds.
    assert unequal <= count / 100
    for mine, theirs in zip(ours.master_parameters(), plain.master_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "grad_dtype"), [(left, right) for left, right in product(DTYPES, DTYPES) if left != right]
)
def test_gradients_of_every_type(dtype, grad_dtype):
    ours, plain = make(dtype, "triton", max_grad_norm=1.0), make(dtype, "reference", max_grad_norm=1.0)
    for optimizer in (ours, plain):
        step(optimizer, 0, grad_dtype)
    torch.testing.assert_close(ours.grad_norm, plain.grad_norm, rtol=1e-6, atol=0.0)
    for p, q in zip(params_of(ours), params_of(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("scale", "clip"), [(1024.0, None), (3.0, 0.5)])
def test_scaled_gradients(scale, clip):
    ours, plain = (make(torch.float16, backend, max_grad_norm=clip) for backend in ("triton", "reference"))
    for optimizer in (ours, plain):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale, device=DEVICE), torch.tensor(0.0, device=DEVICE)
        step(optimizer, 0)
    if clip:
        torch.testing.assert_close(ours.grad_norm, plain.grad_norm, rtol=1e-6, atol=0.0)
    for p, q in zip(params_of(ours), params_of(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("state_dtype", [pytest.param(x, marks=pytest.mark.slow) for x in STATES[:2]] + ["int8"])
def test_nothing_is_written_where_infinity_was_found(state_dtype):
    optimizer = make(torch.bfloat16, "triton", state_dtype=state_dtype, master_weights="split16", amsgrad=True)
    step(optimizer, 0)
    before = copy.deepcopy((params_of(optimizer), optimizer.state_dict()["state"]))
    for p in params_of(optimizer):
        p.grad.fill_(float("nan"))
    optimizer.found_inf = torch.tensor(1.0, device=DEVICE)
    with np.errstate(all="ignore"):  # the interpreter's arithmetic is numpy's
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), before[0], strict=True))
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][number][key]) for key, value in state.items())


@pytest.mark.parametrize("master_weights", [None, "float32", "split16"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_what_is_no_number_stays_none(stochastic, master_weights):
    if stochastic and master_weights:
        pytest.skip("refused together")
    optimizer = make(torch.bfloat16, "triton", master_weights=master_weights, stochastic_rounding=stochastic)
    for value, seen in ((0x7FFF, torch.isnan), (-1, torch.isnan)):
        for p in params_of(optimizer):
            p.grad = torch.full(p.shape, value, dtype=torch.int16, device=DEVICE).view(torch.bfloat16)
        with np.errstate(all="ignore"):
            optimizer.step()
        assert all(seen(p).all() for p in params_of(optimizer))
        assert all(seen(p).all() for p in optimizer.master_parameters())


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_the_nan_whose_bits_carry_into_the_sign(backend):
    p = nn.Parameter(torch.ones(16, dtype=torch.bfloat16, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p], backend=backend, master_weights="split16", weight_decay=0.0)
    optimizer.step()
    with torch.no_grad():
        p.fill_(-0.0)  # 0x8000 and a remainder of -1 make 0x7FFFFFFF, the NaN that devices compute
    optimizer.state[p]["remainder"].fill_(-1)
    with np.errstate(all="ignore"):
        optimizer.step()
    assert p.isnan().all()
    assert optimizer.master_parameters()[0].isnan().all()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_ties_are_rounded_to_even(backend):
    start = torch.tensor([1.0, 1.0 - 2**-8]).repeat(8)
    p = nn.Parameter(start.to(DEVICE, torch.bfloat16))
    p.grad = torch.ones_like(p)
    with np.errstate(all="ignore"):
        # The first step is lr exactly: half the spacing below 1, twice a tie, between 1 and 1 - 2⁻⁸ and one below it.
        AdamW([p], lr=2**-9, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, backend=backend).step()
    assert p.tolist() == [1.0, 1.0 - 2**-7] * 8


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed):
        optimizer = make(torch.bfloat16, "triton", state_dtype="int8", stochastic_rounding=True, seed=seed)
        step(optimizer, 0)
        return params_of(optimizer)

    one, same, other = run(1), run(1), run(2)
    assert all(torch.equal(p, q) for p, q in zip(one, same, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("state_dtype", STATES[1:])
def test_resuming_gives_the_bits_of_training_on(state_dtype):
    whole = make(torch.bfloat16, "triton", state_dtype=state_dtype, stochastic_rounding=True)
    step(whole, 0)
    params = [nn.Parameter(p.detach().clone()) for p in params_of(whole)]
    resumed = AdamW(params, backend="triton", state_dtype=state_dtype, stochastic_rounding=True, **SETTINGS)
    resumed.load_state_dict(whole.state_dict())
    for optimizer in (whole, resumed):
        step(optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip(params, params_of(whole), strict=True))


@pytest.mark.parametrize("shift", [0, 1])
def test_aligned_and_ragged_kernels_give_the_same_bits(shift):
    flat = torch.linspace(-2, 2, 4096 + 16, device=DEVICE, dtype=torch.bfloat16)
    results = []
    for start in (0, shift):
        p = nn.Parameter(flat.clone())
        moved = nn.Parameter(torch.empty(4096 + 17, device=DEVICE, dtype=torch.bfloat16)[start : start + 4112].copy_(p))
        moved.grad = torch.sin(torch.arange(4112.0, device=DEVICE)).bfloat16()
        AdamW([moved], lr=0.1, backend="triton", state_dtype="int8", stochastic_rounding=True).step()
        results.append(moved.detach().clone())
    assert torch.equal(*results)


def test_one_launch_serves_all_aligned_tensors(monkeypatch):
    from efftrain_kernels._kernels.launch import Launch

    optimizer, launched = make(torch.float32, "triton", max_grad_norm=1.0), []
    monkeypatch.setattr(Launch, "run", lambda self: launched.append((self.kernel.__name__, self.grid)))
    step(optimizer, 0)
    # 16 · 300 elements are a multiple of 16: three chunks of 2048; 1, 113 and 4129 are not. One program each a norm.
    assert launched == [
        ("_square_sums", (1,)), ("_square_sums", (3,)), ("_total", (1,)), ("_coefficients", (1,)), ("_update", (3,)),
        ("_update", (5,)),
    ]  # fmt: skip


def test_strides_other_than_rows_are_followed():
    results = []
    for backend in ("triton", "reference"):
        base = torch.randn(80, 64, generator=torch.Generator().manual_seed(3)).to(DEVICE)
        turned, gaps = nn.Parameter(base.clone().t()), nn.Parameter(base.clone()[:, ::2])
        turned.grad, gaps.grad = torch.ones(64, 80, device=DEVICE), torch.ones(80, 32, device=DEVICE)
        turned.grad[3] = -5.0
        optimizer = AdamW([turned, gaps], lr=0.1, backend=backend, state_dtype="int8", max_grad_norm=1.0)
        optimizer.step()
        assert optimizer.state[turned]["exp_avg"].stride() == turned.stride()
        results.append((turned.detach(), gaps.detach()))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_groups_amsgrad_and_float64_in_one_optimizer():
    results = []
    for backend in ("triton", "reference"):
        first, second, third, fourth = (nn.Parameter(torch.full((40,), 2.0, device=DEVICE)) for _ in range(4))
        double = nn.Parameter(torch.full((7,), 2.0, dtype=torch.float64, device=DEVICE))
        groups = [
            {"params": [first, double], "lr": 0.5}, {"params": [second], "amsgrad": True, "weight_decay": 0.5},
            {"params": [third], "betas": (0.0, 0.5), "maximize": True, "lr": torch.tensor(0.25, device=DEVICE)},
            {"params": [fourth]},
        ]  # fmt: skip
        optimizer = AdamW(groups, backend=backend, max_grad_norm=3.0)
        for number in range(3):
            for p in (first, second, third, double):
                p.grad = torch.full_like(p, 1.0 + number)
            optimizer.step()
        assert fourth not in optimizer.state
        results.append([p.detach() for p in (first, second, third, double, fourth)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_new_hyper_parameters_and_addresses_are_seen():
    results = []
    for backend in ("triton", "reference"):
        optimizer = make(torch.float32, backend)
        for number in range(3):
            step(optimizer, number)  # new gradients, so new addresses
            group = optimizer.param_groups[0]
            group["lr"], group["betas"], group["weight_decay"] = (
                0.1 / (number + 1),
                (0.5, 0.9 - number / 10),
                number / 9,
            )
        results.append(params_of(optimizer))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_tables_are_kept_while_addresses_stay():
    optimizer = make(torch.float32, "triton")
    step(optimizer, 0)
    optimizer.step()
    kept = list(tables._tables.latest)
    optimizer.step()
    assert list(tables._tables.latest) == kept
    assert tables._tables.held <= tables._tables.capacity


def test_late_steps_are_corrected_in_double():
    # At step 10⁶ + 1 both corrections are 1; at step 2 that of beta2 = 0.9999 is 2e-4, where float32 keeps 3 digits.
    for count, beta2 in ((1e6, 0.999), (1.0, 0.9999), (999.0, 0.999)):
        p = nn.Parameter(torch.zeros(16, device=DEVICE))
        p.grad = torch.ones(16, device=DEVICE)
        optimizer = AdamW([p], lr=1.0, betas=(0.0, beta2), eps=0.0, weight_decay=0.0, backend="triton")
        zeros = {"exp_avg": torch.zeros(16), "exp_avg_sq": torch.zeros(16), "step": torch.tensor(count)}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: zeros}})
        with np.errstate(all="ignore"):  # beyond the sixteenth element nothing is divided by nothing, and not stored
            optimizer.step()
        expected = -(((1 - beta2 ** (count + 1)) / (1 - beta2)) ** 0.5)
        torch.testing.assert_close(p.detach().cpu().double(), torch.full((16,), expected, dtype=torch.float64),
                                   rtol=3e-7, atol=0.0)  # fmt: skip


def test_every_form_is_shipped_once():
    from efftrain_kernels._kernels import adamw

    names = [name for name, _ in adamw.shipped()]
    assert len(names) == len(set(names))
    # Forms: 6, 8 times and 4 (types and weights) x 3 (moments) x 2 x 2; 6 norms, their total, 8 coefficients.
    assert len(names) == (2 + 8 + 4) * 12 + 6 + 1 + 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the CPU")
def test_the_kernels_on_a_cpu_need_the_interpreter(monkeypatch):
    from efftrain_kernels._kernels import launch

    monkeypatch.setattr(launch, "interpreting", lambda: False)
    with pytest.raises(ValueError, match="is on the CPU; backend='triton' needs CUDA, or TRITON_INTERPRET=1"):
        make(torch.float32, "triton")
