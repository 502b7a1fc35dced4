"""The benchmarks' bookkeeping, and on the CPU that they run; no time is looked at."""

import json
import math
from dataclasses import replace

import pytest
import torch

from efftrain_kernels.evidence import attention_peers, bench, bench_adamw, bench_attention, cases, measure, tune
from efftrain_kernels.evidence.attention_peers import ours
from efftrain_kernels.evidence.bench import Bench, Entry, Work
from efftrain_kernels.evidence.measure import Ceilings

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """A bench that makes one call of everything, on a device whose ceilings are known."""
    monkeypatch.setattr(measure, "ceilings", lambda _: Ceilings(1e12, 1e11, "a product", "a copy"))
    return Bench(CPU, calls=1)


def entry(name, prepare):
    return Entry("case", name, {"length": 3}, prepare)


def test_a_row_can_be_read_alone(measured, monkeypatch):
    monkeypatch.setattr(measure, "latency", lambda *_, **__: measure.quantiles([1.0, 2.0, 3.0]))
    works = {"forward": Work(lambda: None, 10**12, "FLOP/s"), "step": Work(lambda: None, 10**10, "B/s")}
    forward, step = measured.run([entry("us", lambda: (works, {"out": 0.5}))])
    assert (forward.rate, forward.ceiling_share) == (0.5e12, 0.5)
    assert (step.rate, step.ceiling_share) == (0.5e10, 0.05)
    assert forward.device == measure.device_name(CPU)
    assert torch.__version__.startswith(forward.versions["torch"] or "missing")
    assert forward.settings == {"length": 3}
    assert forward.max_error == {"out": 0.5}
    assert "says nothing about a GPU" in forward.method
    assert forward.joules.value is None
    assert forward.joules.method.startswith("missing")
    assert forward.peak_extra_bytes is None


def test_a_peer_that_fails_is_a_row_and_the_others_run(measured):
    def fails():
        raise ImportError("no such\npackage")

    rows = list(measured.run([entry("them", fails), entry("us", lambda: ({"f": Work(lambda: None, 1, "B/s")}, {}))]))
    assert [row.provider for row in rows] == ["them", "us"]
    assert rows[0].error == "ImportError: no such package"
    assert rows[0].latency is None
    assert rows[1].error is None


def test_after_the_deadline_nothing_is_begun(measured):
    measured.deadline = -math.inf
    (row,) = measured.run([entry("us", lambda: pytest.fail("begun"))])
    assert row.error == "not run: no time was left"


def test_what_was_measured_before_is_left_out(measured):
    rows = measured.run([entry("us", lambda: pytest.fail("begun"))], frozenset({("case", "us")}))
    assert list(rows) == []


@pytest.mark.parametrize("case", cases.cpu_cases(), ids=lambda case: case.name)
def test_everybody_agrees_with_float64(case):
    for name, peer in bench_attention.CPU_PEERS.items():
        try:
            errors = bench_attention.max_errors(case, peer, CPU)
        except attention_peers.UnableError:
            assert not case.plain, name
            continue
        expected = ["out", "dq", "dk", "dv"] + ["dsinks"] * case.sinks
        assert list(errors) == expected
        assert max(errors.values()) < 0.02, name


def test_the_error_of_a_wrong_peer_shows():
    def peer(case, given):
        ready = ours("reference")(case, given)
        return replace(ready, forward=lambda: ready.forward() * 1.5)

    assert bench_attention.max_errors(cases.cpu_cases()[0], peer, CPU)["out"] > 0.1


def test_attention_on_a_cpu(measured, tmp_path):
    entries = bench_attention.entries(CPU, cases.cpu_cases()[:1])
    assert entries[0].provider == "efftrain triton, interpreted"
    found = bench.report("attention", measured, list(measured.run(entries[1:])))
    assert {row["call"] for row in found["rows"]} == {"forward", "backward", "forward+backward"}
    assert all(row["error"] is None for row in found["rows"])
    text = bench.describe(found)
    assert "There is no CUDA device here" in text
    assert "efftrain reference" in text
    bench.write_json([found], tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == [json.loads(json.dumps(found))]


def test_adamw_on_a_cpu(measured):
    chosen = [bench_adamw.Case("tiny fp32", torch.float32, ((40, 3),)), *bench_adamw.tiny_cases()]
    entries = [e for e in bench_adamw.entries(CPU, chosen) if "interpreted" not in e.provider]
    rows = list(measured.run(entries))
    assert [row.error for row in rows] == [None] * len(rows)
    assert {"efftrain", "efftrain int8 moments", "torch foreach", "torch fused"} <= {row.provider for row in rows}
    exact = [row.max_error["parameters"] for row in rows if row.case == "tiny fp32"]
    assert max(exact) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "provider", "expected"),
    [
        (torch.float32, "efftrain", 28),
        (torch.float32, "torch fused", 28),
        (torch.bfloat16, "efftrain", 6 + 16),
        (torch.bfloat16, "efftrain bf16 moments", 14),
        (torch.bfloat16, "efftrain int8 moments", 6 + 4 + 2 * 8 / 256),
        (torch.bfloat16, "efftrain split16", 26),
        (torch.bfloat16, "efftrain float32 master", 30),
        (torch.bfloat16, "torch fused", 14),
    ],
)
def test_bytes_of_a_step(dtype, provider, expected):
    """Parameters and gradient once, state twice: arithmetic by hand."""
    peer = dict(bench_adamw._peers(dtype, CPU, clipped=False))[provider]
    case = bench_adamw.Case("", dtype, ((1000, 256),))
    assert bench_adamw.bytes_moved(case, peer) == pytest.approx(expected * case.numel)
    clipped = replace(case, clipped=True)
    assert bench_adamw.bytes_moved(clipped, peer) == pytest.approx((expected + dtype.itemsize) * case.numel)


