"""Whatever a GPU's driver does, through the real pynvml: the training ends the same, the record says what was lost."""

import re
from pathlib import Path

import pynvml
import pytest
from adapters.faults import notes, once, train

from efftrain.adapters.measure import Measurement
from efftrain.sensors import nvml
from nvml_driver import Device, Rule, World, constant

pytestmark = pytest.mark.usefixtures("no_report")

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
