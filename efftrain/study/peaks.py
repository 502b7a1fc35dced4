"""The peak rate that each precision of a study can reach on its device, for MFU and HFU."""

from collections.abc import Iterable
from typing import Any

from efftrain.hardware.calibrate import peak
from efftrain.monitor.machine import environment
from efftrain.training.config import Precision

PEAK_DTYPE: dict[Precision, str] = {
    "fp32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16", "pure-bf16": "bfloat16",
}  # fmt: skip


def peak_rates(device: str, precisions: Iterable[Precision], threads: int) -> dict[Precision, dict[str, Any]]:
    """Peak rate for each precision; on a CPU measured once, which takes some seconds, and kept."""
    gpus = [] if device == "cpu" else environment(device)["devices"]
    name = "cpu" if device == "cpu" else str(gpus[0].get("name", "unknown")) if gpus else "unknown"
    return {precision: peak(name, PEAK_DTYPE[precision], threads) for precision in precisions}
