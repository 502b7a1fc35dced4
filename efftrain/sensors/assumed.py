"""Parts that draw about the same power all the time and that no sensor reads: an assumed power and a clock.

What is read is the time; the watts, with their limits, travel in the sensor's description, so that whoever does the
arithmetic can put another figure in their place.
"""

import time

from efftrain.record.journal import Clock
from efftrain.sensors.protocol import Component, SensorInfo, Watts

PERIOD_S = 0.5


class AssumedPower:
    """The seconds since it was opened, of a part with an assumed power.

    Args:
        name: of the sensor.
        component: the part.
        watts: W of the part: value, low, high.
        source: where the watts come from.
        boundary: what the part is.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, name: str, component: Component, watts: Watts, source: str, boundary: str, *,
        clock: Clock = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self.info = SensorInfo(
            name=name, component=component, device="host", kind="elapsed", unit="s", watts_per_unit=watts,
            period_s=PERIOD_S, tick_s=0.0, method="assumed", source=source, boundary=boundary,
        )  # fmt: skip
        self._clock = clock
        self._origin = clock()

    def read(self) -> float:
        """Seconds since it was opened."""
        return (self._clock() - self._origin) / 1e9

    def close(self) -> None:
        """Nothing is held."""
