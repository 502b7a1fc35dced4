"""A machine with simulated boards: the file that the driver reads, and what can be changed in it while others read it.

Time is CLOCK_MONOTONIC (`time.monotonic_ns()`), which all processes of a machine share, counted in s from the moment
the world was made. So every process sees the same readings, and the true energy needs no reading at all.
"""

import contextlib
import ctypes
import mmap
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import pynvml

from nvml_driver.build import SONAME, build
from nvml_driver.curves import Curve
from nvml_driver.layout import MAGIC, MAX_DEVICES, MAX_RESETS, MAX_RULES, DeviceLayout, SegmentLayout, WorldLayout

VARIABLE = "NVML_WORLD"
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Rule:
    """Calls that fail.

    Attributes:
        function: by pynvml's name, for all its versions; `*`: every call; the name of a field, as
            `NVML_FI_DEV_POWER_INSTANT`: that field's own return code.
        code: an `NVML_ERROR_*` of pynvml.
        device: number of a board; None: all of them, and calls that belong to none.
        start_s: from when, in s of the world.
        end_s: until when.
    """

    function: str
    code: int
    device: int | None = None
    start_s: float = -NEVER
    end_s: float = NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What a board is; None: it cannot be asked (NOT_SUPPORTED)."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str | None = None  # made from the board's number
    bus_id: str | None = None
    architecture: int | None = pynvml.NVML_DEVICE_ARCH_HOPPER
    brand: int | None = pynvml.NVML_BRAND_NVIDIA
    compute_capability: tuple[int, int] = (9, 0)
    power_limit_w: float | None = 700.0
    sm_clock_mhz: int | None = 1980
    memory_clock_mhz: int | None = 2619
    memory_bytes: int | None = 80 * 2**30
    temperature_c: int | None = 50
    utilization: int | None = 100
    mig: bool | None = None
    parts: Sequence[str] = ()
    """UUIDs of MIG devices on it."""
    virtualization: int | None = pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE
    processes: Sequence[int] = ()
    """PIDs of compute processes on it."""


@dataclass(frozen=True, slots=True)
class Device(_Facts):
    """A board: its power curve, what its meter makes of it, and what it says of itself.

    At each tick, `tick_phase_s + k · tick_s`, the meter takes stock, and shows it `lag_s` and up to `jitter_s` later:
    the counter grows by the tick's length times the mean power over the `counter_window_s` before it; power readings
    are means over theirs.

    Attributes:
        curve: what the board draws.
        tick_s: time between two ticks.
        tick_phase_s: when the first one is; at least 0, at most `tick_s`.
        lag_s: how late a tick is shown.
        jitter_s: what may be added to that, uniformly; with the lag less than a tick.
        counter_window_s: averaging window of the counter; None: the whole tick, so that it shows the true integral.
        average_window_s: of `nvmlDeviceGetPowerUsage` and of the field POWER_AVERAGE.
        instant_window_s: of the field POWER_INSTANT; 0: the power at the tick.
        gain: factor between reading and truth, for counter and power.
        power_gain: of the power alone; None: as `gain`.
        counter_start_j: the counter at t = 0.
        resets_s: when the counter starts again at 0.
    """

    curve: Curve
    _: KW_ONLY
    tick_s: float = 0.1
    tick_phase_s: float = 0.0
    lag_s: float = 0.0
    jitter_s: float = 0.0
    counter_window_s: float | None = None
    average_window_s: float = 1.0
    instant_window_s: float = 0.025
    gain: float = 1.0
    power_gain: float | None = None
    counter_start_j: float = 12_345.678
    resets_s: Sequence[float] = ()


