"""What the AdamW kernels and those that fill their tables agree on: columns, block sizes, and the forms that ship.

A kernel of AdamW is launched once for many tensors. It finds a tensor's addresses in a row of an int64 table and what
its step needs in a row of a float32 table, and which tensor and which chunk are its own in a list of pairs. Nothing
here imports triton, so the tables can be built, and counted, without it.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

Moments = Literal["float32", "bfloat16", "int8"]
Master = Literal["none", "float32", "split16"]

BLOCK = 2048  # elements of one program of the update; a multiple of the 256 that share a scale of 8-bit moments
NORM_BLOCKS = 8  # blocks that one program of the norm adds up
NUM_WARPS = 4

# Columns of the address table. What a tensor does not have is 0.
PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, MASTER = 0, 1, 2, 3, 4, 5
EXP_AVG_SCALE, EXP_AVG_SQ_SCALE, MAX_EXP_AVG_SQ_SCALE = 6, 7, 8
STEP, NUMEL, KEY, OFFSET, SETTINGS = 9, 10, 11, 12, 13
COLUMNS = 16
ROWS = 128  # tables have a multiple of this many rows, so that no kernel needs to be told the number

# Columns of the coefficient table.
FACTOR, DECAY, ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2, STEP_SIZE, INVERSE_ROOT, EPS, ACTIVE, COUNT = range(10)
COEFFICIENTS = 16

# Columns of the settings, one row a parameter group, float64.
LR, BETA1, BETA2_SETTING, EPS_SETTING, WEIGHT_DECAY, SIGN, MAX_NORM = range(7)
SETTING_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Form:
    """What one specialisation of the update kernel is compiled for.

    Attributes:
        param: type of the parameters.
        grad: type of the gradients.
        moments: how the moments are kept.
        master: how the bits below a small parameter are kept.
        stochastic: whether bfloat16 parameters are rounded stochastically.
        amsgrad: whether the largest second moment is kept.
        aligned: every address a multiple of 16 bytes and every length a multiple of 16 elements.
    """

    param: torch.dtype
    grad: torch.dtype
    moments: Moments
    master: Master
    stochastic: bool
    amsgrad: bool
    aligned: bool

    @property
    def name(self) -> str:
        """For example `adamw bf16/fp32 int8 split16 amsgrad tail`: parameter and gradient, moments, what differs."""
        words = [f"adamw {SHORT[self.param]}/{SHORT[self.grad]}", self.moments]
        words += [self.master] if self.master != "none" else []
        words += [word for word in ("stochastic", "amsgrad") if getattr(self, word)]
        return " ".join([*words, *([] if self.aligned else ["tail"])])


SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# The gradients that kernels read for parameters of a type; others are converted to float32 first.
GRADIENTS: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float32: (torch.float32, torch.bfloat16),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float16: (torch.float16, torch.float32),
}
# How parameters of a type may be kept: (master weights, stochastic rounding).
KEPT: dict[torch.dtype, tuple[tuple[Master, bool], ...]] = {
    torch.float32: (("none", False),),
    torch.bfloat16: (("none", False), ("none", True), ("float32", False), ("split16", False)),
    torch.float16: (("none", False), ("float32", False)),
}
_MOMENTS: tuple[Moments, ...] = ("float32", "bfloat16", "int8")


def forms() -> list[Form]:
    """Every form that a step can ask for; the plain, aligned ones first."""
    return [
        Form(param, grad, moments, master, stochastic, amsgrad, aligned)
        for amsgrad, aligned in product((False, True), (True, False))
        for param, grads in GRADIENTS.items()
        for grad, (master, stochastic), moments in product(grads, KEPT[param], _MOMENTS)
    ]
