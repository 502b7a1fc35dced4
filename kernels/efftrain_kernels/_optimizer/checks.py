"""What AdamW refuses, and in which words; nothing has been changed when one of these raises.

Where `torch.optim.AdamW` refuses the same, the message begins with torch's words, which other people's tests know.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

StateDtype = Literal["float32", "bfloat16", "int8"]
MasterWeights = Literal["float32", "split16"]
Backend = Literal["auto", "triton", "reference"]


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one optimizer, of all its groups; as the arguments of `AdamW`."""

    state_dtype: StateDtype = "float32"
    master_weights: MasterWeights | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        _one_of("state_dtype", self.state_dtype, get_args(StateDtype))
        _one_of("master_weights", self.master_weights, (None, *get_args(MasterWeights)))
        _one_of("backend", self.backend, get_args(Backend))
        if self.stochastic_rounding and self.master_weights:
            raise ValueError(
                "stochastic_rounding=True is for bfloat16 parameters without master weights; "
                f"leave it out beside master_weights={self.master_weights!r}"
            )
        if not (isinstance(self.seed, int) and 0 <= self.seed < 1 << 32):
            raise ValueError(f"seed must be an integer in [0, 2**32), not {self.seed!r}")


def check_max_grad_norm(value: float | None) -> None:
    """Raise ValueError for a norm that nothing can be scaled to."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"max_grad_norm must be above 0 and finite, or None for no clipping, not {value}")


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for hyper-parameters out of range or options that cannot be had."""
    _check_scalar("lr", "learning rate", group["lr"])
    _check_scalar("eps", "epsilon value", group["eps"])
    _check_scalar("weight_decay", "weight_decay value", group["weight_decay"])
    betas = group["betas"]
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), not {betas!r}")
    for index, beta in enumerate(betas):
        if not _is_scalar(beta) or (not _on_device(beta) and not 0 <= beta < 1):
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}: betas must be two numbers in [0, 1)")
    if group.get("fused") and group.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together; leave both out, they choose nothing here")
    if group.get("differentiable"):
        also = "`fused` does not support `differentiable`" if group.get("fused") else "differentiable=True is refused"
        kind = RuntimeError if group.get("fused") else ValueError
        raise kind(f"{also}: this AdamW updates in place outside of autograd; use torch.optim.AdamW for that")


def check_param(param: Tensor, options: Options) -> None:
    """Raise TypeError or ValueError for a parameter that these options cannot serve."""
    where = f"params: a parameter of shape {list(param.shape)}"
    if not param.is_floating_point():
        raise TypeError(f"{where} is {param.dtype}; expected real numbers")
    if param.dtype == torch.float16 and options.stochastic_rounding:
        raise ValueError(f"{where} is float16; stochastic_rounding=True is for bfloat16: use master_weights='float32'")
    if param.dtype == torch.float16 and options.master_weights == "split16":
        raise ValueError(f"{where} is float16; master_weights='split16' is for bfloat16: use master_weights='float32'")
    if options.state_dtype == "int8" and hasattr(param, "device_mesh"):
        raise ValueError(
            f"{where} is a DTensor; blocks of 8-bit moments do not survive resharding: use state_dtype='bfloat16'"
        )
    if options.backend == "triton" and param.device.type == "cpu":
        from efftrain_kernels._kernels.launch import interpreting

        if not interpreting():
            raise ValueError(
                f"{where} is on the CPU; backend='triton' needs CUDA, or TRITON_INTERPRET=1 set before triton is "
                "imported: use backend='auto'"
            )


def check_grad(grad: Tensor) -> None:
    """Raise TypeError for a gradient that is not dense and real."""
    if grad.layout != torch.strided:
        raise TypeError(f"a gradient of shape {list(grad.shape)} is sparse; use torch.optim.SparseAdam for it")
    if not grad.is_floating_point():
        raise TypeError(f"a gradient of shape {list(grad.shape)} is {grad.dtype}; expected real numbers")


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _on_device(value: Any) -> bool:
    """Whether reading the value would wait for a device; such a one is not checked."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _check_scalar(name: str, torchs_name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, not of shape {list(value.shape)}")
    if not _is_scalar(value) or (not _on_device(value) and not (math.isfinite(value) and value >= 0)):
        raise ValueError(f"Invalid {torchs_name}: {value}: {name} must be a finite number of at least 0, not {value!r}")
