"""The tests that a GPU is to be put through, run in the interpreter: right kernels pass, planted faults are found."""

import math

import pytest
import torch

from efftrain_kernels._kernels.configs import Config, Key
from efftrain_kernels.evidence import accuracy, exact
from efftrain_kernels.evidence.attention_peers import Ready, ours
from efftrain_kernels.evidence.cases import inputs

CPU = torch.device("cpu")
HALF = (torch.float16,)
SMALL = Config(32, 32, 4, 2)


def problems(key, length=64):
    return exact.problems(key, length=length, dtypes=HALF)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "kind"),
    [("forward", "full"), ("forward", "capped"), ("keys", "full"), ("keys", "masked"), ("queries", "masked")],
)
def test_kernels_are_exact_on_integers(kernel, kind):
    key = Key(90, kernel, 64, kind, "half")
    tried = problems(key)
    findings = exact.try_config(key, SMALL, CPU, tried)
    assert len(findings) == len(tried) * (1 if kernel == "queries" else 2)
    assert all(finding.right for finding in findings), findings


@pytest.mark.parametrize("pattern", ["pairs", "dense", "zero_q", "zero_k"])
def test_every_arrangement_is_about_something(pattern):
    """The truth that kernels are held to is not all zeros, and is what the arrangement promises."""
    problem = exact.Problem(pattern, 64, 64, torch.bfloat16, (None, 0) if pattern == "pairs" else (None, None))
    given, scale = exact.tensors(problem, CPU)
    true = exact._truth(given, scale, problem.band)
    zero = {"zero_q": {"out", "dk"}, "zero_k": {"out", "dq"}}.get(pattern, set())
    for name, x in true.items():
        assert (x.abs().max() < 1e-9) == (name in zero), name
    rounded = {name: x.bfloat16().double() for name, x in true.items()}
    if pattern != "dense":
        torch.testing.assert_close(rounded["dv"], true["dv"], rtol=0, atol=1e-9)
    if pattern == "pairs":
        assert torch.allclose(true["out"], true["out"].mul(2).round().div(2), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kernel", "name"), [("forward", "out"), ("keys", "dk"), ("keys", "dv"), ("queries", "dq")])
@pytest.mark.parametrize("fault", ["one bit", "not written"])
def test_a_planted_fault_is_found(monkeypatch, kernel, name, fault):
    run = exact.run

    def faulty(*arguments):
        found = run(*arguments)
        flat = found[name].view(-1)
        place = int(flat.abs().argmax())
        flat[place] = math.nan if fault == "not written" else torch.nextafter(flat[place], flat.new_tensor(math.inf))
        return found

    monkeypatch.setattr(exact, "run", faulty)
    key = Key(90, kernel, 64, "masked", "half")
    findings = exact.try_config(key, SMALL, CPU, problems(key)[:1])
    assert [finding.right for finding in findings if finding.tensor == name] == [False]


def test_a_key_that_is_lost_is_found(monkeypatch):
    """What a register overwritten too early does: one tile of values is another's."""
    run = exact.run

    def faulty(key, target, given, call):
        q, k, v, grad = given
        half = v.shape[2] // 2
        return run(key, target, [q, k, torch.cat([v[:, :, half:], v[:, :, half:]], 2), grad], call)

    monkeypatch.setattr(exact, "run", faulty)
    key = Key(90, "forward", 64, "full", "half")
    findings = exact.try_config(key, SMALL, CPU, problems(key)[:2])
    assert not any(finding.right for finding in findings if finding.tensor == "out")


def test_codes_need_room():
    with pytest.raises(ValueError, match="head_dim 16 has no room for the codes of 65536 keys"):
        exact.tensors(exact.Problem("pairs", 16, 1 << 16, torch.float16), CPU)


CASES = {case.name: case for case in accuracy.cases(torch.float16, small=True)}


@pytest.mark.parametrize("name", ["all at once", "packed", "1 on 1"])
def test_kernels_stay_within_twice_the_plain_error(name):
    findings = accuracy.compare(CASES[name], CPU)
    assert findings
    assert all(finding.right for finding in findings), findings


@pytest.mark.parametrize("error", [1.05, math.nan])
def test_an_error_beyond_it_is_found(error):
    def peer(case, given):
        ready = ours("reference")(case, given)
        return Ready(lambda: ready.forward() * error, ready.leaves, ready.grad, ready.canonical)

    assert not any(finding.right for finding in accuracy.compare(CASES["causal"], CPU, peer))


def test_plain_attention_is_attention():
    """The plain computation is the reference's, in a type of few digits: in float64 they agree."""
    from efftrain_kernels.evidence.bench_attention import truth

    for case in accuracy.cases(torch.float64, small=True):
        given = inputs(case, CPU)
        for near, true in zip(accuracy.plain(case, given), truth(case, given), strict=True):
            torch.testing.assert_close(near.double(), true, rtol=1e-6, atol=1e-9, msg=case.name)


def test_repeats_count_those_that_differ(monkeypatch):
    case = CASES["causal"]
    assert accuracy.attention_repeats(case, CPU, 1) == 0
    results = iter([[torch.zeros(2)], [torch.zeros(2)], [torch.ones(2)], [torch.zeros(2)]])
    monkeypatch.setattr(accuracy, "_trained", lambda *_: next(results))
    assert accuracy.adamw_repeats(CPU, 3, numel=7) == 1
