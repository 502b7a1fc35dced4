"""Attention as torch ops: what compilers, counters, checkpointing and autograd see.

`efftrain::attention_forward` and `efftrain::attention_backward` are black boxes with a cost, so that a compiled model
has no graph break and selective checkpointing can keep the one op by name. The autograd formula stands under the
dispatcher's Autograd key: wrapped around the op it would be traced through, and `register_autograd` would let a second
derivative pass silently. `kernel` chooses what computes: `triton`, or the plain `reference`.
"""

import contextlib
import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from efftrain_kernels import costs, reference

Computed = Literal["triton", "reference"]

_CALL = (
    "Tensor? sinks, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k,"
    " float scale, SymInt? left, SymInt? right, float softcap, str kernel"
)
_library = torch.library.Library("efftrain", "FRAGMENT")
_library.define(f"attention_forward(Tensor q, Tensor k, Tensor v, {_CALL}) -> (Tensor, Tensor)")
_library.define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? grad_lse,"
    f" {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)"
)
attention_forward = torch.ops.efftrain.attention_forward
attention_backward = torch.ops.efftrain.attention_backward


def _forward(q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    """Output as `q` and log-sum-exp [B, Hq, Sq] or packed [Hq, Tq]."""
    out, lse = _empty(q, call), _empty_lse(q, call)
    if call[-1] == "triton":
        with _on(q):
            from efftrain_kernels._kernels import attention as kernels

            for launch in kernels.forward_launches(q, k, v, out, lse, *_call_and_target(q, call)):
                launch.run()
        return out, lse
    sinks, cu_q, cu_k, _, _, scale, left, right, softcap, _ = call
    out_values, lse_values = reference.attention(
        q, k, v, softmax_scale=scale, window=(left, right), softcap=softcap, sinks=sinks, cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
    )  # fmt: skip
    return out.copy_(out_values), lse.copy_(lse_values)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_lse: Tensor | None, *call: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and sinks; the last is empty where there are none."""
    sinks, cu_q, cu_k, _, _, scale, left, right, softcap, kernel = call
    dq, dk, dv = (_empty(x, call) for x in (q, k, v))
    if kernel == "triton":
        with _on(q):
            from efftrain_kernels._kernels import attention as kernels

            delta = torch.zeros_like(lse) if call[1] is not None else torch.empty_like(lse)
            grad = grad if grad.stride(-1) == 1 else grad.contiguous()
            arguments = (grad, grad_lse, q, k, v, out, lse, delta, dq, dk, dv, *_call_and_target(q, call))
            for launch in kernels.backward_launches(*arguments):
                launch.run()
        d_sinks = None if sinks is None else reference.sinks_gradient(sinks, lse, delta)
    else:
        *gradients, d_sinks = reference.attention_backward(
            grad, grad_lse, q, k, v, out, lse, scale=scale, band=(left, right), softcap=softcap, sinks=sinks,
            cu_seqlens_q=cu_q, cu_seqlens_k=cu_k,
        )  # fmt: skip
        for whole, values in zip((dq, dk, dv), gradients, strict=True):
            whole.copy_(values)
    return dq, dk, dv, q.new_empty(0) if d_sinks is None else d_sinks


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    return _dense(q), _empty_lse(q)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_lse: Tensor | None, *call: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_sinks = q.new_empty(0) if call[0] is None else torch.empty_like(call[0])
    return _dense(q), _dense(k), _dense(v), d_sinks


class _Attention(torch.autograd.Function):
    """The first derivative."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = attention_forward(q, k, v, *call)
        ctx.save_for_backward(q, k, v, out, lse, *call[:3])
        ctx.rest = call[3:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks, cu_q, cu_k = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad
        call = (sinks, cu_q, cu_k, *ctx.rest)
        dq, dk, dv, d_sinks = attention_backward(grad, q, k, v, out, lse, grad_lse, *call)
        return dq, dk, dv, None if sinks is None else d_sinks, *(None for _ in call[1:])


class _Gradients(torch.autograd.Function):
    """The gradients as a function that cannot be differentiated.

    `once_differentiable` around `_Attention.backward` would take them for constants wherever the incoming gradient is
    one, and a second derivative would come out wrong without a word.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return attention_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "efftrain's attention has no second derivative; use efftrain_kernels.reference.attention, which has"
        )


_library.impl("attention_forward", _forward, "CompositeExplicitAutograd")
_library.impl("attention_backward", _backward, "CompositeExplicitAutograd")
_library.impl("attention_forward", _Attention.apply, "Autograd")
_library.impl("attention_backward", _Gradients.apply, "Autograd")
torch.library.register_fake("efftrain::attention_forward", _fake_forward, lib=_library)
torch.library.register_fake("efftrain::attention_backward", _fake_backward, lib=_library)
register_flop_formula(attention_forward, get_raw=True)(costs.attention_op_flops)
register_flop_formula(attention_backward, get_raw=True)(costs.attention_backward_op_flops)


def _empty(x: Tensor, call: tuple[Any, ...]) -> Tensor:
    """A result like `x`; packed ones are zeros, for tokens behind the last sequence, which cannot be ruled out."""
    return _dense(x) if call[1] is None else _dense(x).zero_()


def _dense(x: Tensor) -> Tensor:
    """An empty tensor like `x`, its last dimension contiguous even where rows of `x` overlap."""
    like = torch.empty_like(x)
    return like if like.stride(-1) == 1 or x.shape[-1] == 1 else x.new_empty(x.shape)


def _empty_lse(q: Tensor, call: tuple[Any, ...] = (None, None)) -> Tensor:
    """A log-sum-exp for `q`; packed, tokens behind the last sequence see nothing."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty(q.shape[:3] if q.ndim == 4 else (q.shape[1], q.shape[0]), dtype=dtype)
    return lse if call[1] is None else lse.fill_(-math.inf)


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _call_and_target(q: Tensor, call: tuple[Any, ...]) -> tuple[Any, Any]:
    from efftrain_kernels._kernels.attention import Call, Target
    from efftrain_kernels._kernels.configs import architecture

    sinks, cu_q, cu_k = (None if x is None else x.contiguous() for x in call[:3])
    max_q, max_k, scale, left, right, softcap, _ = call[3:]
    if q.is_cuda:
        precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
        arch = architecture(torch.cuda.get_device_capability(q.device))
        target = Target(arch, torch.cuda.get_device_name(q.device), precision)
    else:
        target = Target(90)  # the interpreter
    return Call(scale, left, right, softcap, max_q, max_k, sinks, cu_q, cu_k), target
