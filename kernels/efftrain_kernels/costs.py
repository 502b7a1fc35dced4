"""What attention costs, in floating-point operations and in bytes.

A multiply and an add are two FLOP. A causal mask or a window is not subtracted: an attention over Sq × Sk positions
counts as that many, which is the convention of PaLM (arXiv:2204.02311, appendix B) and of torch's own counter. The
backward pass of a fused kernel computes the scores once more; hardware FLOPs include that, model FLOPs do not. Bytes
are the least that a fused kernel moves: every input read once, every output written once.

All functions are pure and take shapes as [B, H, S, D]; for packed sequences, add up the sequences with B = 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]
_LSE_BYTES = 4  # float32
_SMALLEST_INT8, _SCALE_BLOCK, _SCALE_BYTES = 4096, 256, 4  # elements, elements, float32: of 8-bit moments


def attention_flops(q_shape: Shape, k_shape: Shape, v_shape: Shape) -> int:
    """FLOP of the forward pass: q·kᵀ and weights·v.

    Args:
        q_shape: [B, Hq, Sq, D].
        k_shape: [B, Hkv, Sk, D]; sharing key heads does not lower the FLOPs.
        v_shape: [B, Hkv, Sk, Dv].
    """
    return 2 * _pairs(q_shape, k_shape) * (q_shape[3] + v_shape[3])


def attention_backward_flops(q_shape: Shape, k_shape: Shape, v_shape: Shape, *, recomputed_scores: bool) -> int:
    """FLOP of the backward pass: gradients of q and k, of v and of the weights.

    Args:
        q_shape: [B, Hq, Sq, D].
        k_shape: [B, Hkv, Sk, D].
        v_shape: [B, Hkv, Sk, Dv].
        recomputed_scores: True counts q·kᵀ once more, as fused kernels do (hardware FLOPs: 2.5 × the forward pass at
            Dv = D); False leaves it out (model FLOPs: 2 ×).
    """
    score_products = 3 if recomputed_scores else 2
    return 2 * _pairs(q_shape, k_shape) * (score_products * q_shape[3] + 2 * v_shape[3])


def attention_bytes(q_shape: Shape, k_shape: Shape, v_shape: Shape, *, itemsize: int) -> int:
    """Least bytes of a fused forward pass: q, k, v read, output and log-sum-exp (float32) written.

    Args:
        q_shape: [B, Hq, Sq, D].
        k_shape: [B, Hkv, Sk, D].
        v_shape: [B, Hkv, Sk, Dv].
        itemsize: bytes of one element of q, k, v and the output.
    """
    tensors = _elements(q_shape) + _elements(k_shape) + _elements(v_shape) + _rows(q_shape) * v_shape[3]
    return itemsize * tensors + _LSE_BYTES * _rows(q_shape)


def attention_backward_bytes(q_shape: Shape, k_shape: Shape, v_shape: Shape, *, itemsize: int) -> int:
    """Least bytes of a fused backward pass: q, k, v, output, its gradient and log-sum-exp read, dq, dk, dv written.

    Args:
        q_shape: [B, Hq, Sq, D].
        k_shape: [B, Hkv, Sk, D].
        v_shape: [B, Hkv, Sk, Dv].
        itemsize: bytes of one element of q, k, v, the output and their gradients.
    """
    inputs = _elements(q_shape) + _elements(k_shape) + _elements(v_shape)
    return itemsize * (2 * inputs + 2 * _rows(q_shape) * v_shape[3]) + _LSE_BYTES * _rows(q_shape)


def attention_op_flops(
    q: Tensor, k: Tensor, v: Tensor, sinks: Any, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
    max_seqlen_q: int, max_seqlen_k: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """FLOP of one `efftrain::attention_forward`, from its arguments."""
    pairs = _op_pairs(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_k)
    return 2 * pairs * (q.shape[-1] + v.shape[-1])


def attention_backward_op_flops(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_lse: Any, sinks: Any,
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, max_seqlen_q: int, max_seqlen_k: int, *rest: Any,
    **__: Any,
) -> int:  # fmt: skip
    """Hardware FLOP of one `efftrain::attention_backward`, from its arguments.

    The kernels compute the scores and the weights' gradients twice, once for keys and values and once for queries: 7
    products where the reference, like other fused kernels, does 5 and the model needs 4.
    """
    pairs = _op_pairs(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_k)
    return 2 * pairs * executed_widths(rest[-1], q.shape[-1], v.shape[-1])


def executed_widths(kernel: str, key_width: int, value_width: int) -> int:
    """Head widths summed over the products of a backward pass, as `kernel` executes them.

    Args:
        kernel: `triton` for this package's kernels; anything else is a single fused pass.
        key_width: D, of the products S = Q·Kᵀ, dQ and dK.
        value_width: Dv, of dP = dO·Vᵀ and dV.
    """
    if kernel == "triton":
        return 4 * key_width + 3 * value_width
    return 3 * key_width + 2 * value_width


def _op_pairs(q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, longest_k: int) -> int:
    """Query–key pairs over all heads; at most that many where the offsets have no values (fake tensors)."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if isinstance(cu_seqlens_q, FakeTensor) or cu_seqlens_q.is_meta:
        return q.shape[1] * q.shape[0] * min(longest_k, k.shape[0])
    return q.shape[1] * int((cu_seqlens_q.diff().long() * cu_seqlens_k.diff().long()).sum())


