"""What the makers say: peak rates of training devices, and the thermal design power of processors.

A rate stands here only under the exact name that NVML and torch give to a device, and only where a datasheet has it.
Names are compared whole. A match by part of a name is how an L40 gets the peak of an L4, an RTX A4000 that of an A40
and an H20 that of an H100 ("GH100 [H20]"); a device that is not here has no peak, and its MFU is missing.
"""

import csv
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from efftrain.record.quantities import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A dense peak rate in FLOP/s and the document that states it."""

    flops_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class _Part:
    """One product: its datasheet and, by dtype, dense TFLOP/s; `float16` and `bfloat16` accumulate in float32."""

    source: str
    float32: float | None = None
    tf32: float | None = None
    bfloat16: float | None = None
    float16: float | None = None


def peak_flops(device_name: str, dtype: str) -> Peak | None:
    """The dense peak of a device in `float32`, `tf32`, `bfloat16` or `float16`; None: not known.

    `float32` is the rate without tensor cores, which is what a matrix product runs at while TF32 is not allowed.
    """
    part = PEAK.get(device_name)
    rate = getattr(part, dtype) if part is not None and dtype in DTYPES else None
    return None if part is None or rate is None else Peak(flops_per_s=rate * 1e12, source=part.source)


def cpu_tdp(model_name: str) -> float | None:
    """Thermal design power in W of a processor by its name in /proc/cpuinfo; None: not known.

    The table is codecarbon's data/hardware/cpu_power.csv, read without importing codecarbon.
    """
    return _tdp_table().get(_normal(model_name))


def watts_per_thread(
    cpu_model: str, *, cores_per_package: int, guest: bool
) -> tuple[tuple[float, float, float], Method, str]:
    """W that one busy thread draws, as (value, low, high), with its method and source.

    The design power shared among the cores, where the part is known and its cores are ours. A full package draws about
    its design power, so a thread that has a core to itself draws TDP / cores; two threads on one core share it, and
    light code on all cores stays well below, which makes the low end half of it; a lone thread runs at turbo clocks and
    pays for the shared parts of the package, which makes the high end twice of it. A guest sees neither the part's
    real cores nor its neighbours.

    Args:
        cpu_model: as /proc/cpuinfo has it.
        cores_per_package: physical cores of one package.
        guest: whether this is a virtual machine.
    """
    tdp = None if guest or cores_per_package < 1 else cpu_tdp(cpu_model)
    if tdp is None:
        why = "a virtual machine" if guest else f"no design power is known for {cpu_model!r}"
        return ASSUMED_WATTS, "assumed", f"4 W (2 to 10) per busy thread: {why}"
    watts = tdp / cores_per_package
    source = f"{watts:.3g} W per busy thread: design power {tdp:g} W of {cpu_model} / {cores_per_package} cores"
    return (watts, 0.5 * watts, 2.0 * watts), "modelled", f"{source} (codecarbon's cpu_power.csv)"


def memory_watts(memory_bytes: int) -> tuple[tuple[float, float, float], str]:
    """W that main memory draws where nobody counts it, as (value, low, high), with the source.

    Args:
        memory_bytes: what this process may use: a container is not charged for its host's memory.
    """
    gigabytes = memory_bytes / 1e9
    value, low, high = (rate * gigabytes for rate in MEMORY_W_PER_GB)
    rates = "{:g} W ({:g} to {:g}) per GB".format(*MEMORY_W_PER_GB)
    return (value, low, high), f"{value:.2g} W: {rates} of the {gigabytes:.3g} GB that this process may use"


def node_watts(*, guest: bool) -> tuple[tuple[float, float, float], str] | None:
    """W of what no sensor reads: fans, disks, network, regulators, losses of the supply; with the source.

    None for a guest: which share of its host's it has to answer for, it cannot know.
    """
    if guest:
        return None
    return NODE_W, (
        "{:g} W ({:g} to {:g}): what wall meters showed beyond the sensors of a workstation, nearly constant from 77 "
        "to 91 W (raw data of Fischer 2025, arXiv:2509.22092); other machines differ".format(*NODE_W)
    )


MEMORY_W_PER_GB = (0.17, 0.08, 0.375)
"""From 5 W for a module of 64 GB to 3 W for 8 GB, codecarbon's figures now and before version 3; geometric mean."""

NODE_W = (84.0, 30.0, 200.0)

DTYPES = ("float32", "tf32", "bfloat16", "float16")

ASSUMED_WATTS = (4.0, 2.0, 10.0)
"""A busy thread of a processor that is not known: from laptop cores to server cores at full clocks."""

_A100 = _Part("NVIDIA A100 datasheet", 19.5, 156, 312, 312)
_H100 = _Part("NVIDIA H100 architecture whitepaper, H100 SXM5, dense", 66.9, 494.7, 989.4, 989.4)
_H200 = _Part("NVIDIA H200 datasheet, SXM, half of the figure with sparsity", 67, 494.5, 989.5, 989.5)
_V100_SXM2 = _Part("NVIDIA V100 datasheet, SXM2", float32=15.7, float16=125)
_V100_PCIE = _Part("NVIDIA V100 datasheet, PCIe", float32=14, float16=112)

