"""PyTorch's own cases for AdamW, from the tests of torch.optim, run against this one.

The inputs are checked against torch's AdamW with the same settings, bit for bit; the errors by type and message. A
case that does not apply is left out by name, with the reason beside it.
"""

import re
import warnings

import pytest
import torch
from torch import nn

from efftrain_kernels import AdamW

pytest.importorskip("expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

(INFO,) = [info for info in optim_db if info.optim_cls is torch.optim.AdamW]
DTYPES = (torch.float32, torch.float64)
CASES = INFO.optim_inputs_func("cpu", torch.float32)
# What torch tests on CUDA alone, because its own AdamW needs `capturable` for it; ours does not.
CAPTURABLE = [
    ("Tensor lr", {"lr": torch.tensor(0.001)}),
    ("Tensor lr, Tensor betas", {"lr": torch.tensor(0.001), "betas": (torch.tensor(0.9), torch.tensor(0.99))}),
    ("Tensor betas of any shape", {"betas": (torch.tensor([[[0.9]]]), torch.tensor([[0.99]])), "amsgrad": True}),
]
ACCEPTED = {
    "lr as Tensor doesn't work with foreach & not capturable": "a tensor is read where it is",
    "betas must be either both floats or both Tensors": "each is read by itself",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "as for the learning rate",
}


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (4,), (), (5, 1, 2))
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def train(optimizer, scheduler=None):
    params = optimizer.param_groups[0]["params"]
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler:
            scheduler.step()
    return params


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=[case.desc for case in CASES])
def test_inputs(case, dtype):
    ours = train(AdamW(parameters(dtype), **case.kwargs))
    theirs = train(torch.optim.AdamW(parameters(dtype), foreach=True, **case.kwargs))
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "settings"), CAPTURABLE, ids=[name for name, _ in CAPTURABLE])
def test_inputs_that_are_tensors(name, settings):
    numbers = {
        key: tuple(x.item() for x in value) if isinstance(value, tuple) else getattr(value, "item", lambda: True)()
        for key, value in settings.items()
        if isinstance(value, (tuple, torch.Tensor))
    }
    ours = train(AdamW(parameters(torch.float32), **settings))
    theirs = train(torch.optim.AdamW(parameters(torch.float32), foreach=True, **{**settings, **numbers}))
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=lambda s: str(len(s)))
def test_schedulers(schedulers):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        optimizer = kind(parameters(torch.float32), lr=0.1, foreach=True)
        for scheduler in [make(optimizer) for make in schedulers]:
            train(optimizer, scheduler)
        results.append((optimizer.param_groups[0]["params"], optimizer.param_groups[0]["lr"]))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(p, q) for p, q in zip(results[0][0], results[1][0], strict=True))


ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)


@pytest.mark.parametrize("case", ERRORS, ids=[case.optimizer_error_input.desc for case in ERRORS])
def test_errors(case):
    given = case.optimizer_error_input
    params = parameters(torch.float32) if given.params is None else given.params
    if given.desc in ACCEPTED:
        assert train(AdamW(params, **given.kwargs))
    elif issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            AdamW(params, **given.kwargs)
    else:
        with pytest.raises(case.error_type, match=case.error_regex):
            AdamW(params, **given.kwargs)


def test_every_exemption_is_a_case():
    assert set(ACCEPTED) <= {re.sub(r"\s+", " ", case.optimizer_error_input.desc) for case in ERRORS}
