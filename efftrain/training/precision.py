"""Number formats of a run: autocast, TF32 and loss scaling."""

from contextlib import AbstractContextManager, nullcontext

import torch

from efftrain.training.config import Precision

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the forward pass runs."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """A dynamic loss scaler for fp16, whose small gradients would vanish (arXiv:1710.03740); None otherwise."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def set_matmul_precision(precision: Precision) -> None:
    """Let fp32 matrix products round their inputs to TF32, or not: `tf32` is the one precision that allows it."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
