"""What a sensor is: something that can be read, and what a reader must know to use the readings.

A sensor hands out raw readings in its own unit and computes nothing. Everything that turns readings into joules (unit,
wrap, watts per unit, gain error) travels in `SensorInfo` through the journal's header to whoever does the arithmetic.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from efftrain.record.quantities import Method

Component = Literal["gpu", "cpu", "dram", "rest_of_node"]
"""The part of the machine whose energy a sensor reads."""

Watts = tuple[float, float, float]
"""Value, low and high of a power in W."""


class SensorError(RuntimeError):
    """A reading that could not be taken; one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorInfo:
    """What a sensor reads.

    Attributes:
        name: unique on this machine, as `gpu0`, `rapl:package-0`, `cpu-time`.
        component: `gpu`, `cpu`, `dram` or `rest_of_node`.
        device: UUID of a GPU; `host` for what belongs to the whole machine.
        kind: `energy`, a cumulative counter; `power`; `cpu_time`, cumulative busy seconds; or `elapsed`, the seconds of
            a part that draws an assumed power all the time.
        unit: of a reading: `J`, `W` or `s`.
        wrap_at: reading at which a counter starts again at 0, in `unit`, or None.
        watts_per_unit: only for `cpu_time` and `elapsed`: W of one busy thread, or of the part, as (value, low, high).
        u_relative: relative standard uncertainty of a gain error, which repetition does not reduce.
        u_lag_s: standard uncertainty in s of how far the readings lie behind what they count.
        period_s: how often it is worth reading, in s.
        tick_s: the time between two updates of a counter, as its maker states it; 0: it is exact whenever it is read;
            None: to be learned from the readings.
        witness_of: name of the counter of the same device that this power stands beside; it is not billed, but tells
            what happened between two updates of the counter, and whether both agree.
        method: `measured`, `modelled` or `assumed`.
        source: what is read, with its known error; never empty.
        boundary: what the readings count and what not.
    """

    name: str
    component: Component
    device: str
    kind: Literal["energy", "power", "cpu_time", "elapsed"]
    unit: Literal["J", "W", "s"]
    wrap_at: float | None = None
    watts_per_unit: Watts | None = None
    u_relative: float = 0.0
    u_lag_s: float = 0.0
    period_s: float
    tick_s: float | None = None
    witness_of: str | None = None
    method: Method
    source: str
    boundary: str


class Sensor(Protocol):
    """Something that can be read."""

    @property
    def info(self) -> SensorInfo:
        """What is read."""
        ...

    def read(self) -> float:
        """One raw reading, in `info.unit`.

        Raises:
            SensorError: no reading now; a later one may succeed.
        """
        ...

    def close(self) -> None:
        """Let go of what the sensor holds; a second call does nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A component that the machine has and that cannot be read.

    Attributes:
        component: `gpu`, `cpu`, `dram` or `rest_of_node`.
        name: of the sensor that is not there, as `rapl:package-0`.
        why: the reason, in one line.
        cure: the command or the deed that would help; empty where nothing would.
        stand_in: name of the sensor that reads the component in its place, or empty: then its energy is missing.
    """

    component: Literal["gpu", "cpu", "dram", "rest_of_node"]
    name: str
    why: str
    cure: str = ""
    stand_in: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The sensors found, open and ready to read, and what could not be found."""

    sensors: list[Sensor] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
