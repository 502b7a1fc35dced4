import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from efftrain.hardware import calibrate
from efftrain.hardware.calibrate import SIZES, Calibration, measure_cpu, peak
from efftrain.hardware.probe import cpu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "efftrain" / "peaks.json"


class Scripted:
    """Stands in for the measurement: answers one after the other, the last for ever; counts how often it is run."""

    def __init__(self, *answers: tuple[float, float | None]) -> None:
        self.answers = [Calibration(*answer) for answer in answers or [(3e11, 0.0)]]
        self.asked: list[tuple[str, int]] = []

    def __call__(self, dtype: str, threads: int) -> Calibration:
        self.asked.append((dtype, threads))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def rates_of_studies(measure: Scripted, count: int) -> list[float]:
    return [peak("cpu", "float32", 2, measure=measure)["flops_per_s"] for _ in range(count)]


@pytest.mark.parametrize("others", [0.0, 0.04, None])
def test_two_undisturbed_calibrations_that_agree_are_enough(cache: Path, others: float | None):
    measure = Scripted((3e11, others), (2.9e11, others))
    answers = [peak("cpu", "float32", 2, measure=measure) for _ in range(4)]
    assert measure.asked == [("float32", 2)] * 2
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["flops_per_s"] == 3e11
    assert (answers[0]["method"], answers[0]["device"]) == ("measured", cpu().model)
    assert "lower_bound" not in answers[0]
    assert list(json.loads(cache.read_text()).values()) == [[[3e11, others], [2.9e11, others]]]


def test_a_disturbed_calibration_is_a_lower_bound_until_a_larger_one_replaces_it():
    measure = Scripted((1e11, 0.6), (1.5e11, 0.37), (3e11, 0.0), (3e11, 0.01))
    first, second = (peak("cpu", "float32", 2, measure=measure) for _ in range(2))
    assert (first["flops_per_s"], first["lower_bound"]) == (1e11, True)
    assert (second["flops_per_s"], second["lower_bound"]) == (1.5e11, True)
    assert "others used 37% of the processor" in second["source"]
    calm = peak("cpu", "float32", 2, measure=measure)
    assert calm["flops_per_s"] == 3e11
    assert "lower_bound" not in calm
    assert rates_of_studies(measure, 3) == [3e11] * 3
    assert len(measure.asked) == 4


def test_a_smaller_calibration_never_replaces_a_larger_one():
    assert rates_of_studies(Scripted((3e11, 0.5), (1e11, 0.9), (2e11, 0.0)), 3) == [3e11] * 3


def test_two_small_ones_that_seemed_calm_do_not_outvote_a_larger_one():
    # Others on the same cores that a guest cannot see: small and yet undisturbed.
    measure = Scripted((1e11, 0.0), (3e11, 0.0), (1e11, 0.0), (3.1e11, 0.0), (9e11, 0.0))
    assert rates_of_studies(measure, 6) == [1e11, 3e11, 3e11, 3.1e11, 3.1e11, 3.1e11]


def test_the_cache_stays_small_on_a_machine_that_is_always_busy(cache: Path):
    measure = Scripted(*((1e11 + i, 0.9) for i in range(20)))
    rates_of_studies(measure, 20)
    assert list(json.loads(cache.read_text()).values()) == [[[1e11 + 19, 0.9]]]


def test_what_was_found_before_stands_where_calibrating_fails():
    def fail(dtype: str, threads: int) -> Calibration:
        raise RuntimeError("no memory")

    peak("cpu", "float32", 2, measure=Scripted((2e11, 0.5)))
    assert peak("cpu", "float32", 2, measure=fail)["flops_per_s"] == 2e11


def test_threads_and_types_have_their_own_entries(cache: Path):
    measure = Scripted()
    for dtype, threads in (("float32", 1), ("float32", 2), ("bfloat16", 2)):
        peak("cpu", dtype, threads, measure=measure)
    assert len(measure.asked) == 3
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"KEY": "y"}', "null", '{"KEY": 9e11}', '{"KEY": [[9e11]]}', '{"KEY": [["a", null]]}']
)
def test_a_damaged_or_older_cache_is_measured_anew(cache: Path, content: str):
    cache.parent.mkdir(parents=True)
    key = f"{cpu().model}|2|{importlib.metadata.version('torch')}|float32"
    cache.write_text(content.replace("KEY", key))
    assert peak("cpu", "float32", 2, measure=Scripted())["flops_per_s"] == 3e11


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path):
    cache.parent.parent.write_text("a file where the folder should be")
    measure = Scripted()
    peak("cpu", "float32", 2, measure=measure)
    assert peak("cpu", "float32", 2, measure=measure)["flops_per_s"] == 3e11
    assert len(measure.asked) == 2