def missing_formulas() -> dict[torch._ops.OpOverloadPacket, Callable[..., int]]:
    """Those of `FORMULAS` that this torch's registry lacks, so that nothing is registered twice.

    They take shapes for tensors, as `torch.utils.flop_counter.register_flop_formula` and FlopCounterMode's
    `custom_mapping` expect, and give hardware FLOPs, as torch's own do.
    """
    return {op: formula for op, formula in FORMULAS.items() if op not in flop_registry}


def _pairs(q_shape: Shape, k_shape: Shape) -> int:
    return _rows(q_shape) * k_shape[2]


def _rows(q_shape: Shape) -> int:
    batch, heads, length, _ = q_shape
    return batch * heads * length


def _elements(shape: Shape) -> int:
    return _rows(shape) * shape[3]


def _cpu_forward(q_shape: Shape, k_shape: Shape, v_shape: Shape, *_: Any, **__: Any) -> int:
    return attention_flops(q_shape, k_shape, v_shape)


def _cpu_backward(_grad_shape: Shape, q_shape: Shape, k_shape: Shape, v_shape: Shape, *_: Any, **__: Any) -> int:
    return attention_backward_flops(q_shape, k_shape, v_shape, recomputed_scores=True)


# scaled_dot_product_attention on a CPU, which torch 2.13 counts as 0 (pytorch/pytorch#195460).
FORMULAS: dict[torch._ops.OpOverloadPacket, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_backward,
}


def adamw_flops(*_: Any, **__: Any) -> int:
    """FLOP of a step of AdamW: 0, because torch's counter counts no element-wise work anywhere."""
    return 0


def adamw_bytes(
    numel: int,
    *,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    state_dtype: str = "float32",
    master_weights: str | None = None,
    amsgrad: bool = False,
    clipping: bool = False,
) -> int:
    """Least bytes of a step of AdamW on one tensor: all that it needs read once, all that it changes written once.

    Args:
        numel: elements of the parameter; below 4096, 8-bit moments are float32 ones.
        param_dtype: of the parameter.
        grad_dtype: of its gradient.
        state_dtype: float32, bfloat16 or int8, as for `AdamW`.
        master_weights: None, float32 (the parameter itself is then only written) or split16.
        amsgrad: whether the largest second moment is kept too.
        clipping: whether a pass over the gradient takes its norm first.
    """
    eight_bits = state_dtype == "int8" and numel >= _SMALLEST_INT8
    moment = 1 if eight_bits else 2 if state_dtype == "bfloat16" else 4
    moments = (3 if amsgrad else 2) * (moment * numel + (_SCALE_BYTES * -(-numel // _SCALE_BLOCK) if eight_bits else 0))
    param = numel * param_dtype.itemsize
    weights = {None: 2 * param, "float32": param + 2 * 4 * numel, "split16": 2 * (param + 2 * numel)}
    small = param_dtype.itemsize == 2  # larger parameters are their own master weights
    grads = (2 if clipping else 1) * numel * grad_dtype.itemsize
    return grads + 2 * moments + weights[master_weights if small else None]


def _forward_op_bytes(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    elements = q.numel() + k.numel() + v.numel() + q.numel()
    return q.element_size() * elements + _LSE_BYTES * q.numel() // q.shape[-1]


def _backward_op_bytes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    elements = 2 * (q.numel() + k.numel() + v.numel()) + 2 * grad.numel()
    return q.element_size() * elements + _LSE_BYTES * q.numel() // q.shape[-1]


def _adamw_step_bytes(params: Sequence[Tensor], grads: Sequence[Tensor], *rest: Any, **__: Any) -> int:
    *lists, _settings, _norm = rest[:10]
    masters = lists[4]  # steps, three moments, masters, three lists of scales
    written_only = bool(masters) and masters[0].dtype == torch.float32
    changed = 2 * sum(_nbytes(tensors) for tensors in lists)
    return (1 if written_only else 2) * _nbytes(params) + _nbytes(grads) + changed


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def _adamw_norm_bytes(grads: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return _nbytes(grads)


BYTES: dict[str, Callable[..., int]] = {
    "efftrain::adamw_norm": _adamw_norm_bytes,
    "efftrain::adamw_step": _adamw_step_bytes,
    "efftrain::attention_forward": _forward_op_bytes,
    "efftrain::attention_backward": _backward_op_bytes,
}
"""Least bytes of one call of each of our ops, from its own arguments."""
