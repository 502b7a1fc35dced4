"""Which number formats a device can compute in; no torch, so that a command line can refuse at once."""

from typing import Final

from efftrain.training.config import Precision

Capability = tuple[int, int]
"""CUDA's compute capability, major and minor."""

LEAST_CAPABILITY: Final[dict[Precision, Capability]] = {
    "tf32": (8, 0), "bf16": (8, 0), "pure-bf16": (8, 0), "fp16": (5, 3),
}  # fmt: skip
"""From which compute capability on a board computes in a format itself (CUDA C++ Programming Guide, section "Compute
Capabilities"); below it torch converts back and forth, which costs time and joules and saves none."""


def refusal(precision: Precision, device: str, capability: Capability | None = None) -> str | None:
    """Why `device` cannot train in `precision`; None where it can, or where nothing is known against it.

    A CPU computes in bf16 and fp16: with instructions of its own or without, torch has kernels for both.

    Args:
        precision: of a run.
        device: `cpu`, `cuda` or `cuda:N`.
        capability: of that CUDA device; None where it could not be asked.
    """
    if device == "cpu":
        return "tf32 is a format of NVIDIA's matrix units; a CPU has none" if precision == "tf32" else None
    least = LEAST_CAPABILITY.get(precision)
    if least is None or capability is None or capability >= least:
        return None
    has, needs = (f"{major}.{minor}" for major, minor in (capability, least))
    return f"{precision} needs compute capability {needs} or above; {device} has {has}, which would only imitate it"
