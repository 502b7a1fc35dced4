"""What a call to attention may look like: every input is checked before any arithmetic or launch.

A mistake is an error that names its argument and says what to do, never a wrong number. Values that lie on a device are
not read, since that would wait for it.
"""

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from efftrain_kernels.reference import Window

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_call(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None, window: Window, softcap: float,
    sinks: Tensor | None, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, max_seqlen_q: int | None,
    max_seqlen_k: int | None,
) -> None:  # fmt: skip
    """Check the arguments of `attention`, in the order in which they stand.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not agree, or a value out of range.
    """
    packed = cu_seqlens_q is not None or cu_seqlens_k is not None
    _check_tensors(q, k, v, packed=packed)
    _check_scalars(causal=causal, softmax_scale=softmax_scale, softcap=softcap)
    _check_window(window)
    _check_sinks(sinks, q)
    _check_packing("cu_seqlens_q", cu_seqlens_q, "max_seqlen_q", max_seqlen_q, q, packed=packed)
    _check_packing("cu_seqlens_k", cu_seqlens_k, "max_seqlen_k", max_seqlen_k, k, packed=packed)
    if cu_seqlens_q is not None and cu_seqlens_k is not None and cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k holds {len(cu_seqlens_k) - 1} sequences and cu_seqlens_q {len(cu_seqlens_q) - 1}: "
            "they must hold as many"
        )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, *, packed: bool) -> None:
    layout = "[tokens, heads, head_dim] where cu_seqlens are given" if packed else "[batch, heads, tokens, head_dim]"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        if x.ndim != (3 if packed else 4):
            raise ValueError(f"{name} has shape {list(x.shape)}; expected {layout}")
        if x.dtype not in _DTYPES:
            raise TypeError(f"{name} is {x.dtype}; expected float16, bfloat16, float32 or float64")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype} and q {q.dtype}; cast them to one type")
        if x.layout != torch.strided:
            raise ValueError(f"{name} has layout {x.layout}; expected a dense tensor")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; move them to one device")
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{name}: stride {x.stride(-1)} in the last dimension, expected 1; use {name}.contiguous()"
            )
    _check_shapes(q, k, v, packed=packed)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, *, packed: bool) -> None:
    if v.shape != k.shape:
        raise ValueError(f"v has shape {list(v.shape)}; expected the shape of k, {list(k.shape)}")
    if k.shape[-1] != q.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"k has head_dim {k.shape[-1]} and q {q.shape[-1]}; expected one, at least 1")
    if not packed and k.shape[0] != q.shape[0]:
        raise ValueError(f"k has batch {k.shape[0]} and q {q.shape[0]}; expected one")
    heads, kv_heads = q.shape[1], k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"k has {kv_heads} heads, which must divide the {heads} heads of q")


def _check_scalars(*, causal: bool, softmax_scale: float | None, softcap: float) -> None:
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be True or False, not {causal!r}")
    if softmax_scale is not None:
        if not isinstance(softmax_scale, (int, float)):
            raise TypeError(f"softmax_scale must be a number or None, not {type(softmax_scale).__name__}")
        if not -math.inf < softmax_scale < math.inf:
            raise ValueError(f"softmax_scale must be finite, not {softmax_scale}")
    if isinstance(softcap, bool) or not isinstance(softcap, (int, float)):
        raise TypeError(f"softcap must be a number, not {type(softcap).__name__}; 0 is off")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"softcap must be finite and at least 0 (off), not {softcap}")


def _check_window(window: Window) -> None:
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be a pair (left, right), not {window!r}")
    for side, size in zip(("left", "right"), window, strict=True):
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"window: {side} must be an int or None, not {type(size).__name__}")
        if size < 0:
            raise ValueError(f"window: {side} must be at least 0, not {size}; None is unbounded")


def _check_sinks(sinks: Tensor | None, q: Tensor) -> None:
    if sinks is None:
        return
    if not isinstance(sinks, Tensor) or not sinks.is_floating_point():
        raise TypeError("sinks must be a floating-point tensor or None")
    if sinks.shape != (q.shape[1],):
        raise ValueError(f"sinks has shape {list(sinks.shape)}; expected one logit a query head, [{q.shape[1]}]")
    if sinks.device != q.device:
        raise ValueError(f"sinks is on {sinks.device} and q on {q.device}; move them to one device")


def _check_packing(
    name: str, cu_seqlens: Tensor | None, longest_name: str, longest: int | None, x: Tensor, *, packed: bool
) -> None:
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int)):
        raise TypeError(f"{longest_name} must be an int or None, not {type(longest).__name__}")
    if longest is not None and longest < 0:
        raise ValueError(f"{longest_name} must be at least 0, not {longest}")
    if not packed:
        if longest is not None:
            raise ValueError(f"{longest_name} goes with {name}; leave it out where sequences are not packed")
        return
    if cu_seqlens is None:
        raise ValueError(f"{name} is missing: packed sequences need cu_seqlens_q and cu_seqlens_k")
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, not {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"{name} has shape {list(cu_seqlens.shape)}; expected [sequences + 1], at least 2")
    if cu_seqlens.device != x.device:
        raise ValueError(f"{name} is on {cu_seqlens.device} and {name[-1]} on {x.device}; move them to one device")
    # Elsewhere, reading values would wait for the device, or there are none.
    if cu_seqlens.is_cpu and not torch.compiler.is_compiling() and not isinstance(cu_seqlens, FakeTensor):
        _check_offsets(name, cu_seqlens, longest_name, longest, tokens=x.shape[0])


def _check_offsets(name: str, cu_seqlens: Tensor, longest_name: str, longest: int | None, tokens: int) -> None:
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != tokens:
        raise ValueError(f"{name} runs from {first} to {last}; expected 0 to {tokens}, the tokens of {name[-1]}")
    lengths = cu_seqlens.diff()
    if bool((lengths < 0).any()):
        raise ValueError(f"{name} must not decrease; it holds {cu_seqlens.tolist()}")
    if longest is not None and int(lengths.max()) > longest:
        raise ValueError(f"{longest_name} is {longest}, but a sequence of {name[-1]} has {int(lengths.max())} tokens")
