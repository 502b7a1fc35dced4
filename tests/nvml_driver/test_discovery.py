"""efftrain's own search for GPUs, on the real pynvml and the simulated driver."""

import os

import pynvml
import pytest

from efftrain.sensors.nvml import NvmlSensor, find_gpus, gpu_facts
from nvml_driver import Device, Rule, World, constant

FLAT = Device(constant(250))


@pytest.fixture(autouse=True)
def all_boards_visible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def billed(sensors: list[NvmlSensor]) -> list[NvmlSensor]:
    """Sensors that count, without those that stand beside another one."""
    return [s for s in sensors if s.info.witness_of is None]


def close(sensors: list[NvmlSensor]) -> None:
    for sensor in sensors:
        sensor.close()


@pytest.mark.parametrize("count", [1, 8])
def test_every_board_has_a_counter(count):
    with World([FLAT] * count).installed():
        sensors, absent = find_gpus(None)
        assert not absent
        assert [(s.info.name, s.info.kind) for s in billed(sensors)] == [(f"gpu{i}", "energy") for i in range(count)]
        assert len({s.info.device for s in sensors}) == count
        assert all(s.read() >= 12_345.678 for s in billed(sensors))
        close(sensors)


def test_a_board_without_a_counter_shows_its_power():
    for rules, missing in (
        ([Rule("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_NOT_SUPPORTED)], []),
        ([], ["nvmlDeviceGetTotalEnergyConsumption"]),
    ):
        with World([FLAT], rules=rules, missing=missing).installed():
            (sensor,), absent = find_gpus(None)
            assert (sensor.info.kind, sensor.read(), absent) == ("power", 250.0, [])
            close([sensor])


def test_a_shared_board_is_assumed():
    mig = Device(constant(250), mig=True, parts=["MIG-a", "MIG-b"])
    vgpu = Device(constant(250), virtualization=pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU)
    with World([mig, vgpu]).installed():
        sensors, _ = find_gpus(None)
        assert {s.info.method for s in billed(sensors)} == {"assumed"}
        assert ["MIG" in s.info.source for s in billed(sensors)] == [True, False]
        close(sensors)
        sensors, _ = find_gpus(["MIG-b", "MIG-a"])
        assert [s.info.name for s in billed(sensors)] == ["gpu0"]
        close(sensors)


def test_visible_devices_by_uuid_and_number(monkeypatch):
    world = World([FLAT] * 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000005,2")
    with world.installed():
        sensors, absent = find_gpus(None)
        assert ([s.info.name for s in billed(sensors)], absent) == (["gpu5", "gpu2"], [])
        close(sensors)


def test_a_lost_board_is_named():
    with World([FLAT, FLAT]).installed() as world:
        world.lose(1)
        sensors, absent = find_gpus(None)
        assert [s.info.name for s in billed(sensors)] == ["gpu0"]
        assert [(a.name, a.why) for a in absent] == [("gpu1", "NVML: GPU is lost")]
        close(sensors)


def test_facts_of_a_board_that_tells_little():
    mute = Device(
        constant(1), power_limit_w=None, sm_clock_mhz=None, memory_clock_mhz=None, memory_bytes=None,
        virtualization=None, processes=[os.getpid(), 1],
    )  # fmt: skip
    with World([mute]).installed():
        (facts,) = gpu_facts(None)
    unknown = {"power_limit_w", "max_sm_clock_hz", "max_memory_clock_hz", "memory_bytes", "mig", "vgpu"}
    assert {key for key, value in facts.items() if value is None} == unknown
    assert (facts["other_processes"], facts["other_process_ids"]) == (1, [1])
