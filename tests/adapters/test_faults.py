"""Whatever fails in measuring, the training ends with the same result and the record says what was lost."""

import functools
import logging
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from adapters.toys import WATTS, Meter, toy_training

import efftrain
from efftrain.adapters import keeping
from efftrain.adapters.measure import Measurement
from efftrain.monitor import sampler
from efftrain.record.journal import JournalWriter
from efftrain.sensors import nvml
from efftrain.sensors.protocol import SensorError
from nvml_driver import Device, Rule, World, constant

pytestmark = pytest.mark.usefixtures("no_report")


def journal_of(run: Measurement) -> JournalWriter:
    monitor = run._keeping._monitor
    assert monitor is not None
    assert monitor._journal is not None
    return monitor._journal


def train(out: Path, fault: Callable[[Measurement], Any] = lambda _: None, *, steps: int = 12, **options: Any):
    """A toy training, hit by a fault after its third step, a longer one after its tenth, and after each later step."""
    weight, losses = 1.0, []
    with efftrain.measure("toy", out=out, **{"device": "cpu", **options}) as run:
        for step in range(1, steps + 1):
            with run.phase("forward"):
                losses.append((weight - 0.3) ** 2)
                time.sleep(0.03)
            weight -= 0.1 * 2 * (weight - 0.3) / step
            run.step(tokens=64, loss=losses[-1])
            if step >= (3 if steps < 30 else 10):
                fault(run)
    assert (losses, weight) == toy_training(steps)
    return run


def once(deed: Callable[..., Any]) -> Callable[..., None]:
    """Done the first time only."""
    done: list[bool] = []

    @functools.wraps(deed)
    def first(*args: Any) -> None:
        if not done:
            done.append(True)
            deed(*args)

    return first


def notes(run: Measurement) -> str:
    assert run.record is not None
    return "\n".join([*run.record.notes, *run.problems])


# Sensors


@pytest.mark.parametrize("error", [SensorError("the driver is gone"), ZeroDivisionError("of all things")])
def test_a_sensor_that_raises(tmp_path: Path, meters: list[Meter], error: Exception):
    def fault(_: Measurement) -> None:
        meters[0].fails = error

    run = train(tmp_path, fault, steps=30)
    assert f"sensor gpu0 is lost: {error}" in notes(run)
    gpu = run.record.energy.components["gpu"]
    assert gpu.lower_bound
    assert gpu.value < WATTS * run.record.time.total.value
    assert meters[0].closed


def test_a_sensor_that_comes_back(tmp_path: Path, meters: list[Meter]):
    def fault(_: Measurement) -> None:
        meters[0].fails = SensorError("busy")

    def recovers(run: Measurement) -> None:
        once(fault)(run)
        if run._steps > 20:
            meters[0].fails = None

    run = train(tmp_path, recovers, steps=60)
    assert "is back" in notes(run)
    gpu = run.record.energy.components["gpu"]
    assert gpu.value == pytest.approx(WATTS * run.record.time.total.value, rel=0.02)  # a counter goes on counting


@pytest.mark.parametrize("reading", [float("nan"), float("inf"), -1.0, 1e300, None, "12"])
def test_a_sensor_that_reads_nonsense(tmp_path: Path, meters: list[Meter], reading: Any):
    def fault(_: Measurement) -> None:
        meters[0].fails = lambda _: reading

    run = train(tmp_path, fault)
    assert run.record is not None
    assert run.record.status == "complete"
    assert run.record.steps == 12


def test_no_sensor_at_all(tmp_path: Path, meters: list[Meter]):
    meters.clear()
    total = train(tmp_path).record.energy.total
    assert total.value is None
    assert total.method == "missing"


