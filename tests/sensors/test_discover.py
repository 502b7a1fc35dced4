from pathlib import Path
from types import SimpleNamespace
from typing import Any

from efftrain.sensors.discover import discover
from efftrain.sensors.protocol import Discovery

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
