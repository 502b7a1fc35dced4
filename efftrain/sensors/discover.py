"""Which sensors this machine has.

Found are the GPUs of the run, the processor's own counters, and the process's CPU seconds where those counters cannot
be read. What the machine has and nobody can read is named with the reason and, where there is one, the cure: a missing
figure is then missing by name and never 0.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml

from efftrain.record.quantities import Method
from efftrain.sensors.cpu_time import CpuTimeSensor
from efftrain.sensors.nvml import Devices, find_gpus
from efftrain.sensors.protocol import Absent, Discovery, Sensor, Watts
from efftrain.sensors.rapl import POWERCAP, find_rapl

REST_OF_NODE = Absent(
    component="rest_of_node",
    name="rest-of-node",
    why="no sensor reads fans, disks, network, voltage regulators and the losses of the power supply",
    cure="give their watts with --node-overhead-w, from a meter at the wall if you can",
)


def discover(
    devices: Devices | None,
    *,
    cpu_watts: tuple[Watts, Method, str],
    assumed: Sequence[Sensor] = (),
    powercap: Path = POWERCAP,
    library: Any = pynvml,
    environ: Mapping[str, str] = os.environ,
) -> Discovery:
    """Open every sensor that belongs to a run.

    Args:
        devices: GPUs of the run, by number as CUDA counts or by UUID. Empty for a run on the CPU: GPUs that a run does
            not use are no part of it and are left alone. None: all GPUs that CUDA may see.
        cpu_watts: W of one busy thread, how that is known and from where; used only where no counter of the processor
            can be read.
        assumed: sensors that stand in for a component which nothing else reads.
        powercap: folder of the processor's counters.
        library: the `pynvml` module, or what acts like it.
        environ: where CUDA_VISIBLE_DEVICES stands.
    """
    gpus, gpu_absent = find_gpus(devices, library=library, environ=environ)
    counters, host_absent = find_rapl(powercap)
    sensors: list[Sensor] = [*gpus, *counters]
    if not any(s.info.component == "cpu" for s in counters):
        model = CpuTimeSensor(*cpu_watts)
        sensors.append(model)
        host_absent = [replace(a, stand_in=model.info.name) if a.component == "cpu" else a for a in host_absent]
    host_absent.append(REST_OF_NODE)
    read = {s.info.component for s in sensors}
    for sensor in assumed:
        component, name = sensor.info.component, sensor.info.name
        if component not in read:
            sensors.append(sensor)
            host_absent = [replace(a, stand_in=name) if a.component == component else a for a in host_absent]
    return Discovery(sensors=sensors, absent=[*gpu_absent, *host_absent])
