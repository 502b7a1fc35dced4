"""Attention and AdamW in Triton, for anybody's trainer."""

from efftrain_kernels._adamw import AdamW
from efftrain_kernels._attention import Explanation, attention, explain
from efftrain_kernels.drop_in import flash_attn_func, flash_attn_varlen_func, scaled_dot_product_attention

__all__ = [
    "AdamW",
    "Explanation",
    "attention",
    "explain",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "scaled_dot_product_attention",
]
