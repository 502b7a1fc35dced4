"""The same attention under the names, layouts and conventions that other code calls already.

`flash_attn_func` and `flash_attn_varlen_func` take flash-attention's arguments ([B, S, H, D], bottom-right causal
mask, −1 for an unbounded window); `scaled_dot_product_attention` takes torch's ([B, H, S, D], top-left causal mask).
An argument that the kernels cannot honour is refused, not ignored.
"""

from torch import Tensor

from efftrain_kernels._attention import Backend, attention
from efftrain_kernels.reference import Window


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash-attention's `flash_attn_func`.

    Args:
        q: [B, Sq, Hq, D].
        k: [B, Sk, Hkv, D].
        v: as `k`.
        dropout_p: 0; there is no dropout.
        softmax_scale: 1/√D where None.
        causal: bottom-right aligned.
        window_size: (left, right), inclusive; −1 is unbounded.
        softcap: 0 is off.
        alibi_slopes: None; there is no ALiBi.
        deterministic: True keeps scaled_dot_product_attention from being taken: the kernels' backward pass always is.
        return_attn_probs: also return the log-sum-exp [B, Hq, Sq], and None where flash-attention has the weights.
        sinks: as in `attention`.
        backend: as in `attention`.

    Returns:
        [B, Sq, Hq, D], or (that, log-sum-exp, None).

    Raises:
        ValueError: dropout or ALiBi is asked for; otherwise as `attention`.
        TypeError: as `attention`.
    """
    _refuse(dropout_p, alibi_slopes)
    q, k, v = (x.transpose(1, 2) if isinstance(x, Tensor) and x.ndim == 4 else x for x in (q, k, v))
    out, lse = _attention(
        q, k, v, causal=causal, softmax_scale=softmax_scale, window=_window(window_size), softcap=softcap, sinks=sinks,
        return_lse=return_attn_probs, backend=_deterministic(backend, q, deterministic=deterministic),
    )  # fmt: skip
    out = out.transpose(1, 2)
    return (out, lse, None) if lse is not None else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash-attention's `flash_attn_varlen_func`: packed sequences.

    Args:
        q: [Tq, Hq, D].
        k: [Tk, Hkv, D].
        v: as `k`.
        cu_seqlens_q: int32 [sequences + 1].
        cu_seqlens_k: int32 [sequences + 1].
        max_seqlen_q: longest sequence of q.
        max_seqlen_k: longest sequence of k.
        dropout_p: as in `flash_attn_func`, as are the rest.
        softmax_scale: see `dropout_p`.
        causal: see `dropout_p`.
        window_size: see `dropout_p`.
        softcap: see `dropout_p`.
        alibi_slopes: see `dropout_p`.
        deterministic: see `dropout_p`.
        return_attn_probs: also return the log-sum-exp [Hq, Tq], and None.
        sinks: see `dropout_p`.
        backend: see `dropout_p`.

    Returns:
        [Tq, Hq, D], or (that, log-sum-exp, None).

    Raises:
        ValueError: as `flash_attn_func`.
        TypeError: as `attention`.
    """
    _refuse(dropout_p, alibi_slopes)
    out, lse = _attention(
        q, k, v, causal=causal, softmax_scale=softmax_scale, window=_window(window_size), softcap=softcap, sinks=sinks,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
        return_lse=return_attn_probs, backend=_deterministic(backend, q, deterministic=deterministic),
    )  # fmt: skip
    return (out, lse, None) if lse is not None else out


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Torch's `scaled_dot_product_attention`, with its causal mask aligned to the top left.

    Args:
        query: [B, Hq, Sq, D].
        key: [B, Hkv, Sk, D].
        value: as `key`.
        attn_mask: None; packed sequences, windows and causal masks are `attention`'s.
        dropout_p: 0; there is no dropout.
        is_causal: query i sees keys 0 … i, whatever the lengths.
        scale: 1/√D where None.
        enable_gqa: must be True where Hq and Hkv differ.
        backend: as in `attention`.

    Returns:
        [B, Hq, Sq, D].

    Raises:
        ValueError: a mask or dropout is asked for, or grouped heads without `enable_gqa`; otherwise as `attention`.
        TypeError: as `attention`.
    """
    if attn_mask is not None:
        raise ValueError(
            "attn_mask: arbitrary masks are not supported; use is_causal, or attention's window or packing"
        )
    _refuse(dropout_p, None)
    if not enable_gqa and query.ndim == key.ndim == 4 and query.shape[1] != key.shape[1]:
        raise ValueError(f"key has {key.shape[1]} heads and query {query.shape[1]}; pass enable_gqa=True to group them")
    if not is_causal:
        return attention(query, key, value, softmax_scale=scale, backend=backend)
    # Top left: what lies behind row Sq of the keys is seen by nobody, and rows behind Sk see all keys.
    shift = key.shape[-2] - query.shape[-2]
    if shift >= 0:
        shared = query.shape[-2]
        return attention(
            query, key[..., :shared, :], value[..., :shared, :], causal=True, softmax_scale=scale, backend=backend
        )
    return attention(query, key, value, window=(None, -shift), softmax_scale=scale, backend=backend)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **call: object) -> tuple[Tensor, Tensor | None]:
    if return_lse:
        return attention(q, k, v, return_lse=True, **call)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return attention(q, k, v, **call), None  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]


def _refuse(dropout_p: float, alibi_slopes: Tensor | None) -> None:
    if dropout_p:
        raise ValueError(f"dropout_p is {dropout_p}; attention dropout is not supported, use 0")
    if alibi_slopes is not None:
        raise ValueError("alibi_slopes: ALiBi is not supported; pass None")


def _window(window_size: tuple[int, int]) -> Window:
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size must be a pair (left, right), not {window_size!r}; -1 is unbounded")
    left, right = window_size
    return None if left < 0 else left, None if right < 0 else right


def _deterministic(backend: Backend, q: Tensor, *, deterministic: bool) -> Backend:
    """The kernels where results must repeat bit for bit; scaled_dot_product_attention's need not on a device."""
    return "triton" if deterministic and backend == "auto" and isinstance(q, Tensor) and q.is_cuda else backend