# fmt: off
PEAK: dict[str, _Part] = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": _Part("NVIDIA H100 architecture whitepaper, H100 PCIe, dense", 51.2, 378, 756, 756),
    "NVIDIA H100 NVL": _Part("NVIDIA H100 NVL datasheet, half of the figure with sparsity", 60, 417.5, 835.5, 835.5),
    "NVIDIA H200": _H200,
    "NVIDIA H200 NVL": _Part("NVIDIA H200 datasheet, NVL, half of the figure with sparsity", 60, 417.5, 835.5, 835.5),
    "NVIDIA H20": _Part("NVIDIA H20 specification as published by its vendors, dense", 44, 74, 148, 148),
    "NVIDIA GH200 480GB": _Part("NVIDIA GH200 datasheet, half of the figure with sparsity", 67, 494.5, 989.5, 989.5),
    # NVIDIA's own documents disagree about TF32 and float32 of these three, so they are not here.
    "NVIDIA B200": _Part("NVIDIA HGX B200 datasheet, dense, per GPU", bfloat16=2250, float16=2250),
    "NVIDIA B300 SXM6 AC": _Part("NVIDIA HGX B300 datasheet, dense, per GPU", bfloat16=2250, float16=2250),
    "NVIDIA GB200": _Part("NVIDIA GB200 NVL72 datasheet, dense, per GPU", bfloat16=2500, float16=2500),
    "NVIDIA L4": _Part("NVIDIA L4 datasheet, half of the figure with sparsity", 30.3, 60, 121, 121),
    "NVIDIA L40": _Part("NVIDIA L40 datasheet, dense", 90.5, 90.5, 181.05, 181.05),
    "NVIDIA L40S": _Part("NVIDIA L40S datasheet, dense", 91.6, 183, 362.05, 362.05),
    "NVIDIA A10": _Part("NVIDIA A10 datasheet", 31.2, 62.5, 125, 125),
    "NVIDIA A30": _Part("NVIDIA A30 datasheet", 10.3, 82, 165, 165),
    "NVIDIA A40": _Part("NVIDIA A40 datasheet", 37.4, 74.8, 149.7, 149.7),
    "NVIDIA RTX A4000": _Part("NVIDIA RTX A4000 datasheet, half of the figure with sparsity", 19.2, None, 76.7, 76.7),
    "NVIDIA RTX A6000": _Part("NVIDIA Ampere GA102 whitepaper, RTX A6000, dense", 38.7, 77.4, 154.8, 154.8),
    "NVIDIA RTX 6000 Ada Generation": _Part("NVIDIA Ada whitepaper, RTX 6000, dense", 91.1, 182.1, 364.2, 364.2),
    "NVIDIA GeForce RTX 3090": _Part("NVIDIA Ampere GA102 whitepaper, dense, FP32 accumulate", 35.6, 35.6, 71, 71),
    "NVIDIA GeForce RTX 4090": _Part("NVIDIA Ada whitepaper, dense, FP32 accumulate", 82.6, 82.6, 165.2, 165.2),
    "NVIDIA GeForce RTX 5090": _Part("NVIDIA RTX Blackwell whitepaper, dense, FP32 acc.", 104.8, 104.8, 209.5, 209.5),
    "Tesla V100-SXM2-16GB": _V100_SXM2,
    "Tesla V100-SXM2-32GB": _V100_SXM2,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    "Tesla T4": _Part("NVIDIA T4 datasheet", float32=8.1, float16=65),
    "AMD Instinct MI300X": _Part("AMD Instinct MI300X datasheet, dense", 163.4, 653.7, 1307.4, 1307.4),
}
# fmt: on

_NOISE = re.compile(
    r"""\((r|tm)\)            # marks
    | @.*                     # clock
    | ^\d+(st|nd|rd|th)\sgen  # generation, in front
    | \bwith\s.*graphics      # what else is on the die
    | \b\d+-core\b | \bcpu\b | \bprocessor\b""",
    re.VERBOSE,
)


def _normal(name: str) -> str:
    """A name without what cpuinfo adds: `Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz` becomes `intel core i7-8700`."""
    return " ".join(_NOISE.sub(" ", name.casefold()).split())


@functools.cache
def _tdp_table() -> dict[str, float]:
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "data" / "hardware" / "cpu_power.csv"
    table: dict[str, set[float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if re.fullmatch(r"\d+(\.\d+)?", row["TDP"]):  # a few are not numbers: "27.29.5"
                    table.setdefault(_normal(row["Name"]), set()).add(float(row["TDP"]))
    except (OSError, KeyError):
        return {}
    return {name: powers.pop() for name, powers in table.items() if len(powers) == 1}
