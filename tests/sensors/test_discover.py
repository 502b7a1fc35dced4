from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efftrain.sensors.discover import discover, examine
from efftrain.sensors.protocol import Absent, Discovery, SensorError, SensorInfo
from efftrain.sensors.simulated import Habits, SimulatedCounter, SimulatedPower, constant

WATTS = ((4.0, 2.0, 10.0), "assumed", "4 W (2 to 10) per busy thread")


class NvmlError(Exception):
    pass


def no_library() -> None:
    raise NvmlError("NVML Shared Library Not Found")


NO_NVML = SimpleNamespace(NVMLError=NvmlError, NVMLError_LibraryNotFound=NvmlError, nvmlInit=no_library)


def look(powercap: Path, devices: Any = ()) -> Discovery:
    return discover(devices, cpu_watts=WATTS, powercap=powercap, library=NO_NVML, environ={})


def write_package(root: Path, zone: str, name: str) -> None:
    (root / zone).mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", "5"), ("max_energy_range_uj", "1000")):
        (root / zone / file).write_text(content)


def test_cpu_time_stands_in_where_there_is_no_counter(tmp_path: Path):
    found = look(tmp_path)
    assert [s.info.name for s in found.sensors] == ["cpu-time"]
    assert {a.component: a.stand_in for a in found.absent} == {"cpu": "cpu-time", "dram": "", "rest_of_node": ""}


def test_a_counter_leaves_no_room_for_the_model(tmp_path: Path):
    write_package(tmp_path, "intel-rapl:0", "package-0")
    write_package(tmp_path, "intel-rapl:0:0", "dram")
    found = look(tmp_path)
    assert [s.info.name for s in found.sensors] == ["rapl:package-0", "rapl:package-0:dram"]
    assert [a.component for a in found.absent] == ["rest_of_node"]


def test_one_of_two_packages_unreadable_is_a_lower_bound_and_not_modelled(tmp_path: Path):
    write_package(tmp_path, "intel-rapl:0", "package-0")
    write_package(tmp_path, "intel-rapl:1", "package-1")
    (tmp_path / "intel-rapl:1/energy_uj").write_text("?")
    found = look(tmp_path)
    assert [s.info.name for s in found.sensors] == ["rapl:package-0"]
    assert [(a.name, a.stand_in) for a in found.absent if a.component == "cpu"] == [("rapl:package-1", "")]


def test_a_machine_without_a_gpu_mentions_none(tmp_path: Path):
    assert all(a.component != "gpu" for a in look(tmp_path, None).absent)
    assert look(tmp_path, (0,)).absent[0].component == "gpu"


class Time:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def test_examine_sees_value_and_tick_period():
    time = Time()
    habits = Habits(tick_s=0.1, wrap_at=75.0)
    counter = SimulatedCounter(constant(50.0), clock=time, habits=habits)
    power = SimulatedPower(constant(80.0), clock=time)
    time.now = 1_000_000_000  # the counter shows 50 J, and wraps within the second
    seen, steady, gone = examine(
        Discovery(sensors=[counter, power], absent=[Absent(component="dram", name="rapl:dram", why="no", cure="do")]),
        clock=time,
        sleep=time.sleep,
    )
    assert seen.value == pytest.approx(50.0)
    assert seen.duration_s == pytest.approx(1.0, abs=0.003)
    assert seen.tick_period_s == pytest.approx(0.1, abs=0.003)
    assert (steady.value, steady.unit, steady.tick_period_s) == (80.0, "W", None)
    assert (gone.value, gone.method, gone.detail, gone.cure) == (None, "missing", "no", "do")


def test_a_reading_that_changes_at_every_poll_has_no_visible_tick():
    time = Time()
    fine = SimulatedCounter(constant(50.0), clock=time, habits=Habits(tick_s=0.0005))
    assert examine(Discovery(sensors=[fine]), clock=time, sleep=time.sleep)[0].tick_period_s is None


class Broken:
    info = SensorInfo(
        name="gpu0", component="gpu", device="x", kind="energy", unit="J", period_s=0.1, method="measured",
        source="nothing", boundary="",
    )  # fmt: skip

    def read(self) -> float:
        raise SensorError("GPU is lost")

    def close(self) -> None:
        pass


def test_a_sensor_that_cannot_be_read_is_a_finding_too():
    time = Time()
    finding = examine(Discovery(sensors=[Broken()]), clock=time, sleep=time.sleep)[0]
    assert (finding.value, finding.method, finding.detail) == (None, "missing", "GPU is lost")
