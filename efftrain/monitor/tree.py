"""CPU seconds of a process tree in the place of those of one process, where the processor has no counter."""

from dataclasses import replace

from efftrain.sensors.process_tree import ProcessTreeSensor
from efftrain.sensors.protocol import Discovery, Sensor, SensorError


def of_tree(discovery: Discovery, root: int, *, with_root: bool = True) -> Discovery:
    """The same sensors, but those that read CPU seconds read those of a tree; never raises.

    Args:
        discovery: sensors as found.
        root: the process at the root of the tree.
        with_root: whether its own seconds count.
    """

    def swapped(sensor: Sensor) -> Sensor:
        if sensor.info.kind != "cpu_time":
            return sensor
        try:
            return ProcessTreeSensor(sensor.info, root, with_root=with_root)
        except SensorError:  # no /proc here
            return sensor

    return replace(discovery, sensors=[swapped(sensor) for sensor in discovery.sensors])
