"""Attention in three ways, behind one call.

Shapes: B sequences, T tokens, H query heads, K key/value heads, Q = head_dim. Causal order and a plain bidirectional
sequence need no mask. Windows and padding do, each implementation in a form of its own, which `attention_layout` makes
once for all layers: a boolean mask for `eager` and `sdpa`, offsets of packed sequences for `efftrain`. No form reads a
value back from the device.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.workload.models.presets import Attention, ModelConfig
from efftrain_kernels import attention as efftrain_attention


class AttentionFunction(Protocol):
    """Softmax attention within each sequence."""

    def __call__(
        self, q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, layout: Tensor | None, /, *, causal: bool,
        window: int | None, dropout: float,
    ) -> Tensor:  # fmt: skip
        """The values [B, H, T, Q] that each query gathers.

        Args:
            q_bhtq: queries.
            k_bktq: keys; K divides H.
            v_bktq: values.
            layout: what `attention_layout` made.
            causal: whether no query sees a key behind itself.
            window: as in `ModelConfig`; None where it holds the whole sequence.
            dropout: probability with which a weight is 0.
        """
        ...


def eager_attention(
    q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, layout: Tensor | None, /, *, causal: bool, window: int | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """Attention with its T × T weights spelled out; `layout` is a mask, and says all that there is to a window."""
    k, v = _repeated(q_bhtq, k_bktq, v_bktq)
    scores = (q_bhtq @ k.transpose(-2, -1)) / math.sqrt(q_bhtq.shape[-1])
    if layout is not None:
        scores = scores.masked_fill(~layout, -math.inf)
    elif causal:
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0) @ v


def sdpa_attention(
    q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, layout: Tensor | None, /, *, causal: bool, window: int | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """Attention by torch's own choice of kernel; `layout` is a mask, and says all that there is to a window."""
    grouped = q_bhtq.shape[1] != k_bktq.shape[1]
    if layout is None:
        return F.scaled_dot_product_attention(
            q_bhtq, k_bktq, v_bktq, is_causal=causal, dropout_p=dropout, enable_gqa=grouped
        )
    if grouped and q_bhtq.is_cuda:  # the kernel that takes a mask takes no groups, and torch would spell T × T out
        k_bktq, v_bktq = _repeated(q_bhtq, k_bktq, v_bktq)
        grouped = False
    return F.scaled_dot_product_attention(
        q_bhtq, k_bktq, v_bktq, attn_mask=layout, dropout_p=dropout, enable_gqa=grouped
    )


def kernel_attention(
    q_bhtq: Tensor, k_bktq: Tensor, v_bktq: Tensor, layout: Tensor | None, /, *, causal: bool, window: int | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """Attention by efftrain_kernels, which has no dropout (`ModelConfig` refuses it); `layout` is offsets."""
    # The kernel itself on CUDA, where "auto" may hand a plain call to torch.
    backend = "triton" if q_bhtq.is_cuda else "auto"
    left = None if window is None else window - 1
    sides = (left, 0 if causal and window is not None else left)
    if layout is None:
        return efftrain_attention(q_bhtq, k_bktq, v_bktq, causal=causal, window=sides, backend=backend)
    batch, _, length, _ = q_bhtq.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_bhtq, k_bktq, v_bktq))
    out = efftrain_attention(
        q, k, v, causal=causal, window=sides, cu_seqlens_q=layout, cu_seqlens_k=layout, max_seqlen_q=length,
        max_seqlen_k=length, backend=backend,
    )  # fmt: skip
    return out.unflatten(0, (batch, length)).transpose(1, 2)


ATTENTION: dict[Attention, AttentionFunction] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "efftrain": kernel_attention,
}

ATTENTION_OPS = frozenset(
    {
        torch.ops.efftrain.attention_forward.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""The ops that those functions come down to; `eager` has none of its own."""


def band_mask(config: ModelConfig) -> Tensor | None:
    """Bool [T, T], True where a query (row) sees a key of its window; None where no mask is needed for a window."""
    if config.window is None or config.window >= config.seq_len or config.attention == "efftrain":
        return None
    back = torch.arange(config.seq_len)[:, None] - torch.arange(config.seq_len)
    return (back < config.window) & (back >= (0 if config.causal else 1 - config.window))


def attention_layout(
    config: ModelConfig, band_tt: Tensor | None, length: int, lengths_b: Tensor | None
) -> Tensor | None:
    """What layers must know of window and padding beside causal order and the window's size.

    A decoder's padding stands behind its tokens and is never seen by them.

    Args:
        config: the model's.
        band_tt: `band_mask` of it, on the device.
        length: T, tokens in each row.
        lengths_b: those of them that are no padding, at least 1 each; None: all.

    Returns:
        For `efftrain`, int32 offsets [2B + 1] at which the tokens and the padding of each row begin, as if they were
        sequences of their own. Else a bool mask, True where a query sees a key, [T, T] or [B, 1, 1 or T, T]. None
        where nothing needs to be said.
    """
    if config.causal:
        lengths_b = None
    if config.attention == "efftrain":
        return None if lengths_b is None else _offsets(lengths_b, length)
    banded = config.window is not None and config.window < length
    band = band_tt[:length, :length] if band_tt is not None and banded else None
    return band if lengths_b is None else _with_padding(band, lengths_b, length)


def _with_padding(band_tt: Tensor | None, lengths_b: Tensor, length: int) -> Tensor:
    positions = torch.arange(length, device=lengths_b.device)
    real_b11t = (positions < lengths_b[:, None])[:, None, None]
    if band_tt is None:
        return real_b11t
    itself = positions[:, None] == positions  # padding far behind its sequence would see nothing else, and be NaN
    return (band_tt & real_b11t) | itself


def _offsets(lengths_b: Tensor, length: int) -> Tensor:
    begins = torch.arange(len(lengths_b) + 1, device=lengths_b.device) * length
    return torch.cat((torch.stack((begins[:-1], begins[:-1] + lengths_b), dim=1).flatten(), begins[-1:])).int()


def _repeated(q_bhtq: Tensor, *kv: Tensor) -> tuple[Tensor, ...]:
    """Keys and values repeated for the query heads that share them."""
    return tuple(x.repeat_interleave(q_bhtq.shape[1] // x.shape[1], dim=1) for x in kv)
