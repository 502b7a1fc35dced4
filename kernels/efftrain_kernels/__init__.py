"""Attention and AdamW that a trainer can plug in, behind the names that faster kernels will keep."""

from efftrain_kernels._adamw import AdamW
from efftrain_kernels._attention import Explanation, attention, explain

__all__ = ["AdamW", "Explanation", "attention", "explain"]