def test_a_failed_measurement_is_missing_with_its_reason():
    def fail(dtype: str, threads: int) -> Calibration:
        raise RuntimeError("Traceback\n  ...\nRuntimeError: no kernel")

    answer = peak("cpu", "float16", 2, measure=fail)
    assert (answer["flops_per_s"], answer["method"]) == (None, "missing")
    assert answer["source"].endswith("no kernel")


def test_a_gpu_is_looked_up_and_never_guessed():
    known = peak("NVIDIA L4", "bfloat16", 8)
    assert (known["flops_per_s"], known["method"]) == (121e12, "assumed")
    unknown = peak("NVIDIA L5", "bfloat16", 8)
    assert (unknown["flops_per_s"], unknown["method"]) == (None, "missing")
    assert "NVIDIA L5" in unknown["source"]
    assert set(known) == set(unknown) == {"device", "dtype", "flops_per_s", "method", "source"}


class ScriptedProcessor:
    """Time that passes only in matrix products, each at the rate that its size runs at."""

    def __init__(self, rates: dict[int, float], hiccup_s: float = 0.0) -> None:
        self.rates = rates
        self.hiccup_s = hiccup_s
        self.now = 100.0
        self.sizes: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def mm(self, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
        n = a.shape[0]
        assert a.shape == b.shape == out.shape == (n, n)
        self.now += 2 * n**3 / self.rates[n] + (self.hiccup_s if len(self.sizes) % 2 else 0.0)
        self.sizes.append(n)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScriptedProcessor]]:
    def make(rates: list[float], hiccup_s: float = 0.0) -> ScriptedProcessor:
        made = ScriptedProcessor(dict(zip(SIZES, rates, strict=True)), hiccup_s)
        monkeypatch.setattr(calibrate, "time", made)
        monkeypatch.setattr(torch, "mm", made.mm)
        return made

    threads = torch.get_num_threads()
    yield make
    torch.set_num_threads(threads)


@pytest.mark.parametrize("rates", [[1e11, 2e11, 3e11, 2.5e11], [4e11, 3e11, 2e11, 1e11], [2e10, 4e10, 6e10, 8e10]])
def test_the_best_size_is_the_peak(processor: Callable[..., ScriptedProcessor], rates: list[float]):
    scripted = processor(rates)
    assert measure_cpu("float32", 1) == pytest.approx(max(rates), rel=1e-6)
    assert scripted.now - 100.0 < 3.0


def test_a_disturbed_product_does_not_lower_the_peak(processor: Callable[..., ScriptedProcessor]):
    processor([2e11] * 4, hiccup_s=0.005)
    assert measure_cpu("bfloat16", 1) == pytest.approx(2e11, rel=1e-6)


def test_a_slow_type_takes_no_longer(processor: Callable[..., ScriptedProcessor]):
    scripted = processor([1e9] * 4)
    assert measure_cpu("float16", 1) == pytest.approx(1e9, rel=1e-6)
    assert scripted.now - 100.0 < 2.0
    assert max(scripted.sizes) < SIZES[-1]


@pytest.mark.parametrize("dtype", ["tf32", "float64", "int8"])
def test_a_type_that_is_not_calibrated_is_refused(dtype: str):
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        measure_cpu(dtype, 1)


@pytest.mark.slow
def test_a_process_of_its_own_measures(cache: Path):
    answer = peak("cpu", "float32", torch.get_num_threads())
    assert answer["method"] == "measured"
    assert answer["flops_per_s"] > 1e8
    assert cache.exists()


def _spin() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


@pytest.mark.slow
def test_another_process_is_seen_and_makes_the_peak_a_lower_bound():
    spinners = [_spin() for _ in range(len(os.sched_getaffinity(0)))]
    try:
        answer = peak("cpu", "float32", torch.get_num_threads())
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert answer["lower_bound"]
    share = float(re.findall(r"others used (\d+)%", answer["source"])[0])
    # As many others as processors: half of the time where everybody has as many threads, all but one where one works.
    assert 25 <= share <= 100


def test_the_command_refuses_what_it_does_not_know():
    command = [sys.executable, "-m", "efftrain.hardware.calibrate", "--dtype", "tf32", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bfloat16" in done.stderr
