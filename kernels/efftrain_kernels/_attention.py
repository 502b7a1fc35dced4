"""The public attention call: what it means, and which implementation answers it.

Three stand behind it: our Triton kernels, which express everything; torch's scaled_dot_product_attention, which has
fast kernels on most devices for plain calls; and the reference, which runs anywhere and materialises the scores.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain_kernels import _ops
from efftrain_kernels._checks import check_call
from efftrain_kernels._kernels.configs import MAX_HEAD_DIM, SERVED_BY
from efftrain_kernels.reference import Window

Backend = Literal["auto", "triton", "sdpa", "reference"]
"""`auto` is what `explain` says: on a CPU `sdpa` where it can express the call, else `reference`; on CUDA `triton`,
but `sdpa` for plain calls where published measurements have it ahead."""

Implementation = Literal["triton", "sdpa", "reference"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # which triton reads where kernels are imported


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which implementation answers a call, and why.

    Attributes:
        backend: `triton`, `sdpa` or `reference`.
        reason: one line.
    """

    backend: Implementation
    reason: str


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    window: Window = ...,
    softcap: float = ...,
    sinks: Tensor | None = ...,
    cu_seqlens_q: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    window: Window = ...,
    softcap: float = ...,
    sinks: Tensor | None = ...,
    cu_seqlens_q: Tensor | None = ...,
    cu_seqlens_k: Tensor | None = ...,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...


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
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact softmax attention with grouped heads, masks, soft cap, sinks and packed sequences.

    Gradients are those of q, k, v and sinks, through the output and through the log-sum-exp; the Triton backward pass
    is the same bit for bit on every run. A second derivative raises. Under autocast, q, k and v are cast first, as
    scaled_dot_product_attention casts them.

    Where Sq ≠ Sk the causal diagonal ends in the bottom-right corner: the last query sees every key. (That is
    flash-attention's alignment; torch's scaled_dot_product_attention(is_causal=True) aligns top-left.)

    Args:
        q: [B, Hq, Sq, D], or packed [Tq, Hq, D]; float16, bfloat16, float32 or float64, last dimension contiguous.
        k: [B, Hkv, Sk, D], or packed [Tk, Hkv, D]; Hkv divides Hq.
        v: shaped as `k`.
        causal: a query sees no key behind its diagonal.
        softmax_scale: factor on q·k; 1/√D where None.
        window: (left, right), inclusive, counted from the diagonal; None is unbounded.
        softcap: scores become softcap · tanh(scores / softcap); 0 is off.
        sinks: [Hq], one learnable logit a query head that joins the row's denominator.
        cu_seqlens_q: int32 [sequences + 1]: where each packed sequence of q begins, and Tq at the end.
        cu_seqlens_k: the same for k and v.
        max_seqlen_q: longest packed sequence of q. None means Tq, which launches programs with nothing to do; one that
            is too small is an error on a CPU, and on a device leaves rows out, since checking would wait for it.
        max_seqlen_k: the same for k and v.
        return_lse: also return the log-sum-exp.
        backend: `auto`, `triton`, `sdpa` or `reference`; `explain` tells which one `auto` takes.

    Returns:
        Output shaped and typed as `q`; with `return_lse` also the natural log-sum-exp of each row, sinks included,
        [B, Hq, Sq] or packed [Hq, Tq], float32 (float64 for float64 inputs). A row that sees nothing gives 0 and −inf.

    Raises:
        TypeError: an argument of the wrong kind or dtype; the message names it.
        ValueError: shapes that do not agree, a value out of range, or a backend that cannot express the call.
    """
    q, k, v = _under_autocast(q, k, v)
    chosen = explain(
        q, k, v, causal=causal, softmax_scale=softmax_scale, window=window, softcap=softcap, sinks=sinks,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
        return_lse=return_lse, backend=backend,
    )  # fmt: skip
    left, right = _band(window, causal=causal)
    if chosen.backend == "sdpa":
        grouped = True if q.shape[1] != k.shape[1] else False  # noqa: SIM210 (a plain bool, where sizes are symbols)
        return F.scaled_dot_product_attention(q, k, v, is_causal=right == 0, scale=softmax_scale, enable_gqa=grouped)
    out, lse = _ops.attention_forward(
        q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, _longest(q, cu_seqlens_q, max_seqlen_q),
        _longest(k, cu_seqlens_k, max_seqlen_k), 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale,
        left, right, softcap, chosen.backend,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def explain(
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
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Explanation:
    """Which implementation `attention` would use for the same arguments, and why; computes nothing.

    Raises:
        TypeError: as `attention`.
        ValueError: as `attention`.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend {backend!r}: choose one of {', '.join(get_args(Backend))}")
    q, k, v = _under_autocast(q, k, v)
    check_call(
        q, k, v, causal=causal, softmax_scale=softmax_scale, window=window, softcap=softcap, sinks=sinks,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
    )  # fmt: skip
    packed = cu_seqlens_q is not None
    beyond_sdpa = _beyond_sdpa(q, k, _band(window, causal=causal), softcap, sinks, packed=packed, return_lse=return_lse)
    match backend:
        case "reference":
            return Explanation("reference", "asked for")
        case "sdpa" if beyond_sdpa:
            raise ValueError(
                f"backend 'sdpa' cannot express {beyond_sdpa}; use backend='auto', 'triton' or 'reference'"
            )
        case "sdpa":
            return Explanation("sdpa", "asked for")
        case "triton":
            obstacle = _beyond_triton(q)
            if obstacle:
                raise ValueError(f"backend 'triton': {obstacle}; use backend='auto' or 'reference'")
            return Explanation("triton", "asked for")
        case "auto":
            return _automatic(q, beyond_sdpa)


