"""Attention spelled out in plain PyTorch: what every other implementation is held against.

It materialises the Sq × Sk scores, so it needs memory in proportion to them, and it expresses every feature of the
public call. Sums run in float32 whatever the inputs' type, and float64 inputs stay in float64. `attention` can be
differentiated by autograd as often as one likes; `attention_backward` writes its first derivative out, from the saved
log-sum-exp, as the kernels compute it. Nothing is validated here; `efftrain_kernels.attention` does that.
"""

import math
from collections.abc import Iterator
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
        for rows, cols in _sequences(cu_seqlens_q, cu_seqlens_k):
            qs, ks, vs = _alone(q, rows), _alone(k, cols), _alone(v, cols)
            out, lse = _dense(qs, ks, vs, scale=scale, band=band, softcap=softcap, sinks=sinks)
            outs.append(out[0].transpose(0, 1))
            lses.append(lse[0])
        return torch.cat(outs), torch.cat(lses, dim=-1)


def attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    band: Window,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and sinks (FlashAttention-2, arXiv:2307.08691, algorithm 2).

    With P the weights, dP = dO·Vᵀ and δ = rowsum(dO ∘ O) − dLSE, the scores' gradient is dS = P ∘ (dP − δ); a sink is
    a key without a value, whose dP is 0.

    Args:
        grad: gradient of `out`, shaped as `q`.
        grad_lse: gradient of `lse`, or None.
        q: as in `attention`; so `k`, `v`, `sinks`, `softcap` and the offsets.
        k: see `q`.
        v: see `q`.
        out: what `attention` returned.
        lse: what `attention` returned.
        scale: factor on the scores.
        band: the window, with causality folded in: (left, right).
        softcap: see `q`.
        sinks: see `q`.
        cu_seqlens_q: see `q`.
        cu_seqlens_k: see `q`.

    Returns:
        Gradients shaped and typed as q, k, v and sinks.
    """
    delta = _rows_delta(grad, out, lse)
    delta = delta if grad_lse is None else delta - grad_lse
    delta = delta.masked_fill(lse == -math.inf, 0.0)  # whatever comes in through a log-sum-exp of −∞
    with torch.autocast(q.device.type, enabled=False):
        if cu_seqlens_q is None or cu_seqlens_k is None:
            dq, dk, dv = _dense_backward(grad, delta, q, k, v, lse, scale=scale, band=band, softcap=softcap)
        else:
            dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
            for rows, cols in _sequences(cu_seqlens_q, cu_seqlens_k):
                alone = (_alone(q, rows), _alone(k, cols), _alone(v, cols))
                pieces = _dense_backward(
                    _alone(grad, rows), delta[None, :, rows], *alone, lse[None, :, rows],
                    scale=scale, band=band, softcap=softcap,
                )  # fmt: skip
                for whole, where, piece in zip((dq, dk, dv), (rows, cols, cols), pieces, strict=True):
                    whole[where] = piece[0].transpose(0, 1)
    return dq, dk, dv, None if sinks is None else sinks_gradient(sinks, lse, delta)


def sinks_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """Gradient of the sinks [Hq]: −Σ P_sink · δ over all rows; `lse` and `delta` [B, Hq, Sq] or packed [Hq, Tq]."""
    weights = torch.exp(sinks.to(lse.dtype)[:, None] - lse)
    weights = weights.masked_fill(lse == -math.inf, 0.0)  # a sink of −inf beside nothing else
    return -(weights * delta).transpose(-2, -1).flatten(0, -2).sum(0).to(sinks.dtype)


def _sequences(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of q and of k of each packed sequence."""
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True):
        yield slice(q0, q1), slice(k0, k1)


def _alone(x: Tensor, rows: slice) -> Tensor:
    """One packed sequence as [1, heads, tokens, head_dim]."""
    return x[rows].transpose(0, 1)[None]


def _dense(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, band: Window, softcap: float, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores, _ = _scores(q, k, scale=scale, band=band, softcap=softcap)
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    out = _grouped(_weights(scores, lse), k) @ v.to(lse.dtype)
    return out.view(q.shape).to(q.dtype), lse


def _dense_backward(
    grad: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, *, scale: float, band: Window,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    scores, slope = _scores(q, k, scale=scale, band=band, softcap=softcap)
    weights = _weights(scores, lse)
    dtype = weights.dtype
    rows, grad_rows = _grouped(q.to(dtype), k), _grouped(grad.to(dtype), k)
    dv = _grouped(weights, k).transpose(-2, -1) @ grad_rows
    d_weights = (grad_rows @ v.to(dtype).transpose(-2, -1)).view(weights.shape)
    d_scores = weights * (d_weights - delta[..., None]) * scale
    if slope is not None:
        d_scores = d_scores * slope
    by_rows = _grouped(d_scores, k)
    dq = (by_rows @ k.to(dtype)).view(q.shape)
    return dq.to(q.dtype), (by_rows.transpose(-2, -1) @ rows).to(k.dtype), dv.to(v.dtype)


def _rows_delta(grad: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """rowsum(dO ∘ O), laid out as `lse`."""
    sums = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    return sums if out.ndim == 4 else sums.transpose(0, 1)


def _scores(q: Tensor, k: Tensor, *, scale: float, band: Window, softcap: float) -> tuple[Tensor, Tensor | None]:
    """Masked scores [B, Hq, Sq, Sk], and the soft cap's derivative by what it caps."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    len_q, len_k = q.shape[2], k.shape[2]
    scores = (_grouped(q.to(dtype), k) @ k.to(dtype).transpose(-2, -1) * scale).view(*q.shape[:3], len_k)
    slope = None
    if softcap:
        capped = torch.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - capped.square()
    return scores.masked_fill(_hidden(len_q, len_k, band, q.device), -math.inf), slope


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    # exp(−inf − 0) = 0 in a row that sees nothing, where exp(−inf + inf) would be NaN.
    return torch.exp(scores - lse.masked_fill(lse == -math.inf, 0.0)[..., None])


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[B, Hq, Sq, ·] with the query heads of one key head under each other as rows: k and v are never repeated."""
    batch, heads, len_q, width = x.shape
    return x.reshape(batch, k.shape[1], heads // k.shape[1] * len_q, width)


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
