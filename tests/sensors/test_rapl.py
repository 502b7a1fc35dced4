from pathlib import Path

import pytest

from efftrain.sensors import rapl
from efftrain.sensors.protocol import SensorError
from efftrain.sensors.rapl import CURE_HIDDEN, CURE_PERMISSION, find_rapl

RANGE_UJ = 262_143_328_850


def make_zone(root: Path, zone: str, name: str, energy_uj: int | str = 0) -> Path:
    folder = root / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder


@pytest.fixture
def two_packages(tmp_path: Path) -> Path:
    make_zone(tmp_path, "intel-rapl:0", "package-0", 1_500_000)
    make_zone(tmp_path, "intel-rapl:0:0", "core", 1)
    make_zone(tmp_path, "intel-rapl:0:1", "uncore", 1)
    make_zone(tmp_path, "intel-rapl:0:2", "dram", 250_000)
    make_zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    make_zone(tmp_path, "intel-rapl:1:0", "dram", 750_000)
    make_zone(tmp_path, "intel-rapl:2", "psys", 9)
    make_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_500_000)
    make_zone(tmp_path, "intel-rapl", "package-9", 5)
    return tmp_path


def test_each_package_and_each_memory_once(two_packages: Path):
    sensors, absent = find_rapl(two_packages)
    assert {s.info.name: (s.info.component, s.read()) for s in sensors} == {
        "rapl:package-0": ("cpu", 1.5),
        "rapl:package-0:dram": ("dram", 0.25),
        "rapl:package-1": ("cpu", 2.0),
        "rapl:package-1:dram": ("dram", 0.75),
    }
    assert absent == []
    assert all(s.info.wrap_at == RANGE_UJ / 1e6 and s.info.unit == "J" for s in sensors)


def test_reading_follows_the_file(two_packages: Path):
    sensors, _ = find_rapl(two_packages)
    (two_packages / "intel-rapl:0/energy_uj").write_text("1750000")
    assert next(s for s in sensors if s.info.name == "rapl:package-0").read() == 1.75


def test_dies_of_one_package_are_packages(tmp_path: Path):
    make_zone(tmp_path, "intel-rapl:0", "package-0-die-0")
    make_zone(tmp_path, "intel-rapl:1", "package-0-die-1")
    sensors, _ = find_rapl(tmp_path)
    assert [s.info.name for s in sensors] == ["rapl:package-0-die-0", "rapl:package-0-die-1"]


def test_memory_under_psys_is_not_counted(tmp_path: Path):
    make_zone(tmp_path, "intel-rapl:0", "package-0")
    make_zone(tmp_path, "intel-rapl:1", "psys")
    make_zone(tmp_path, "intel-rapl:1:0", "dram")
    sensors, absent = find_rapl(tmp_path)
    assert [s.info.name for s in sensors] == ["rapl:package-0"]
    assert [a.component for a in absent] == ["dram"]


def test_no_permission_names_the_command_that_cures_it(two_packages: Path, monkeypatch: pytest.MonkeyPatch):
    read_text = Path.read_text

    def guarded(path: Path, *args: str, **kwargs: str) -> str:  # as root, permission bits do not bite
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)
    sensors, absent = find_rapl(two_packages)
    assert sensors == []
    assert sorted((a.component, a.name) for a in absent) == [
        ("cpu", "rapl:package-0"),
        ("cpu", "rapl:package-1"),
        ("dram", "rapl:package-0:dram"),
        ("dram", "rapl:package-1:dram"),
    ]
    assert {a.cure for a in absent} == {CURE_PERMISSION}
    assert CURE_PERMISSION.startswith("sudo chmod a+r")


def test_one_unreadable_package_leaves_the_other(two_packages: Path):
    (two_packages / "intel-rapl:1/energy_uj").unlink()
    (two_packages / "intel-rapl:1/energy_uj").mkdir()
    sensors, absent = find_rapl(two_packages)
    assert [s.info.name for s in sensors if s.info.component == "cpu"] == ["rapl:package-0"]
    assert [a.name for a in absent] == ["rapl:package-1"]
    assert absent[0].cure == ""


def test_a_file_without_a_number_is_a_sensor_error(two_packages: Path):
    sensors, _ = find_rapl(two_packages)
    (two_packages / "intel-rapl:0/energy_uj").write_text("")
    with pytest.raises(SensorError, match="does not hold a number"):
        sensors[0].read()


def test_no_memory_domain_is_said(tmp_path: Path):
    make_zone(tmp_path, "intel-rapl:0", "package-0")
    _, absent = find_rapl(tmp_path)
    assert [(a.component, a.why) for a in absent] == [("dram", "RAPL has no counter for memory here")]


def test_no_rapl_at_all(tmp_path: Path):
    sensors, absent = find_rapl(tmp_path / "powercap")
    assert sensors == []
    assert [a.component for a in absent] == ["cpu", "dram"]
    assert "modprobe" in absent[0].cure


def test_zones_masked_by_a_container(tmp_path: Path):
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "masked")
    _, absent = find_rapl(tmp_path)
    assert absent[0].cure == CURE_HIDDEN


def test_the_gain_error_is_stated():
    assert rapl.U_RELATIVE["cpu"] * 1.96 == pytest.approx(0.10)