def test_a_sampler_that_dies(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> int:
        raise RuntimeError("a fault of ours")

    run = train(tmp_path, once(lambda _: monkeypatch.setattr(sampler, "_next", broken)))
    assert "sensors are lost from here on, because the sampler failed: a fault of ours" in notes(run)
    assert {c.name: c.status for c in run.record.checks}["sensors_kept"] == "warning"
    gpu = run.record.energy.components["gpu"]  # the counter was read at the end
    assert gpu.value == pytest.approx(WATTS * run.record.time.total.value, rel=0.05)


def test_threads_cannot_be_started(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    assert "no sampler: can't start new thread" in notes(train(tmp_path))


# The journal and the disk


def test_a_full_disk(tmp_path: Path, meters: list[Meter]):
    def fill(run: Measurement) -> None:
        journal_of(run)._file.close()
        journal_of(run)._file = open("/dev/full", "w")  # noqa: SIM115

    run = train(tmp_path, once(fill))
    assert run.record.status == "complete"
    assert 0 < run.record.steps < 12
    assert "the journal could not be written to its end" in notes(run)


LIMITED = """
import resource, sys, time
import efftrain
from pathlib import Path
weight, losses = 1.0, []
with efftrain.measure("toy", out=sys.argv[1], device="cpu") as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for step in range(1, 301):
        losses.append((weight - 0.3) ** 2)
        weight -= 0.1 * 2 * (weight - 0.3) / step
        time.sleep(0.003)
        run.step(tokens=64, loss=losses[-1])
print(losses[-1], weight, run.record.steps, run.record.status)
print(*run.problems, sep="\\n")
"""


def test_files_that_may_not_grow(tmp_path: Path):
    """In a process of its own, whose files the kernel itself refuses to let grow beyond 5000 bytes."""
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loss, weight, steps, status = done.stdout.splitlines()[0].split()
    losses, expected = toy_training(300)
    assert (float(loss), float(weight), status) == (losses[-1], expected, "complete")
    assert 0 < int(steps) < 300
    assert "run.json could not be written" in done.stdout
    assert "run.json could not be written" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("out", ["a file", "/proc/nowhere", "/dev/null/x"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, meters: list[Meter], out: str):
    place = Path(out) if out.startswith("/") else tmp_path / out
    if not out.startswith("/"):
        place.write_text("not a folder")
    run = train(place)
    assert run.record.steps == 12
    assert "the measurement could not begin" in notes(run)
    assert f"everything goes to {run.folder} instead" in notes(run)
    assert (run.folder / "runs/toy/run.json").exists()
    shutil.rmtree(run.folder)


def test_no_folder_anywhere(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    run = train(Path("/proc/nowhere"))
    assert run.record is None
    assert run.folder is None
    assert "no space left" in str(run)


def test_a_journal_that_is_closed(tmp_path: Path, meters: list[Meter]):
    run = train(tmp_path, once(lambda run: journal_of(run).close()))
    assert run.record.status == "complete"
    assert "the journal could not be written to its end" in notes(run)


def test_a_folder_that_disappears(tmp_path: Path, meters: list[Meter]):
    run = train(tmp_path, once(lambda run: shutil.rmtree(run.folder)))
    assert run.record is None
    assert "no record could be made" in "\n".join(run.problems)


# Our own faults


@pytest.mark.parametrize(
    ("place", "said", "kept"),
    [
        ("efftrain.meters.assemble.assemble", "no record could be made", False),
        ("efftrain.comparison.checks.run_checks", "the record could not be checked", True),
        ("efftrain.adapters.records._report", "the report could not be written", True),
        ("efftrain.adapters.keeping.environment", "the environment cannot be described", True),
        ("efftrain.adapters.keeping.measure_idle", "idle power could not be read", True),
        ("efftrain.adapters.keeping.find_sensors", "the measurement could not begin", False),
        ("efftrain.adapters.clock.MarkClock.mark", "step failed", True),
        ("efftrain.adapters.measure._fields", "failed", True),
        ("efftrain.record.recorder.JournalRecorder.end", "_end failed", True),
    ],
)
def test_our_own_faults(
    tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch, place: str, said: str, *, kept: bool
):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(place, broken)
    run = train(tmp_path, idle_s=0.05)
    assert f"{said}: a fault of ours" in "\n".join(run.problems)
    assert (run.record is not None) == kept


def test_a_log_handler_that_raises(tmp_path: Path, meters: list[Meter]):
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("a handler of the user's")

    handler = Broken()
    keeping.LOGGER.addHandler(handler)
    try:
        run = train(tmp_path, lambda run: run.step(tokens="many"))
    finally:
        keeping.LOGGER.removeHandler(handler)
    assert run.problems == ["step failed: invalid literal for int() with base 10: 'many'"]
    assert run.record.steps == 12


def test_values_that_are_none(tmp_path: Path, meters: list[Meter]):
    config: Any = {("not", "a name"): 1}
    with efftrain.measure("odd", out=tmp_path, device="cpu", config=config) as run:
        run.step(tokens=1, loss="high")
        run.step(tokens=-1, loss=float("nan"))
        run.step(tokens=1, loss=[1, 2])
        run.evaluation(loss="low")
        run.evaluation(loss=float("inf"))
        run.note({"any": object()})
    assert run.record.steps == 3
    assert run.record.tokens == 2
    assert run.record.loss.train == [None, None, None]
    assert run.record.config == {}
    for said in ("tokens -1", "loss is no number", "the configuration cannot be kept"):
        assert any(said in text for text in run.problems)


# Use that was not meant


def test_used_twice_and_outside(tmp_path: Path, meters: list[Meter]):
    run = efftrain.measure("twice", out=tmp_path, device="cpu")
    run.step(tokens=1)
    with run:
        run.step(tokens=1)
    first = run.record
    with run:
        run.step(tokens=1)
        with run.phase("forward"), run.span("evaluate"):
            pass
    run.step(tokens=1)
    run.finish("failed")
    assert run.record is first
    assert first.steps == 1
    assert run.problems == [
        "step: nothing is recorded outside of the with block",
        "a measurement is used once: what comes after its first block is not measured",
    ]


def test_entered_in_itself(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("self", out=tmp_path, device="cpu") as run:
        with run:
            run.step(tokens=1)
        run.step(tokens=1)
    assert run.record.steps == 2


def test_nested(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("outer", out=tmp_path, device="cpu") as outer:
        time.sleep(0.05)
        with efftrain.measure("inner", out=tmp_path, device="cpu") as inner:
            time.sleep(0.05)
    assert "overlap" in notes(inner)
    assert outer.record.energy.total.value > inner.record.energy.total.value > 0


def test_a_phase_that_outlives_its_step(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("crossed", out=tmp_path, device="cpu") as run:
        for _ in range(3):
            with run.phase("forward"):
                time.sleep(0.01)
                run.step(tokens=1)
    assert run.record.steps == 3
    assert run.problems == []


# Clocks


def test_a_wall_clock_that_steps(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    real = time.time
    run = train(tmp_path, once(lambda _: monkeypatch.setattr(time, "time", lambda: real() - 86_400)))
    record = run.record
    assert 12 * 0.03 < record.time.total.value < 5
    assert record.energy.total.value == pytest.approx(WATTS * record.time.total.value, rel=0.02)


# GPUs, through the real pynvml

BOARD = Device(constant(250))


@pytest.fixture(autouse=True)
def all_boards_visible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpu_truth(world: World, run: Measurement) -> float:
    """Joules of all boards over the billed seconds; their power is constant."""
    return sum(device.curve.segments[0].from_w for device in world.devices) * run.record.time.total.value


def test_boards_that_answer(tmp_path: Path):
    with World([BOARD, BOARD]).installed() as world:
        run = train(tmp_path, steps=40, device="auto")
    gpu = run.record.energy.components["gpu"]
    assert gpu.low <= gpu_truth(world, run) <= gpu.high
    assert not gpu.lower_bound
    assert len(run.record.environment["devices"]) == 2


def test_a_board_that_is_lost_in_mid_window(tmp_path: Path):
    with World([BOARD, BOARD]).installed() as world:
        run = train(tmp_path, once(lambda _: world.lose(1)), steps=60, device="auto")
    gpu, truth = run.record.energy.components["gpu"], gpu_truth(world, run)
    assert "sensor gpu1 is lost: GPU is lost" in notes(run)
    assert gpu.lower_bound
    assert truth / 2 < gpu.value < 0.95 * truth
    assert gpu.high is None


def test_a_board_that_is_lost_and_comes_back(tmp_path: Path):
    with World([BOARD]).installed() as world:
        world_time = once(lambda _: world.lose(0))

        def fault(run: Measurement) -> None:
            world_time(run)
            if run._steps == 20:
                world.mend()

        run = train(tmp_path, fault, steps=80, device="auto")
    gpu = run.record.energy.components["gpu"]
    assert "sensor gpu0 is back" in notes(run)
    assert gpu.low <= gpu_truth(world, run)
    assert gpu.value == pytest.approx(gpu_truth(world, run), rel=0.15)


def test_a_counter_that_is_reset(tmp_path: Path):
    with World([BOARD]).installed() as world:
        run = train(tmp_path, once(lambda _: world.reset_counter(0)), steps=40, device="auto")
    gpu = run.record.energy.components["gpu"]
    assert gpu.low <= gpu_truth(world, run) <= gpu.high  # power readings tell what the counter forgot


def test_a_counter_that_is_reset_where_no_power_is_read(tmp_path: Path):
    refused = pynvml.NVML_ERROR_NOT_SUPPORTED
    rules = [Rule("nvmlDeviceGetPowerUsage", refused), Rule("nvmlDeviceGetFieldValues", refused)]
    with World([BOARD], rules=rules).installed() as world:
        run = train(tmp_path, once(lambda _: world.reset_counter(0)), steps=40, device="auto")
    gpu = run.record.energy.components["gpu"]
    assert "was reset" in gpu.source
    assert gpu.lower_bound
    assert 0.7 * gpu_truth(world, run) < gpu.value <= 1.03 * gpu_truth(world, run)


CALLS = sorted({"*"} | set(re.findall(r"\bnvml[A-Z]\w+", Path(nvml.__file__).read_text())))


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED])
@pytest.mark.parametrize("call", CALLS)
def test_any_call_may_be_refused(tmp_path: Path, call: str, code: int):
    with World([BOARD, BOARD], rules=[Rule(call, code)]).installed():
        run = train(tmp_path, steps=4, device="auto", idle_s=0.01)
    record = run.record
    assert record.status == "complete"
    assert record.steps == 4
    gpu = record.energy.components.get("gpu")
    assert gpu is None or gpu.value is None or gpu.value >= 0
    assert run.problems == []


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED])
@pytest.mark.parametrize("call", ["*", "nvmlDeviceGetTotalEnergyConsumption"])
def test_any_call_may_be_refused_in_mid_window(tmp_path: Path, call: str, code: int):
    with World([BOARD]).installed() as world:
        run = train(tmp_path, once(lambda _: world.fail(Rule(call, code))), steps=40, device="auto")
    gpu = run.record.energy.components["gpu"]
    assert "sensor gpu0 is lost" in notes(run)
    assert gpu.lower_bound
    assert gpu.value < gpu_truth(world, run)
