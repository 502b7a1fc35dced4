"""Energy counters of processor packages and memory, as Linux shows them under /sys/class/powercap.

The kernel's intel-rapl driver serves Intel and AMD processors alike (Documentation/power/powercap/powercap.rst): a
zone `intel-rapl:N` is a package, `intel-rapl:N:M` a domain in it. A package already holds its cores and its uncore, so
those are left out; `dram` lies outside of the package and is read beside it; `psys` overlaps with everything and is
left out, and so are the `intel-rapl-mmio` zones, which show the same counters a second time.
"""

import re
from pathlib import Path

from efftrain.record.quantities import COVERAGE_FACTOR
from efftrain.sensors.protocol import Absent, Component, SensorError, SensorInfo

POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 0.1
TICK_S = 0.001
"""About how often the counters are updated (Intel SDM vol. 3, 15.10.3)."""
CURE_PERMISSION = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
CURE_NO_ZONE = "on a physical machine: sudo modprobe intel_rapl_msr; a virtual machine has no RAPL of its own"
CURE_HIDDEN = "run outside of the container, or mount /sys/devices/virtual/powercap into it"

# Makers state no bound. Held against external meters the counters follow the power closely, best on servers, memory
# less so when idle (Desrochers, Paradis, Weaver, MEMSYS 2016, doi:10.1145/2989081.2989088; Khan et al., "RAPL in
# Action", 2018). Taken here, on the cautious side, as 95 % bounds: ±10 % for a package, ±20 % for memory.
U_RELATIVE: dict[Component, float] = {"cpu": 0.10 / COVERAGE_FACTOR, "dram": 0.20 / COVERAGE_FACTOR}
BOUNDARY: dict[Component, str] = {
    "cpu": "one processor package with its cores and caches, for everything that runs on it; no voltage regulators",
    "dram": "the memory of one package, for everything that runs on the machine",
}

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")


class RaplSensor:
    """One package or memory counter in J.

    Args:
        zone: folder with `energy_uj` and `max_energy_range_uj`.
        name: name of the sensor.
        component: what the counter counts.

    Raises:
        SensorError: the counter cannot be read; `__cause__` tells why.
    """

    def __init__(self, zone: Path, name: str, component: Component) -> None:
        self._counter = zone / "energy_uj"
        self.info = SensorInfo(
            name=name, component=component, device="host", kind="energy", unit="J",
            wrap_at=_microjoules(zone / "max_energy_range_uj"), u_relative=U_RELATIVE[component],
            period_s=PERIOD_S, tick_s=TICK_S,
            method="measured", source=f"RAPL energy counter {name} (±{U_RELATIVE[component] * COVERAGE_FACTOR:.0%})",
            boundary=BOUNDARY[component],
        )  # fmt: skip
        self.read()

    def read(self) -> float:
        """Joules since an unknown start; starts again at 0 past `info.wrap_at`."""
        return _microjoules(self._counter)

    def close(self) -> None:
        """Nothing is held: sysfs is opened anew for each reading."""


def find_rapl(root: Path = POWERCAP) -> tuple[list[RaplSensor], list[Absent]]:
    """The counters that can be read under `root`, and why others cannot; both of `cpu` and of `dram`."""
    sensors: list[RaplSensor] = []
    absent: list[Absent] = []
    zones = [path for path in sorted(root.glob("intel-rapl:*")) if _ZONE.fullmatch(path.name)]
    for zone, name, component in _counters(zones):
        try:
            sensors.append(RaplSensor(zone, name, component))
        except SensorError as error:
            cure = CURE_PERMISSION if isinstance(error.__cause__, PermissionError) else ""
            absent.append(Absent(component=component, name=name, why=str(error), cure=cure))
    known: set[str] = {s.info.component for s in sensors} | {a.component for a in absent}
    if "cpu" not in known:
        absent.append(_no_package(zones, root))
    if "dram" not in known:
        why = "RAPL has no counter for memory here"
        absent.append(Absent(component="dram", name="rapl:dram", why=why))
    return sensors, absent


def _counters(zones: list[Path]) -> list[tuple[Path, str, Component]]:
    """Zone, sensor name and component of each package and of each memory domain."""
    labels = {zone.name: label for zone in zones if (label := _label(zone))}
    found: list[tuple[Path, str, Component]] = []
    for zone in zones:
        label = labels.get(zone.name, "")
        package = labels.get(zone.name.rpartition(":")[0], "")
        if _PACKAGE.fullmatch(label):
            found.append((zone, f"rapl:{label}", "cpu"))
        elif label == "dram" and _PACKAGE.fullmatch(package):
            found.append((zone, f"rapl:{package}:dram", "dram"))
    return found


def _label(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _no_package(zones: list[Path], root: Path) -> Absent:
    hidden = bool(zones) and not any(_label(zone) for zone in zones)
    why = "RAPL zones are hidden from this process" if hidden else f"no RAPL package under {root}"
    return Absent(component="cpu", name="rapl", why=why, cure=CURE_HIDDEN if hidden else CURE_NO_ZONE)


def _microjoules(path: Path) -> float:
    """The content of a sysfs file in µJ, as J."""
    try:
        return int(path.read_text()) / 1e6
    except PermissionError as error:
        raise SensorError(f"{path}: may not be read by this user") from error
    except OSError as error:
        raise SensorError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SensorError(f"{path}: does not hold a number") from error
