"""How long a call takes on a device, how much memory it needs, and what the device can do at most.

Latency is read from CUDA events around each call, with the L2 cache overwritten before each, and given as its 20th,
50th and 80th percentile. The ceilings are a large matrix product and a large copy measured in the same run on random
data, since clocks and boards differ. On a CPU a wall clock takes the events' place, and nothing is overwritten.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch

FLUSH_BYTES = 256 << 20  # several times any L2 cache
WARMUP_CALLS = 3
MAX_CALLS, MIN_CALLS = 200, 5
_VERSIONS = ("torch", "triton", "flash-attn", "apex", "bitsandbytes", "nvidia-ml-py")


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one call: percentiles over `calls` of them."""

    p20_s: float
    p50_s: float
    p80_s: float
    calls: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device was seen to do at most: FLOP/s of a matrix product, bytes/s of a copy, read and written."""

    matrix_flops_per_s: float
    copy_bytes_per_s: float
    matrix: str
    copy: str


def default_device() -> torch.device:
    """The current CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Such as `NVIDIA H200`; on a CPU, the machine's architecture and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A device's name for a folder: `NVIDIA H200` is `h200`, and a CPU is `cpu`."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    if words[:1] == ["cpu"]:
        return "cpu"
    return "-".join(word for word in words if word not in {"nvidia", "tesla", "geforce"}) or "device"


def versions() -> dict[str, str | None]:
    """What figures depend on: versions of packages, of CUDA, cuDNN and Python; None where it is not there."""
    found: dict[str, str | None] = {name: _version(name) for name in _VERSIONS}
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {**found, "cuda": torch.version.cuda, "cudnn": str(cudnn or "") or None, "python": platform.python_version()}


def latency(
    call: Callable[[], object], device: torch.device, *, budget_s: float = 0.5, calls: int | None = None
) -> Latency:
    """Time a call, after warming up, for about `budget_s` of its own running time.

    Args:
        call: the work; on CUDA it may only enqueue it.
        device: where it runs.
        budget_s: between 5 and 200 calls are made within it.
        calls: so many instead, and no more than that: without warming up.
    """
    timer = _cuda_times if device.type == "cuda" else _wall_times
    if calls is None:
        for _ in range(WARMUP_CALLS):
            call()
        estimate = max(min(timer(call, device, 3)), 1e-7)
        calls = max(MIN_CALLS, min(MAX_CALLS, int(budget_s / estimate)))
    return quantiles(timer(call, device, calls))


def quantiles(seconds: Sequence[float]) -> Latency:
    """The percentiles of measured times."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    p20, p50, p80 = torch.quantile(torch.tensor(seconds, dtype=torch.float64), levels).tolist()
    return Latency(p20, p50, p80, len(seconds))


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call needs at its peak beyond what was allocated before it; None where nothing counts them."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def ends(seconds: float) -> bool:
    """Whether what was given to the current CUDA device is done within so many seconds."""
    event, deadline = torch.cuda.Event(), time.monotonic() + seconds
    event.record()
    while not event.query():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def ceilings(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Ceilings:
    """Measure both ceilings; on a CPU small ones, in float32."""
    cuda = device.type == "cuda"
    size, count = (8192, 1 << 30) if cuda else (1024, 1 << 22)
    kind = dtype if cuda else torch.float32
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    product = latency(lambda: torch.mm(a, b), device)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    copy = latency(lambda: target.copy_(source), device)
    return Ceilings(
        matrix_flops_per_s=2 * size**3 / product.p50_s,
        copy_bytes_per_s=2 * source.nbytes / copy.p50_s,
        matrix=f"torch.mm of two {size}x{size} {str(kind).removeprefix('torch.')} matrices of random numbers",
        copy=f"copy of {source.nbytes >> 20} MiB, bytes read and bytes written",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_times(call: Callable[[], object], device: torch.device, calls: int) -> list[float]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    marks = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(calls)]
    for begin, end in marks:
        flush.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def _wall_times(call: Callable[[], object], _device: torch.device, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times
