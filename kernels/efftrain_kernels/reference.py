"""Attention spelled out in plain PyTorch: what every other implementation is held against.

It materialises the Sq × Sk scores, so it needs memory in proportion to them, and it expresses every feature of the
public call. Sums run in float32 whatever the inputs' type, float64 inputs stay in float64, and autograd derives the
gradients. Nothing is validated here; `efftrain_kernels.attention` does that.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

Window = tuple[int | None, int | None]
"""How many keys to the left and to the right of the diagonal a query sees, both inclusive; None is unbounded."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window: Window = (None, None),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact attention and its log-sum-exp.

    Query i of Sq sees key j of Sk where j lies in [i + Sk − Sq − left, i + Sk − Sq + right]: the diagonal ends in the
    bottom-right corner. Causal means right = 0. Scores are q·k · scale, then softcap · tanh(scores / softcap) where a
    soft cap is set (Gemma 2, arXiv:2408.00118, section 2); a sink is one more logit in the row's denominator, neither
    scaled nor capped.

    Args:
        q: [B, Hq, Sq, D], or packed [Tq, Hq, D].
        k: [B, Hkv, Sk, D], or packed [Tk, Hkv, D]; Hkv divides Hq, and head h of q reads head h // (Hq / Hkv).
        v: as `k`.
        causal: no query sees a key behind its diagonal.
        softmax_scale: factor on the scores; 1/√D where None.
        window: see above.
        softcap: 0 is off.
        sinks: [Hq] logits, or None.
        cu_seqlens_q: int32 [sequences + 1], where each packed sequence of q begins, and Tq; None where not packed.
        cu_seqlens_k: the same for k and v.

    Returns:
        Output, shaped and typed as `q`, and the natural log-sum-exp of each row, sinks included, [B, Hq, Sq] or packed
        [Hq, Tq], in float32 (float64 for float64 inputs). A row that sees nothing gives 0 and −inf.
    """
    left, right = window
    band = (left, min(right, 0) if causal and right is not None else 0 if causal else right)
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    with torch.autocast(q.device.type, enabled=False):
        if cu_seqlens_q is None or cu_seqlens_k is None:
            return _dense(q, k, v, scale=scale, band=band, softcap=softcap, sinks=sinks)
        outs, lses = [], []
        for (q0, q1), (k0, k1) in zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True):
            qs, ks, vs = (x.transpose(0, 1)[None] for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
            out, lse = _dense(qs, ks, vs, scale=scale, band=band, softcap=softcap, sinks=sinks)
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0])
        return torch.cat(outs), torch.cat(lses, dim=-1)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, band: Window, softcap: float, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, len_q, head_dim = q.shape
    kv_heads, len_k = k.shape[1:3]
    groups = heads // kv_heads
    # The query heads of one key head stand under each other as rows, so k and v are never repeated.
    rows = q.to(dtype).reshape(batch, kv_heads, groups * len_q, head_dim)
    scores = (rows @ k.to(dtype).transpose(-2, -1) * scale).view(batch, heads, len_q, len_k)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(_hidden(len_q, len_k, band, q.device), -math.inf)
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(dtype)[:, None])
    # exp(−inf − 0) = 0 in a row that sees nothing, where exp(−inf + inf) would be NaN.
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    out = weights.view(batch, kv_heads, groups * len_q, len_k) @ v.to(dtype)
    return out.view(batch, heads, len_q, head_dim).to(q.dtype), lse


def _hidden(len_q: int, len_k: int, band: Window, device: torch.device) -> Tensor:
    """[Sq, Sk], True where a query does not see a key."""
    left, right = band
    diagonal = torch.arange(len_q, device=device)[:, None] + (len_k - len_q)
    offset = torch.arange(len_k, device=device)[None, :] - diagonal
    hidden = torch.zeros_like(offset, dtype=torch.bool)
    if left is not None:
        hidden = hidden | (offset < -left)
    if right is not None:
        hidden = hidden | (offset > right)
    return hidden
