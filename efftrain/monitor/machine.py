"""This machine as a run sees it: the sensors of the run's device, and the environment for the header.

Sensors know nothing of hardware and hardware nothing of sensors, so what needs both is put together here: the watts of
a busy thread come from the processor's name, the facts about a GPU from the library that reads its counter.
"""

import os
from collections.abc import Mapping
from typing import Any

from efftrain.hardware import probe
from efftrain.hardware.catalogue import memory_watts, node_watts, watts_per_thread
from efftrain.sensors.assumed import AssumedPower
from efftrain.sensors.discover import REST_OF_NODE, discover
from efftrain.sensors.nvml import Devices, gpu_facts
from efftrain.sensors.protocol import Absent, Discovery


def find_sensors(
    device: str | None, *, gpus: Devices = (), node_overhead_w: float | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Discovery:  # fmt: skip
    """Open the sensors of a run; never raises.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; None for every device of the machine, as `efftrain doctor` wants them.
        gpus: UUIDs of the GPUs, where torch has told them; else they are found by number.
        node_overhead_w: W of what no sensor reads, as the user gives it; None: assumed, where that can be done.
        environ: where CUDA_VISIBLE_DEVICES stands.
    """
    try:
        cpu = probe.cpu()
        watts = watts_per_thread(cpu.model, cores_per_package=cpu.cores // cpu.packages, guest=cpu.guest)
        assumed = _assumed(node_overhead_w, guest=cpu.guest)
        return discover(gpus or _devices(device), cpu_watts=watts, assumed=assumed, environ=environ)
    except Exception as error:  # a figure less, never a run less
        why = f"looking for sensors failed: {error or type(error).__name__}"
        absent = [Absent(component="cpu", name="cpu", why=why), Absent(component="dram", name="dram", why=why)]
        if device is not None and device != "cpu":
            absent.insert(0, Absent(component="gpu", name="gpu", why=why))
        return Discovery(absent=[*absent, REST_OF_NODE])


def environment(device: str, *, gpus: Devices = (), environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The environment of a run on `device`, with the facts about its GPUs; arguments as in `find_sensors`."""
    return probe.environment(device, gpu_facts(gpus or _devices(device), environ=environ))


def compute_capability(device: str) -> tuple[int, int] | None:
    """CUDA's compute capability of a run's device as NVML tells it; None for a CPU, or where it cannot be asked."""
    told = next((facts.get("compute_capability") for facts in gpu_facts(_devices(device))), None)
    if not told:
        return None
    major, minor = told.split(".")
    return int(major), int(minor)


def _assumed(node_overhead_w: float | None, *, guest: bool) -> list[AssumedPower]:
    """Stand-ins for memory and for the rest of the node."""
    found = [AssumedPower("memory", "dram", *memory_watts(probe.memory_bytes()), boundary=_MEMORY)]
    node = node_watts(guest=guest)
    if node_overhead_w is not None:
        node = (node_overhead_w, node_overhead_w, node_overhead_w), f"{node_overhead_w:g} W, given by --node-overhead-w"
    if node is not None:
        found.append(AssumedPower("rest-of-node", "rest_of_node", *node, boundary=_REST))
    return found


_MEMORY = "main memory that this process may use, whether it does or not"
_REST = "fans, disks, network, voltage regulators, losses of the power supply: of the whole machine"


def _devices(device: str | None) -> Devices | None:
    """`cuda` is CUDA's first device; a run on the CPU uses none."""
    if device is None:
        return None
    return () if device == "cpu" else (int(device.partition(":")[2] or 0),)
