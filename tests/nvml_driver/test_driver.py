"""The real pynvml on the simulated driver: it shows what was scripted, fails as scripted, and is one world for all."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable

import pynvml
import pytest

from nvml_driver import Device, Rule, World, constant, piecewise, ramp, square


@pytest.fixture
def nvml():
    """Install a world for the rest of the test, NVML open."""
    inside = []

    def install(world: World) -> list[object]:
        inside.append(world.installed())
        inside[-1].__enter__()
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(len(world.devices))]

    yield install
    for installed in inside:
        pynvml.nvmlShutdown()
        installed.__exit__(None, None, None)


def seen(world: World, call: Callable[[], float]) -> tuple[float, float, float]:
    """What a call gives, and seconds of the world before and after it."""
    before = world.seconds()
    value = call()
    return value, before, world.seconds()


def at_rest(world: World, call: Callable[[], float], tick_s: float) -> tuple[float, float]:
    """What a call gives, and the tick before it; asked again if a tick fell into the call."""
    while True:
        value, before, after = seen(world, call)
        if math.floor(before / tick_s) == math.floor(after / tick_s):
            return value, math.floor(before / tick_s) * tick_s
        time.sleep(0.001)


def test_facts_are_those_of_the_board(nvml):
    device = Device(constant(1), name="NVIDIA A100", processes=[7, 9], power_limit_w=400, compute_capability=(8, 0))
    _, handle = nvml(World([Device(constant(1)), device], driver="550.1"))
    assert pynvml.nvmlSystemGetDriverVersion() == "550.1"
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA A100"
    assert pynvml.nvmlDeviceGetIndex(handle) == 1
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [120_000, 400_000]
    assert pynvml.nvmlDeviceGetCudaComputeCapability(handle) == (8, 0)
    assert pynvml.nvmlDeviceGetArchitecture(handle) == pynvml.NVML_DEVICE_ARCH_HOPPER
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == 80 * 2**30
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).total == 80 * 2**30
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [7, 9]
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle) == []
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 100
    assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) == 50
    assert pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU) == 50
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1980
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 2619


def test_a_board_is_found_by_uuid_and_by_bus(nvml):
    handles = nvml(World([Device(constant(1)), Device(constant(1), uuid="GPU-abc", bus_id="00000000:41:00.0")]))
    for again in (
        pynvml.nvmlDeviceGetHandleByUUID("GPU-abc"),
        pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(handles[1]).busId),
    ):
        assert pynvml.nvmlDeviceGetIndex(again) == 1
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-abd")


def test_parts_of_a_board_lead_to_it_and_have_no_meter(nvml):
    nvml(World([Device(constant(1), mig=True, parts=["MIG-a", "MIG-b"])]))
    part = pynvml.nvmlDeviceGetHandleByUUID("MIG-b")
    board = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)
    assert pynvml.nvmlDeviceGetUUID(part) == "MIG-b"
    assert pynvml.nvmlDeviceGetUUID(board).startswith("GPU-0")
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 1)) == "MIG-b"
    assert pynvml.nvmlDeviceGetMigMode(board) == [1, 1]
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(part)


@pytest.mark.parametrize("curve", [constant(250), square(0.13, 100, 400), ramp(50, 600, 20)], ids=["flat", "sq", "up"])
def test_counter_is_the_integral_up_to_the_last_tick(nvml, curve):
    world = World([Device(curve, tick_s=0.05, gain=1.04, counter_start_j=500)])
    (handle,) = nvml(world)
    for _ in range(20):
        mj, tick = at_rest(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0.05)
        assert mj == pytest.approx(500_000 + 1040 * curve.energy(0, tick), abs=1)  # whole mJ, cut
        time.sleep(0.013)


def test_a_part_time_counter_sees_the_window_before_the_tick(nvml):
    # Period 0.1 s, as the tick, high in the first half: the 25 ms before a tick are always low.
    world = World([Device(square(0.1, 100, 400), counter_window_s=0.025, counter_start_j=0)])
    (handle,) = nvml(world)
    time.sleep(0.35)
    mj, tick = at_rest(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0.1)
    assert mj == pytest.approx(100_000 * tick, abs=2)


def test_power_is_the_mean_over_its_window(nvml):
    curve = ramp(100, 600, 10)
    world = World([Device(curve, average_window_s=0.2, instant_window_s=0.02, power_gain=1.1)], rules=[])
    (handle,) = nvml(world)
    time.sleep(0.31)
    fields = [pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE]

    def read() -> float:
        values = pynvml.nvmlDeviceGetFieldValues(handle, fields)
        assert [v.nvmlReturn for v in values] == [0, 0]
        return values[0].value.uiVal + 1j * values[1].value.uiVal + 0 * pynvml.nvmlDeviceGetPowerUsage(handle)

    both, tick = at_rest(world, read, 0.1)
    assert both.real == pytest.approx(1100 * curve.energy(tick - 0.02, tick) / 0.02, abs=1)
    assert both.imag == pytest.approx(1100 * curve.energy(tick - 0.2, tick) / 0.2, abs=1)
    usage, tick = at_rest(world, lambda: pynvml.nvmlDeviceGetPowerUsage(handle), 0.1)
    assert usage == pytest.approx(1100 * curve.energy(tick - 0.2, tick) / 0.2, abs=1)


def test_ticks_come_out_late_and_uneven(nvml):
    world = World([Device(constant(1000), tick_s=0.02, lag_s=0.005, jitter_s=0.01, counter_start_j=0)])
    (handle,) = nvml(world)
    delays: set[float] = set()
    last = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        mj, before, after = seen(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        if mj == last + 20_000 and after - before < 0.0005:  # this very tick has just come out
            delays.add(round(before - mj / 1e6, 4))
        last = mj
        time.sleep(0.0005)
    assert min(delays) >= 0.005 - 0.0005
    assert len(delays) > 5
    assert max(delays) - min(delays) > 0.003


def test_a_counter_starts_again_at_zero(nvml):
    world = World([Device(constant(100), tick_s=0.01, resets_s=[0.1], counter_start_j=5000)])
    (handle,) = nvml(world)
    mj, before, _ = seen(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert before > 0.1 or mj >= 5_000_000
    time.sleep(max(0, 0.15 - world.seconds()))
    mj, _, after = seen(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert mj <= 100_000 * (after - 0.1)
    reset = world.seconds()
    world.reset_counter(0)
    mj, _, after = seen(world, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    assert mj <= 100_000 * (after - reset)


def test_calls_fail_as_scripted(nvml):
    lost, unknown = pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN
    rules = [
        Rule("nvmlDeviceGetPowerUsage", unknown, device=0),
        Rule("NVML_FI_DEV_POWER_INSTANT", pynvml.NVML_ERROR_NO_DATA),
        Rule("nvmlDeviceGetName", lost, start_s=-10, end_s=-5),
    ]
    world = World([Device(constant(100)), Device(constant(100))], rules=rules)
    first, second = nvml(world)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetPowerUsage(first)
    assert pynvml.nvmlDeviceGetPowerUsage(second) == 100_000
    fields = pynvml.nvmlDeviceGetFieldValues(second, [pynvml.NVML_FI_DEV_POWER_INSTANT, 185])
    assert [f.nvmlReturn for f in fields] == [pynvml.NVML_ERROR_NO_DATA, 0]
    assert pynvml.nvmlDeviceGetName(first)  # its time is over
    world.lose(1)
    for call in (pynvml.nvmlDeviceGetPowerUsage, pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetUUID):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            call(second)
    world.mend()
    assert pynvml.nvmlDeviceGetPowerUsage(second) == pynvml.nvmlDeviceGetPowerUsage(first) == 100_000


def test_a_drop_out_ends(nvml):
    world = World([Device(constant(100))], rules=[Rule("*", pynvml.NVML_ERROR_GPU_IS_LOST, 0, start_s=0.2, end_s=0.3)])
    (handle,) = nvml(world)
    outcomes = []

    def read() -> float:
        try:
            return pynvml.nvmlDeviceGetPowerUsage(handle)
        except pynvml.NVMLError_GpuIsLost:
            return -1

    while world.seconds() < 0.4:
        outcomes.append(seen(world, read))
        time.sleep(0.01)
    assert {value for value, start, end in outcomes if end < 0.2 or start >= 0.3} == {100_000}
    assert {value for value, start, end in outcomes if start >= 0.2 and end < 0.3} == {-1}


def test_without_a_world_there_is_no_driver():
    with World([Device(constant(1))]).installed():
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_LibraryNotFound):
        pynvml.nvmlInit()


def test_a_driver_without_a_function(nvml):
    world = World([Device(constant(1))], missing=["nvmlDeviceGetTotalEnergyConsumption"])
    (handle,) = nvml(world)
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    world.mend()
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


READ = """
import json, pynvml, time
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
out = []
for _ in range(40):
    before = time.monotonic_ns()
    mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    out.append((before, mj, time.monotonic_ns()))
    time.sleep(0.01)
library = pynvml.nvmlLib
print(json.dumps({"readings": out, "power": hasattr(library, "nvmlDeviceGetPowerUsage")}))
"""


def test_two_processes_see_one_world():
    curve = piecewise([(0.3, 100), (0.2, 500)], repeat=True)
    world = World([Device(curve, tick_s=0.05, counter_start_j=0)], missing=["nvmlDeviceGetPowerUsage"])
    processes = [
        subprocess.Popen([sys.executable, "-c", READ], env=world.environ(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [json.loads(p.communicate(timeout=60)[0]) for p in processes]
    for answer in answers:
        assert not answer["power"]  # the symbol itself is not there
        for before, mj, after in answer["readings"]:
            ticks = {math.floor(world.seconds(t) / 0.05) for t in (before, after)}
            assert any(mj == pytest.approx(1000 * curve.energy(0, tick * 0.05), abs=1) for tick in ticks)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="room for 16"):
        World([Device(constant(1))] * 17)
