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
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]
_LSE_BYTES = 4  # float32


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
