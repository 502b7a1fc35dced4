"""The rate that MFU is a share of: a GPU's from its datasheet, a CPU's from a short matrix product.

No table says what a given number of threads of a given processor can do in bfloat16, so it is measured: square matrix
products of growing size for about a second, the best of them all. That takes torch, so a caller that is free of torch
has it done in a process of its own, and the result is kept: `python -m efftrain.hardware.calibrate --device cpu
--dtype float32 --threads 2` prints one line of JSON.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efftrain.hardware.catalogue import DTYPES, peak_flops
from efftrain.hardware.probe import cpu

SIZES = (256, 512, 1024, 2048)
BUDGET_S = 1.0
TIMEOUT_S = 180.0

Measure = Callable[[str, int], float]
"""dtype and number of threads to FLOP/s."""


def peak(device: str, dtype: str, threads: int, *, measure: Measure | None = None) -> dict[str, Any]:
    """The peak rate of a device in the form of the journal's header. Needs no torch in this process.

    Args:
        device: `cpu`, or the name of a GPU as NVML and torch give it.
        dtype: `float32`, `tf32`, `bfloat16` or `float16`.
        threads: number of threads that the run computes with; only for a CPU.
        measure: measures a CPU; a process of its own if it is not given.

    Returns:
        Keys: device, dtype, flops_per_s (None: not known), method, source.
    """
    if device != "cpu":
        return _catalogued(device, dtype)
    model = cpu().model
    key = "|".join([model, str(threads), importlib.metadata.version("torch"), dtype])
    rate = _cached().get(key)
    source = f"best of square matrix products up to {SIZES[-1]}, {threads} threads"
    if rate is None:
        try:
            rate = (measure or _in_own_process)(dtype, threads)
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            return _answer(model, dtype, None, f"{dtype} could not be measured: {why[-1]}")
        _keep(key, rate)
    return _answer(model, dtype, rate, source, method="measured")


def measure_cpu(dtype: str, threads: int, *, budget_s: float = BUDGET_S) -> float:
    """FLOP/s of the best square matrix product of this CPU, in this process, with torch.

    Sizes grow as long as one product fits into what is left of `budget_s`, so a type that a CPU is slow in costs no
    more time than the others. A product of n×n matrices is 2n³ FLOP. Sets torch's number of threads to `threads`.

    Raises:
        ValueError: not a dtype that a CPU computes in.
        RuntimeError: torch has no such product.
    """
    if dtype not in DTYPES or dtype == "tf32":
        raise ValueError(f"dtype {dtype!r}: a CPU is calibrated in float32, bfloat16 or float16")
    import torch

    torch.set_num_threads(threads)
    best = 0.0
    start = time.perf_counter()
    for size, end in zip(SIZES, _deadlines(start, budget_s), strict=True):
        if best and 2 * size**3 / best > start + budget_s - time.perf_counter():
            break
        a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)  # the first product packs and plans
        while True:
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            now = time.perf_counter()
            best = max(best, 2 * size**3 / (now - begin))
            if now >= end:
                break
    return best


def main() -> None:
    """Measure and print one line of JSON: device, dtype, threads and flops_per_s."""
    parser = argparse.ArgumentParser(prog="python -m efftrain.hardware.calibrate", description=main.__doc__)
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--dtype", choices=[d for d in DTYPES if d != "tf32"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    rate = measure_cpu(options.dtype, options.threads)
    print(json.dumps({**vars(options), "flops_per_s": rate}))


def _catalogued(device: str, dtype: str) -> dict[str, Any]:
    known = peak_flops(device, dtype)
    if known is None:
        return _answer(device, dtype, None, f"no peak is known for {device!r} in {dtype}")
    return _answer(device, dtype, known.flops_per_s, known.source, method="assumed")


def _answer(device: str, dtype: str, rate: float | None, source: str, *, method: str = "missing") -> dict[str, Any]:
    return {"device": device, "dtype": dtype, "flops_per_s": rate, "method": method, "source": source}


def _deadlines(start: float, budget_s: float) -> list[float]:
    """When each size has to be done: the larger ones, which come nearer to the peak, get more of the time."""
    shares = [2**i for i in range(len(SIZES))]
    return [start + budget_s * sum(shares[: i + 1]) / sum(shares) for i in range(len(SIZES))]


def _in_own_process(dtype: str, threads: int) -> float:
    command = [sys.executable, "-m", "efftrain.hardware.calibrate", "--dtype", dtype, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(done.stderr or f"calibration ended with status {done.returncode}")
    return float(json.loads(done.stdout.splitlines()[-1])["flops_per_s"])


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "efftrain" / "peaks.json"


def _cached() -> dict[str, float]:
    try:
        kept = json.loads(_cache_file().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, float) and v > 0} if isinstance(kept, dict) else {}


def _keep(key: str, rate: float) -> None:
    """Add one rate to the cache; where nothing can be written it is measured again next time."""
    try:
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({**_cached(), key: rate}, indent=1))
        fresh.replace(path)
    except (OSError, RuntimeError):
        return


if __name__ == "__main__":
    main()
