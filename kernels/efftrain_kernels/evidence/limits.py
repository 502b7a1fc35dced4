"""What a compiled kernel may ask for, and why: the limits that the ahead-of-time check holds every kernel to.

Shared memory a program: CUDA C++ Programming Guide, technical specifications by compute capability: 163 KiB on 8.0,
99 KiB on 8.6, 227 KiB on 9.0 and 10.0. Registers: 65,536 a multiprocessor on all of them. Spilled registers go to
memory in the inner loop; what a kernel may spill stands beside its name, with the reason.
"""

from dataclasses import dataclass

from efftrain_kernels.evidence.aot import WARP_SIZE, Compiled

KIB = 1024
SCALARS = 24  # ten coefficients, a few numbers of a tensor, three scales; one tensor read in 32 bits would add sixteen
SHARED_BYTES = {80: 163 * KIB, 86: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB}
REGISTERS = 65536
HOPPER = 90


@dataclass(frozen=True, slots=True)
class Limits:
    """What one kernel is held to besides the hardware's own limits.

    Attributes:
        spill_bytes: bytes a thread that may be stored to and loaded from local memory, added up.
        registers: registers a thread; 255 is what a thread can have at all.
        wgmma: matrix products must be wgmma on sm_90, and ptxas must not order them one after the other.
        wide: global memory must be read and written 128 bits a thread at a time: nothing in 8 or 16 bits, and in 32
            bits no more than a program's coefficients and scales, `SCALARS` of them.
        reason: why something above is laxer than no spills.
    """

    spill_bytes: int = 0
    registers: int = 255
    wgmma: bool = False
    wide: bool = False
    reason: str = ""


def violations(compiled: Compiled, arch: int, limits: Limits) -> tuple[str, ...]:
    """In what a compiled kernel exceeds its limits, a sentence each; empty where it keeps them."""
    found = [_shared(compiled, arch), _registers(compiled, limits)]
    if compiled.spill_bytes > limits.spill_bytes:
        found.append(f"spills {compiled.spill_bytes} bytes a thread, allowed {limits.spill_bytes}")
    if limits.wgmma and arch == HOPPER:
        found.append("" if compiled.count(*WGMMA) else "no wgmma: matrix products run on the slower path")
        found.append("wgmma is serialized (ptxas C7512 or C7515)" if compiled.serialized else "")
    if limits.wide:
        found.append(_width(compiled))
    if compiled.early_arrivals:
        found.append(f"{compiled.early_arrivals} arrivals at a barrier before all warps of the group have come")
    return tuple(filter(None, found))


WGMMA = ("HGMMA", "QGMMA", "IGMMA")
"""Matrix products of a warpgroup, sm_90a."""
MMA = ("HMMA", "QMMA", "IMMA")
"""Matrix products of a warp, sm_80 and later."""
TCGEN05 = ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")
"""Matrix products into tensor memory, sm_100a."""


def _shared(compiled: Compiled, arch: int) -> str:
    limit = SHARED_BYTES[arch]
    if compiled.shared_bytes <= limit:
        return ""
    return f"needs {compiled.shared_bytes / KIB:.0f} KiB of shared memory, sm_{arch} has {limit // KIB}"


def _registers(compiled: Compiled, limits: Limits) -> str:
    limit = min(limits.registers, REGISTERS // (compiled.warps * WARP_SIZE))
    return f"needs {compiled.registers} registers a thread, allowed {limit}" if compiled.registers > limit else ""


def _width(compiled: Compiled) -> str:
    if not compiled.wide_accesses():
        return "no 128-bit access to global memory"
    narrow = compiled.global_accesses(8) + compiled.global_accesses(16)
    if narrow:
        return f"{narrow} accesses of 8 or 16 bits to global memory"
    scalars = compiled.global_accesses(32)
    return f"{scalars} accesses of 32 bits to global memory, allowed {SCALARS}" if scalars > SCALARS else ""