class World:
    """Boards that run from now on.

    Args:
        devices: the boards, in NVML's order.
        rules: calls that fail, from the beginning.
        missing: functions that the driver does not have: FUNCTION_NOT_FOUND. Other processes get a library without
            them, this process one that gives that error.
        driver: its version.
        origin_ns: monotonic ns of t = 0; None: now.
        folder: where the file is put; None: a temporary one.
    """

    def __init__(
        self, devices: Sequence[Device], *, rules: Sequence[Rule] = (), missing: Sequence[str] = (),
        driver: str = "580.65.06", origin_ns: int | None = None, folder: Path | None = None,
    ) -> None:  # fmt: skip
        if len(devices) > MAX_DEVICES:
            raise ValueError(f"devices: {len(devices)} boards, but the driver has room for {MAX_DEVICES}")
        self.devices = tuple(devices)
        self.missing = frozenset(missing)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="nvml-world-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = folder / "world"
        self.path.write_bytes(bytes(ctypes.sizeof(WorldLayout)))
        with self.path.open("r+b") as file:
            self._live = WorldLayout.from_buffer(mmap.mmap(file.fileno(), 0))
        self.origin_ns = time.monotonic_ns() if origin_ns is None else origin_ns
        self._live.origin_ns, self._live.devices, self._live.driver = self.origin_ns, len(devices), driver.encode()
        for index, device in enumerate(devices):
            _write(self._live.device[index], index, device)
        for function in sorted(self.missing):
            self.fail(Rule(function, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
        for rule in rules:
            self.fail(rule)
        self._live.magic = MAGIC

    def environ(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """`base`, and what makes a process see this world."""
        folders = [str(build(self.missing).parent), *filter(None, [base.get("LD_LIBRARY_PATH")])]
        return {**base, "LD_LIBRARY_PATH": os.pathsep.join(folders), VARIABLE: str(self.path)}

    @contextlib.contextmanager
    def installed(self) -> Iterator["World"]:
        """This process sees this world, and afterwards a machine without a driver again.

        Raises:
            RuntimeError: the process has loaded a real driver before.
        """
        ctypes.CDLL(str(build()))  # from now on the dynamic linker has a library of this name
        if not hasattr(pynvml.nvmlLib or ctypes.CDLL(SONAME), "nvmlSimulated"):
            raise RuntimeError("this process uses the machine's own NVML driver: simulate in another process")
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self.path)
        try:
            yield self
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before

    def seconds(self, t_ns: int | None = None) -> float:
        """A time of `time.monotonic_ns()`, or now, in s of the world."""
        return ((time.monotonic_ns() if t_ns is None else t_ns) - self.origin_ns) / 1e9

    def true_energy(self, device: int, start_ns: int, end_ns: int) -> float:
        """Joules that a board has drawn between two times of `time.monotonic_ns()`, whatever its meter shows."""
        return self.devices[device].curve.energy(self.seconds(start_ns), self.seconds(end_ns))

    def fail(self, rule: Rule) -> None:
        """From now on, calls fail by this rule too; the first of several that apply counts."""
        place = self._live.rules
        if place == MAX_RULES:
            raise ValueError(f"rule: there is room for {MAX_RULES} rules")
        name = f"field {getattr(pynvml, rule.function)}" if rule.function.startswith("NVML_FI_") else rule.function
        live = self._live.rule[place]
        live.name, live.code = name.encode(), rule.code
        live.device = -1 if rule.device is None else rule.device
        live.start_s, live.end_s = rule.start_s, rule.end_s
        self._live.rules = place + 1  # last: readers look at the rules below it

    def lose(self, device: int) -> None:
        """The board falls off the bus: from now on every call for it gives GPU_IS_LOST."""
        self.fail(Rule("*", pynvml.NVML_ERROR_GPU_IS_LOST, device=device))

    def mend(self) -> None:
        """All calls answer again, but for functions that the driver does not have."""
        self._live.rules = len(self.missing)

    def reset_counter(self, device: int, at_s: float | None = None) -> None:
        """The board's energy counter starts again at 0: now, or at a time in s of the world."""
        live = self._live.device[device]
        if live.resets == MAX_RESETS:
            raise ValueError(f"device: board {device} has room for {MAX_RESETS} resets")
        live.resets_s[live.resets] = self.seconds() if at_s is None else at_s
        live.resets += 1


def _write(live: DeviceLayout, index: int, device: Device) -> None:
    """Put a board into the file."""
    window_s = device.tick_s if device.counter_window_s is None else device.counter_window_s
    power_gain = device.gain if device.power_gain is None else device.power_gain
    live.name, live.uuid = device.name.encode(), uuid_of(index, device).encode()
    live.bus_id = (device.bus_id or f"00000000:{index + 1:02X}:00.0").encode()
    for part, uuid in enumerate(device.parts):
        live.parts[part].value = uuid.encode()
    for place, segment in enumerate(device.curve.segments):
        live.curve[place] = SegmentLayout(segment.duration_s, segment.from_w, segment.to_w)
    live.segments, live.repeat, live.phase_s = len(device.curve.segments), device.curve.repeat, device.curve.phase_s
    live.tick_s, live.tick_phase_s, live.lag_s, live.jitter_s = (
        device.tick_s, device.tick_phase_s, device.lag_s, device.jitter_s,
    )  # fmt: skip
    live.counter_window_s, live.counter_gain, live.power_gain = window_s, device.gain, power_gain
    live.average_window_s, live.instant_window_s = device.average_window_s, device.instant_window_s
    live.counter_start_j = device.counter_start_j
    for place, reset_s in enumerate(device.resets_s):
        live.resets_s[place] = reset_s
    live.resets = len(device.resets_s)
    _write_facts(live, device)


def _write_facts(live: DeviceLayout, facts: _Facts) -> None:
    def known(value: float | None) -> int:
        return -1 if value is None else round(value)

    limit_w = facts.power_limit_w
    live.power_limit_mw = known(None if limit_w is None else limit_w * 1000)
    live.min_limit_mw = known(None if limit_w is None else limit_w * 300)
    live.architecture, live.brand, live.mig = known(facts.architecture), known(facts.brand), known(facts.mig)
    live.major, live.minor = facts.compute_capability
    live.virtualization, live.temperature_c = known(facts.virtualization), known(facts.temperature_c)
    live.sm_mhz, live.memory_mhz = known(facts.sm_clock_mhz), known(facts.memory_clock_mhz)
    live.memory_bytes, live.utilization = known(facts.memory_bytes), known(facts.utilization)
    live.part_count, live.process_count = len(facts.parts), len(facts.processes)
    for place, pid in enumerate(facts.processes):
        live.processes[place] = pid


def uuid_of(index: int, device: Device) -> str:
    """A board's UUID: its own, or one made from its number."""
    return device.uuid or f"GPU-{index:08x}-51e0-4a7e-9c0d-{index:012x}"