def test_a_model_of_a_billion():
    assert bench_adamw.gpu_cases()[0].numel == pytest.approx(1e9, rel=0.1)


@pytest.mark.parametrize("case", cases.cpu_cases(), ids=lambda case: case.name)
def test_flex_attention_is_told_the_same_mask(case):
    given = cases.inputs(case, CPU)
    mask = attention_peers._flex_mask(case, given)
    rows = torch.arange(case.length)
    seen = torch.ones(case.length, case.length, dtype=torch.bool)
    if mask is not None:
        seen = mask(None, None, rows[:, None], rows[None, :])
    pairs = sum(cases.visible_pairs(n, *case.band) for n in case.packed or (case.length,))
    assert int(seen.sum()) == pairs


def test_tuning_takes_the_fastest_that_is_right(monkeypatch, tmp_path):
    from efftrain_kernels._kernels import configs

    key = configs.Key(90, "forward", 128, "full", "half")
    slow, fast, wrong = configs.candidates(key)[:3]
    times = {slow: 2.0, fast: 1.0, wrong: 0.5}
    monkeypatch.setattr(tune, "_timed", lambda key, config, *_: config)
    monkeypatch.setattr(measure, "latency", lambda config, *_, **__: measure.quantiles([times[config]]))
    findings = {config: [] for config in times} | {wrong: [tune.exact.Finding("pairs", "out", 2.0)]}
    monkeypatch.setattr(tune.exact, "try_config", lambda _key, config, *_: findings[config])
    path = tmp_path / "a" / "tuned.json"
    (choice,) = tune.tune(path=path, device=CPU, keys=[key])
    assert choice.config == fast
    assert choice.rejected == {wrong: "wrong: out of pairs"}
    assert list(path.parent.iterdir()) == [path]
    assert "wrong: out of pairs" in tune.describe([choice])

    monkeypatch.setenv(configs.ENVIRONMENT, str(path))
    configs._tuned.cache_clear()
    assert configs.config_for(key, measure.device_name(CPU)) == fast
    assert configs.config_for(key) == slow
    configs._tuned.cache_clear()


def test_tuning_tries_those_that_may_hang_apart(monkeypatch, tmp_path):
    from efftrain_kernels._kernels import configs
    from efftrain_kernels.evidence import isolated

    key = configs.Key(90, "keys", 128, "masked", "half")
    first, plain, faster, hanging = configs.candidates(key)
    times = {first: 3.0, plain: 2.0, faster: 1.0}
    found: list[list[tune.Choice]] = []

    def outcomes(function, tasks, *, processes, limit_s):
        assert processes == 1
        for task in tasks:
            failure = isolated.Failure(f"no result after {limit_s:g} s")
            yield isolated.Outcome(task, failure if task[1] == hanging else function(task))

    monkeypatch.setattr(tune, "outcomes", outcomes)
    monkeypatch.setattr(tune, "_timed", lambda key, config, *_: config)
    monkeypatch.setattr(measure, "latency", lambda config, *_, **__: measure.quantiles([times[config]]))
    monkeypatch.setattr(measure, "device_name", lambda _: "a board")
    monkeypatch.setattr(tune.exact, "try_config", lambda *_: [])
    before = [tune.Choice(key, {first: 0.5})]  # as an earlier try has found
    path = tmp_path / "tuned.json"
    (choice,) = tune.tune(path=path, device=torch.device("cuda"), keys=[key], before=before, keep=found.append)
    assert (choice.seconds[first], len(found), choice.whole) == (0.5, 3, True)
    del choice.seconds[first]
    assert (choice.config, choice.specialised) == (plain, faster)
    assert choice.rejected == {hanging: "no result after 90 s"}


@pytest.mark.slow
def test_tuning_runs_the_kernels(monkeypatch, tmp_path):
    from efftrain_kernels._kernels import configs

    latency = measure.latency
    monkeypatch.setattr(measure, "latency", lambda call, device: latency(call, device, calls=1))
    key = configs.Key(90, "queries", 64, "masked", "half")
    (choice,) = tune.tune(path=tmp_path / "t.json", device=CPU, keys=[key], length=32, dtypes=(torch.float16,))
    assert choice.rejected == {}
    assert set(choice.seconds) == {config for config in configs.candidates(key) if not config.specialised}
    assert not choice.whole  # those run on a GPU alone


def test_tuning_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="no CUDA device"):
        tune.tune()
