"""Grams of CO2e from making the hardware, and the part of them that a run must bear.

The share follows the Software Carbon Intensity specification (SCI 1.1, ISO/IEC 21031:2024): M = TE × time reserved /
lifetime × share of the resources. Hardware also stands idle, so its footprint is borne by the hours in which it is
used: the lifetime is multiplied by the utilisation, as in Luccioni et al. 2022 (BLOOM, arXiv:2211.02001), section 4.1.

Published footprints of computers are few. Where the very part has none, that of a comparable one is assumed, with an
interval that is ours and says so.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efftrain.record.quantities import Quantity, estimate, exact, missing, product, total

DEFAULT_LIFETIME_YEARS = 4.0
DEFAULT_UTILIZATION = 0.85
"""Share of its lifetime in which hardware is used; of BLOOM's cluster (Luccioni et al. 2022)."""

HOURS_PER_YEAR = 365 * 24
GPUS_PER_SERVER = 8
HOST_THREADS = (128.0, 64.0, 256.0)
"""Hardware threads of a server that hosts virtual machines: two sockets of 32 cores; from two of 16 to two of 64."""

_SERVER_KG = (2500.0, 1250.0, 5000.0)
_SERVER_SOURCE = "server without accelerators, 2500 kg (HPE's figure in Luccioni et al. 2022), half to twice assumed"
_BOUNDARY = "making of the hardware, cradle to gate; not its transport, its end of life, the network or the building"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What making one accelerator emits.

    Attributes:
        name: a pattern that the name of the board must hold.
        kg: best estimate and the ends of its 95 % interval, kg of CO2e.
        source: where the figure is from, and whose interval that is.
    """

    name: str
    kg: tuple[float, float, float]
    source: str


_H100 = "H100 SXM, 164 kg = 1312 kg per HGX board / 8 (NVIDIA, HGX H100 PCF summary, 2025)"
_A100 = "A100 SXM4 40 GB, 127.6 kg (Falk et al. 2025, arXiv:2509.00093)"

ACCELERATORS = (
    Footprint(r"H100 80GB HBM3", (164.0, 115.0, 246.0), f"{_H100}, 0.7 to 1.5 times assumed"),
    Footprint(r"A100-SXM4-40GB", (127.6, 89.0, 191.0), f"{_A100}, 0.7 to 1.5 times assumed"),
    Footprint(r"\b(H100|H200|H800|GH200)\b", (164.0, 82.0, 328.0), f"as of an {_H100}, half to twice assumed"),
    Footprint(r"\b(A100|A800)\b", (127.6, 64.0, 255.0), f"as of an {_A100}, half to twice assumed"),
    Footprint(
        r"",
        (150.0, 50.0, 450.0),
        "accelerator without a published footprint, 150 kg (assumed by Luccioni et al. 2022), a third to three "
        "times assumed",
    ),
)
"""The first whose pattern is found in a board's name holds; the last one holds for any."""


def embodied(environment: Mapping[str, Any], duration_s: float, settings: Mapping[str, Any]) -> Quantity:
    """Embodied CO2e in g of a run's share of its machine.

    With accelerators, each bears itself and an eighth of a server; without, the run bears the server's threads that it
    may use. What the machine is stands in the environment; which server hosts a virtual machine does not.

    Args:
        environment: of the run, as in the journal's header.
        duration_s: time for which the machine was reserved, s.
        settings: `lifetime_years` and `utilization`; the defaults where they are not given.
    """
    unknown = _unknown(environment, duration_s)
    if unknown:
        return missing("g", source=f"embodied carbon: {unknown}", boundary=_BOUNDARY)
    lifetime = settings.get("lifetime_years", DEFAULT_LIFETIME_YEARS)
    utilization = settings.get("utilization", DEFAULT_UTILIZATION)
    parts = [*_accelerators(environment["devices"]), _host(environment)]
    made = total(parts, boundary=_BOUNDARY, source="; ".join(part.source for part in parts))
    use = f"used {duration_s:.4g} s of {lifetime:g} years × {utilization:g} utilisation"
    part = time_share(duration_s, lifetime_years=lifetime, utilization=utilization)
    share = exact(part, "1", source=use, method="assumed")
    return product([made, share], "g", source=f"{made.source}; {use}", boundary=f"SCI's M: {_BOUNDARY}")


def time_share(duration_s: float, *, lifetime_years: float, utilization: float = 1.0) -> float:
    """Part of a footprint that falls on `duration_s` seconds of use; a year has 365 days."""
    return duration_s / 3600 / (lifetime_years * HOURS_PER_YEAR * utilization)


def accelerator(name: str, count: int = 1) -> Quantity:
    """What making `count` accelerators of this name emits, g; boards of one kind share the error of their figure."""
    found = next(f for f in ACCELERATORS if re.search(f.name, name, re.IGNORECASE))
    return _grams(found.kg, f"{count} × {found.source}", count)


def server(share: float = 1.0, *, why: str = "whole") -> Quantity:
    """What making a share of a server without its accelerators emits, g."""
    return _grams(_SERVER_KG, f"{why} of a {_SERVER_SOURCE}", share)


def _unknown(environment: Mapping[str, Any], duration_s: float) -> str:
    """Why no share can be told; empty where it can."""
    if not duration_s:
        return "the run used no time that is billed"
    if "devices" not in environment or not environment.get("cpu"):
        return "the journal does not say what machine the run was on"
    if str(environment.get("device", "cpu")) != "cpu" and not environment["devices"]:
        return "nothing could tell which accelerators the run used"
    return ""


def _accelerators(devices: list[Mapping[str, Any]]) -> list[Quantity]:
    counts = Counter(str(device.get("name") or "unnamed") for device in devices)
    return [accelerator(name, count) for name, count in counts.items()]


def _host(environment: Mapping[str, Any]) -> Quantity:
    """The share of a server that a run has reserved."""
    gpus, cpu = len(environment["devices"]), environment["cpu"]
    if gpus:
        return server(gpus / GPUS_PER_SERVER, why=f"{gpus}/{GPUS_PER_SERVER} (by accelerators, assumed)")
    hosts = environment.get("hosts", 1)  # machines of one kind, where ranks trained on several
    if cpu.get("guest"):
        return _hosted(hosts * cpu["threads"])
    share = hosts * min(1.0, cpu["threads"] / max(1, cpu["cores"]))
    return server(share, why=f"{share:.3g} (threads that the run may use over cores)")


def _hosted(threads: int) -> Quantity:
    """The share of a virtual machine in a server that it cannot see."""
    hosts, fewest, most = HOST_THREADS
    share = estimate(
        threads / hosts, "1", method="assumed", limits=(threads / most, threads / fewest),
        source=f"{threads}/{hosts:.0f} (virtual machine; its host assumed to have {fewest:.0f} to {most:.0f} threads)",
    )  # fmt: skip
    whole = server()
    return product([share, whole], "g", source=f"{share.source} of a {_SERVER_SOURCE}")


def _grams(kg: tuple[float, float, float], source: str, factor: float) -> Quantity:
    value, low, high = (1000 * factor * number for number in kg)
    return estimate(
        value, "g", method="assumed", source=source, limits=(low, high), u_systematic=(high - low) / (2 * 1.96)
    )
