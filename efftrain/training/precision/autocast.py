"""Number formats of a run: autocast, TF32, loss scaling, and weights below float32."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

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


def prepare_precision(model: nn.Module, precision: Precision) -> None:
    """Bring a model's parameters to the type that `precision` keeps them in; to be called before an optimizer is built.

    With `pure-bf16` all of them, those of norms too: a norm of bfloat16 weights and activations computes in float32
    within the operation, and one of two types has no fused kernel and returns float32, which no bfloat16 layer takes.
    Their float32 copies are in the optimizer. Buffers stay as they are: rotary tables of 8 bits could not tell one
    position from the next, and what is rotated comes back in its own type. Logits are made float32 for the loss.
    """
    if precision == "pure-bf16":
        cast_parameters(model, torch.bfloat16)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn all floating-point parameters, but no buffer, into `dtype`; weights that are tied stay tied."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
