"""The board's three views of its power, simulated ones where there is no board, and a record of them.

Everything that is read goes into a journal, so that whatever is computed on the machine can be computed again from the
archive that comes back.
"""

import contextlib
import dataclasses
import gzip
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pynvml

from efftrain.meters.energy.series import Series
from efftrain.monitor.sampler import Sampler
from efftrain.record.journal import SCHEMA, JournalWriter, read_journal
from efftrain.sensors.nvml import find_gpus
from efftrain.sensors.protocol import Sensor, SensorError, SensorInfo
from efftrain.sensors.simulated import Habits, PowerCurve, SimulatedCounter, SimulatedPower

FAST_S = 0.002
COUNTER, INSTANT, AVERAGE = "counter", "instant", "average"
IDLE_W, LOAD_W = 100.0, 500.0
"""Of the simulated board."""


class Activity:
    """When the load ran: what a simulated board's power is made of."""

    def __init__(self) -> None:
        self._origin = time.monotonic_ns()
        self._bursts: list[tuple[float, float]] = []

    def begin(self) -> int:
        """The load begins; when, in ns."""
        now = time.monotonic_ns()
        self._bursts.append(((now - self._origin) / 1e9, math.inf))
        return now

    def end(self) -> int:
        """The load ends; when, in ns."""
        now = time.monotonic_ns()
        self._bursts[-1] = (self._bursts[-1][0], (now - self._origin) / 1e9)
        return now

    @property
    def curve(self) -> PowerCurve:
        """The board's power."""
        return PowerCurve(self._power, self._energy)

    def _power(self, t: float) -> float:
        return LOAD_W if any(start <= t < end for start, end in self._bursts[-2:]) else IDLE_W

    def _energy(self, t: float) -> float:
        busy = sum(min(end, t) - start for start, end in self._bursts if start < t)
        return IDLE_W * t + (LOAD_W - IDLE_W) * busy


class AveragePower:
    """What `nvmlDeviceGetPowerUsage` shows, a mean over some time on most boards, in W.

    Raises:
        SensorError: the board does not show it.
    """

    def __init__(self, counter: SensorInfo) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(counter.device)
        self.info = dataclasses.replace(
            counter, name=AVERAGE, kind="power", unit="W", witness_of=COUNTER, u_lag_s=0.0,
            source="NVML power (nvmlDeviceGetPowerUsage)",
        )  # fmt: skip
        self.read()

    def read(self) -> float:
        """Watts."""
        try:
            return pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
        except pynvml.NVMLError as error:
            raise SensorError(str(error)) from error

    def close(self) -> None:
        """Leave NVML."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class Renamed:
    """A sensor under another name, read in another rhythm."""

    def __init__(self, sensor: Sensor, **changes: Any) -> None:
        self.info = dataclasses.replace(sensor.info, **changes)
        self.read, self.close = sensor.read, sensor.close


def open_board() -> list[Sensor]:
    """Counter, momentary power and mean power of CUDA's first board, as far as it has them.

    Raises:
        ValueError: there is no board with an energy counter.
    """
    found, absent = find_gpus((0,))
    if not found or found[0].info.kind != "energy":
        why = "; ".join(a.why for a in absent) or "the first board has no energy counter"
        raise ValueError(f"{why}; --dry runs the script without one")
    sensors: list[Sensor] = [Renamed(found[0], name=COUNTER)]
    sensors += [Renamed(sensor, name=INSTANT, witness_of=COUNTER) for sensor in found[1:2]]
    with contextlib.suppress(SensorError, pynvml.NVMLError):
        sensors.append(AveragePower(found[0].info))
    return sensors


def simulated_board(activity: Activity, *, tick_s: float = 0.02) -> list[Sensor]:
    """The same three of a board that draws 100 W, and 500 W under load; its counter looks all the time."""
    clock, curve = time.monotonic_ns, activity.curve
    counter = SimulatedCounter(curve, clock=clock, habits=Habits(tick_s=tick_s), name=COUNTER)
    powers = [
        SimulatedPower(curve, clock=clock, habits=Habits(tick_s=tick_s, window_s=window), name=name)
        for name, window in ((INSTANT, tick_s / 4), (AVERAGE, 0.5))
    ]
    return [counter, *(Renamed(power, witness_of=COUNTER) for power in powers)]


def series_of(path: Path) -> dict[str, Series]:
    """The series of each sensor of a journal, by name."""
    journal = read_journal(path)
    found = {info["name"]: Series(info) for info in journal.header["sensors"]}
    for line in journal.of("tick"):
        found[line["sensor"]].add(line["t"], line["value"], line.get("since"))
    return found


@contextlib.contextmanager
def watched(path: Path, sensors: Sequence[Sensor], *, period_s: float = FAST_S) -> Iterator[Sampler]:
    """Read sensors into a journal while the body runs; afterwards there is a compressed copy of it beside it."""
    path.unlink(missing_ok=True)
    fast = [Renamed(sensor, period_s=period_s) for sensor in sensors]
    with contextlib.closing(JournalWriter(path)) as journal:
        infos = [dataclasses.asdict(sensor.info) for sensor in fast]
        journal.write("header", schema=SCHEMA, sensors=infos, absent=[])
        sampler = Sampler(fast, journal)
        sampler.start()
        try:
            yield sampler
        finally:
            sampler.stop()
    pack(path, path.with_name(path.name + ".gz"))


def pack(source: Path, target: Path) -> None:
    """Write a compressed copy."""
    target.write_bytes(gzip.compress(source.read_bytes()))