def _automatic(q: Tensor, beyond_sdpa: str | None) -> Explanation:
    beyond_triton = "tensors on a CPU have no kernels" if q.device.type == "cpu" else _beyond_triton(q)
    if beyond_sdpa is None:
        if beyond_triton:
            return Explanation("sdpa", "a plain call, which scaled_dot_product_attention expresses")
        if torch.are_deterministic_algorithms_enabled():
            return Explanation("triton", "deterministic algorithms are asked for, and its backward pass always is")
        if q.element_size() == 2:
            return Explanation("sdpa", "a plain call in 16 bits, where published measurements have cuDNN ahead")
        return Explanation("triton", "a plain call")
    lacking = f"scaled_dot_product_attention cannot express {beyond_sdpa}"
    if beyond_triton:
        return Explanation("reference", f"{lacking}, and {beyond_triton}")
    return Explanation("triton", lacking)


def _beyond_triton(q: Tensor) -> str | None:
    """Why the kernels cannot take these tensors; None where they can."""
    if q.dtype == torch.float64:
        return "the kernels have no float64"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head_dim {q.shape[-1]} is above {MAX_HEAD_DIM}, the kernels' widest"
    if q.device.type == "cuda":
        return _beyond_device(q)
    if q.device.type != "cpu":
        return f"the kernels run on CUDA, not on {q.device.type}"
    return None if _INTERPRETED else "on CPU tensors it needs TRITON_INTERPRET=1 in the environment at start"


def _beyond_device(q: Tensor) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed"
    properties = torch.cuda.get_device_properties(q.device)
    if (properties.major, properties.minor) in SERVED_BY:
        return None
    return f"no configuration was compiled for compute capability {properties.major}.{properties.minor}"


def _under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in autocast's type where it is on, as it casts the arguments of scaled_dot_product_attention."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    )


def _band(window: Window, *, causal: bool) -> Window:
    """The window with causality folded in: no key to the right of the diagonal."""
    left, right = window
    return (left, 0) if causal else (left, right)


def _longest(x: Tensor, cu_seqlens: Tensor | None, given: int | None) -> int:
    """Tokens of the longest sequence, or at least as many."""
    if cu_seqlens is None:
        return x.shape[2]
    return x.shape[0] if given is None else min(given, x.shape[0])


def _beyond_sdpa(
    q: Tensor, k: Tensor, band: Window, softcap: float, sinks: Tensor | None, *, packed: bool, return_lse: bool
) -> str | None:
    """The first feature of a call that scaled_dot_product_attention lacks; None for a plain call."""
    left, right = band
    if packed:
        return "packed sequences"
    if left is not None or right not in (None, 0):
        return "a window"
    if right == 0 and q.shape[2] != k.shape[2]:
        return f"a bottom-right causal mask of {q.shape[2]} queries on {k.shape[2]} keys (it aligns top-left)"
    if softcap:
        return "a soft cap"
    if sinks is not None:
        return "sinks"
    return "the log-sum-exp" if return_lse else None
