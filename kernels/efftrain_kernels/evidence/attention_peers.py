"""Who else computes attention: each made ready for one case from its inputs, in the layout that it likes best.

A peer that cannot express a case raises, with what it lacks. Inputs are copied into the peer's own layout beforehand,
so that none pays for another's. Every peer gives the output and the leaves whose gradients are asked for.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from efftrain_kernels.evidence.cases import Case, Inputs

FLEX_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Ready:
    """An attention ready to be called.

    Attributes:
        forward: gives the output.
        leaves: q, k, v, and sinks where the case has them: what `forward` reads and gradients go to.
        grad: gradient of the output, in the output's layout.
        canonical: turns an output or a gradient back into the layout of `Inputs`.
    """

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    grad: Tensor
    canonical: Callable[[Tensor], Tensor]


Peer = Callable[[Case, Inputs], Ready]


class UnableError(Exception):
    """A peer cannot express a case; the message says what it lacks."""


def ours(backend: Any) -> Peer:
    """`efftrain_kernels.attention` with one of its backends."""

    def peer(case: Case, given: Inputs) -> Ready:
        from efftrain_kernels import attention

        q, k, v, *rest = leaves = _leaves(given.q, given.k, given.v, given.sinks)
        longest = max(case.packed, default=None)
        options = {
            "causal": case.causal, "window": case.window, "softcap": case.softcap, "sinks": rest[0] if rest else None,
            "cu_seqlens_q": given.offsets, "cu_seqlens_k": given.offsets, "max_seqlen_q": longest,
            "max_seqlen_k": longest, "backend": backend,
        }  # fmt: skip
        return Ready(lambda: attention(q, k, v, **options), leaves, given.grad, _same)

    return peer


def sdpa(backend: SDPBackend) -> Peer:
    """Torch's scaled_dot_product_attention, held to one backend."""

    def peer(case: Case, given: Inputs) -> Ready:
        if not case.plain:
            raise UnableError("scaled_dot_product_attention has no window, soft cap, sinks or packed sequences")
        q, k, v = leaves = _leaves(given.q, given.k, given.v)

        def forward() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads
                )

        return Ready(forward, leaves, given.grad, _same)

    return peer


def varlen(case: Case, given: Inputs) -> Ready:
    """Torch's varlen_attn, for packed sequences."""
    if not case.packed or case.window != (None, None) or case.softcap or case.sinks:
        raise UnableError("varlen_attn is for packed sequences, without window, soft cap or sinks")
    attend: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    q, k, v = leaves = _leaves(given.q, given.k, given.v)
    band: dict[str, Any] = {"window_size": (-1, 0 if case.causal else -1)}
    if "window_size" not in attend.__annotations__:  # torch 2.10 and before
        band = {"is_causal": case.causal}
    longest = max(case.packed)
    call = (q, k, v, given.offsets, given.offsets, longest, longest)
    return Ready(lambda: attend(*call, **band), leaves, given.grad, _same)


def flex(case: Case, given: Inputs) -> Ready:
    """Torch's flex_attention, compiled."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    batched = [x.transpose(0, 1)[None].contiguous() if case.packed else x for x in (given.q, given.k, given.v)]
    q, k, v, *rest = leaves = _leaves(*batched, given.sinks)
    grad = given.grad.transpose(0, 1)[None].contiguous() if case.packed else given.grad
    mask = _flex_mask(case, given)
    length = q.shape[2]
    blocks = None if mask is None else create_block_mask(mask, None, None, length, length, device=q.device.type)
    torch.compiler.reset()  # or the ninth shape would not be compiled any more
    functorch: Any = importlib.import_module("torch._functorch.config")
    functorch.donated_buffer = False  # its backward is run more than once on one graph
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    options = {
        "score_mod": _flex_cap(case.softcap), "block_mask": blocks, "enable_gqa": case.heads != case.kv_heads,
        "return_aux": AuxRequest(lse=True) if case.sinks else None,
    }  # fmt: skip

    def forward() -> Tensor:
        if not case.sinks:
            return compiled(q, k, v, **options)
        out, extra = compiled(q, k, v, **options)
        return out * torch.sigmoid(extra.lse - rest[0][:, None])[..., None].to(out.dtype)

    return Ready(forward, leaves, grad, lambda x: x[0].transpose(0, 1) if case.packed and x.ndim == 4 else x)


def flash_attn(case: Case, given: Inputs) -> Ready:
    """The flash-attn package (FlashAttention-2)."""
    if case.sinks:
        raise UnableError("flash-attn has no sinks")
    package: Any = importlib.import_module("flash_attn")
    left, right = (-1 if side is None else side for side in case.window)
    options = {"causal": case.causal, "window_size": (left, right), "softcap": case.softcap}
    if case.packed:
        q, k, v = leaves = _leaves(given.q, given.k, given.v)
        rest = (given.offsets, given.offsets, max(case.packed), max(case.packed))
        return Ready(lambda: package.flash_attn_varlen_func(q, k, v, *rest, **options), leaves, given.grad, _same)
    q, k, v = leaves = _leaves(*(_swap(x).contiguous() for x in (given.q, given.k, given.v)))
    grad = _swap(given.grad).contiguous()
    return Ready(lambda: package.flash_attn_func(q, k, v, **options), leaves, grad, _swap)


def _leaves(*tensors: Tensor | None) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors if x is not None]


def _same(x: Tensor) -> Tensor:
    return x


def _swap(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _flex_cap(softcap: float) -> Callable[..., Tensor] | None:
    if not softcap:
        return None
    return lambda score, batch, head, row, col: softcap * torch.tanh(score / softcap)


def _flex_mask(case: Case, given: Inputs) -> Callable[..., Tensor] | None:
    """Which pairs see each other, as flex_attention asks it; None where all do."""
    left, right = case.band
    if left is None and right is None and not case.packed:
        return None
    lengths = torch.tensor(case.packed or (case.length,), device=given.q.device)
    document = torch.repeat_interleave(lengths)

    def mask(batch: Tensor, head: Tensor, row: Tensor, col: Tensor) -> Tensor:
        seen = document[row] == document[col]
        if left is not None:
            seen = seen & (row - col <= left)
        if right is not None:
            seen = seen & (col - row <= right)
        return seen

    return mask
