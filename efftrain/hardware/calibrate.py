"""The rate that MFU is a share of: a GPU's from its datasheet, a CPU's from a short matrix product.

No table says what a given number of threads of a given processor can do in bfloat16, so it is measured: square matrix
products of growing size for about a second, the best of them all. That takes torch, so a caller that is free of torch
has it done in a process of its own: `python -m efftrain.hardware.calibrate --device cpu --dtype float32 --threads 2`
prints one line of JSON.

A peak is a maximum, and whatever else runs can only lower it. So the largest of all calibrations counts, and each study
makes one more until two that others did not disturb agree with it; from then on what is kept is the answer. As long as
there is none of those, the peak is said to be a lower bound, with the share of the processor that others used.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from efftrain.hardware.catalogue import DTYPES, peak_flops
from efftrain.hardware.load import moment, share_of_others
from efftrain.hardware.probe import cpu

SIZES = (256, 512, 1024, 2048)
BUDGET_S = 1.0
TIMEOUT_S = 180.0

CALM: Final = 0.05
"""Share of the processor that others may use while a calibration still counts as undisturbed."""

AGREEMENT: Final = 0.05
"""By how much an undisturbed calibration may lie below the largest and still agree with it."""

ENOUGH: Final = 2
"""Undisturbed calibrations that agree with the largest, after which no more is made."""


class Calibration(NamedTuple):
    """What one calibration found.

    Attributes:
        flops_per_s: rate of the best product.
        others: share of the processor that other processes used meanwhile, 0 to 1; None: the system does not tell.
    """

    flops_per_s: float
    others: float | None = None


Measure = Callable[[str, int], Calibration]
"""dtype and number of threads to a calibration."""


def peak(device: str, dtype: str, threads: int, *, measure: Measure | None = None) -> dict[str, Any]:
    """The peak rate of a device in the form of the journal's header. Needs no torch in this process.

    Args:
        device: `cpu`, or the name of a GPU as NVML and torch give it.
        dtype: `float32`, `tf32`, `bfloat16` or `float16`.
        threads: number of threads that the run computes with; only for a CPU.
        measure: measures a CPU; a process of its own if it is not given.

    Returns:
        Keys: device, dtype, flops_per_s (None: not known), method, source, and `lower_bound` where all calibrations
        were disturbed.
    """
    if device != "cpu":
        return _catalogued(device, dtype)
    model = cpu().model
    key = "|".join([model, str(threads), importlib.metadata.version("torch"), dtype])
    made = _cached().get(key, [])
    if len(_agreeing(made)) < ENOUGH:
        try:
            made = _worth_keeping([*made, (measure or _in_own_process)(dtype, threads)])
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            if not made:
                why = str(error).strip().splitlines() or [type(error).__name__]
                return _answer(model, dtype, None, f"{dtype} could not be measured: {why[-1]}")
        else:
            _keep(key, made)
    return _measured(model, dtype, threads, made)


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
    """Measure and print one line of JSON: device, dtype, threads, flops_per_s, others."""
    parser = argparse.ArgumentParser(prog="python -m efftrain.hardware.calibrate", description=main.__doc__)
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--dtype", choices=[d for d in DTYPES if d != "tf32"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    importlib.import_module("torch")  # now: its second is no part of what others could disturb
    before = moment()
    rate = measure_cpu(options.dtype, options.threads)
    print(json.dumps({**vars(options), "flops_per_s": rate, "others": share_of_others(before, moment())}))


def _catalogued(device: str, dtype: str) -> dict[str, Any]:
    known = peak_flops(device, dtype)
    if known is None:
        return _answer(device, dtype, None, f"no peak is known for {device!r} in {dtype}")
    return _answer(device, dtype, known.flops_per_s, known.source, method="assumed")


def _answer(device: str, dtype: str, rate: float | None, source: str, *, method: str = "missing") -> dict[str, Any]:
    return {"device": device, "dtype": dtype, "flops_per_s": rate, "method": method, "source": source}


def _largest(made: Sequence[Calibration]) -> Calibration:
    return max(made, key=lambda found: found.flops_per_s)


def _agreeing(made: Sequence[Calibration]) -> list[Calibration]:
    """Those that others did not disturb, as far as is known, and that are about as large as the largest of all."""
    return [
        found
        for found in made
        if (found.others or 0.0) <= CALM and found.flops_per_s >= (1 - AGREEMENT) * _largest(made).flops_per_s
    ]


def _worth_keeping(made: Sequence[Calibration]) -> list[Calibration]:
    """The largest, and those that agree with it; a smaller one that was disturbed tells nothing."""
    agreeing, largest = _agreeing(made), _largest(made)
    return agreeing if largest in agreeing else [largest, *agreeing]


def _measured(model: str, dtype: str, threads: int, made: Sequence[Calibration]) -> dict[str, Any]:
    largest = _largest(made)
    source = f"best of square matrix products up to {SIZES[-1]}, {threads} threads"
    if _agreeing(made):
        return _answer(model, dtype, largest.flops_per_s, source, method="measured")
    source += f", while others used {largest.others or 0.0:.0%} of the processor: the peak is at least this"
    return {**_answer(model, dtype, largest.flops_per_s, source, method="measured"), "lower_bound": True}


def _deadlines(start: float, budget_s: float) -> list[float]:
    """When each size has to be done: the larger ones, which come nearer to the peak, get more of the time."""
    shares = [2**i for i in range(len(SIZES))]
    return [start + budget_s * sum(shares[: i + 1]) / sum(shares) for i in range(len(SIZES))]


def _in_own_process(dtype: str, threads: int) -> Calibration:
    command = [sys.executable, "-m", "efftrain.hardware.calibrate", "--dtype", dtype, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(done.stderr or f"calibration ended with status {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Calibration(float(found["flops_per_s"]), found["others"])


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "efftrain" / "peaks.json"


def _cached() -> dict[str, list[Calibration]]:
    """Calibrations by what was calibrated; single rates, as older versions kept them, are not believed."""
    try:
        kept = json.loads(_cache_file().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return {}
    entries = kept.items() if isinstance(kept, dict) else ()
    return {key: [Calibration(*found) for found in made] for key, made in entries if _well_formed(made)}


def _well_formed(made: object) -> bool:
    return isinstance(made, list) and all(
        isinstance(found, list)
        and len(found) == len(Calibration._fields)
        and isinstance(found[0], float)
        and found[0] > 0
        and (found[1] is None or isinstance(found[1], float))
        for found in made
    )


def _keep(key: str, made: Sequence[Calibration]) -> None:
    """Put calibrations into the cache; where nothing can be written it is measured again next time."""
    try:
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({**_cached(), key: made}, indent=1))
        fresh.replace(path)
    except (OSError, RuntimeError):
        return


if __name__ == "__main__":
    main()
