"""The CPU seconds of this process and of its finished children: the stand-in where a processor tells nobody its energy.

The kernel counts them exactly; what is uncertain is how many watts a busy thread draws, and that figure is handed in
by whoever knows the processor.
"""

import resource
import time

from efftrain.record.quantities import Method
from efftrain.sensors.protocol import SensorInfo, Watts

NAME = "cpu-time"
PERIOD_S = 0.037
"""Finer than steps of 50 ms, and no round share of any: phases of such steps are then told apart to 2 % where 0.2 s
gave 12 %, for about 0.5 % of a core."""
BOUNDARY = (
    "busy threads of this process and of its finished child processes (compilers, say); not the processor's idle "
    "power, not other processes, not memory"
)


class CpuTimeSensor:
    """User and system time of all threads of this process and of its finished children, in s.

    Args:
        watts: W of one busy thread: value, low, high.
        method: how `watts` was obtained.
        source: where `watts` comes from.
    """

    def __init__(self, watts: Watts, method: Method, source: str) -> None:
        self.info = SensorInfo(
            name=NAME, component="cpu", device="host", kind="cpu_time", unit="s", watts_per_unit=watts,
            period_s=PERIOD_S, tick_s=0.0, method=method,
            source=f"CPU seconds of the process × {source}", boundary=BOUNDARY,
        )  # fmt: skip

    def read(self) -> float:
        """CPU seconds since the process began."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time_ns() / 1e9 + children.ru_utime + children.ru_stime

    def close(self) -> None:
        """Nothing is held."""
