"""Attention as kernel launches: pure functions from tensors (meta tensors will do) to what is to be launched."""

from dataclasses import dataclass
from typing import Any, Literal

import triton
from torch import Tensor

from efftrain_kernels._kernels import attention_backward, attention_forward, specialised
from efftrain_kernels._kernels.configs import Config, Kernel, Key, config_for
from efftrain_kernels._kernels.launch import Launch

_DELTA_ROWS = 64
# Keys and values of one section of heads stay in the L2 cache: 32 of the 50 MB of an H100, as FlashAttention-3 has it.
_SECTION_BYTES = 32 << 20

_PLAIN: dict[Kernel, Any] = {
    "forward": attention_forward.forward, "keys": attention_backward.keys_and_values,
    "queries": attention_backward.queries,
}  # fmt: skip

Precision = Literal["ieee", "tf32"]


@dataclass(frozen=True, slots=True)
class Call:
    """What a call to attention asks for besides q, k and v.

    Attributes:
        scale: factor on q·k.
        left: keys to the left of the diagonal that a query sees; None is unbounded.
        right: keys to the right of it.
        softcap: 0 is off.
        max_seqlen_q: longest sequence of q; Sq where sequences are not packed.
        max_seqlen_k: longest sequence of k.
        sinks: [Hq] or None.
        cu_seqlens_q: int32 [sequences + 1], or None where sequences are not packed.
        cu_seqlens_k: the same for k and v.
    """

    scale: float
    left: int | None
    right: int | None
    softcap: float
    max_seqlen_q: int
    max_seqlen_k: int
    sinks: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether sequences are packed."""
        return self.cu_seqlens_q is not None

    def band(self) -> tuple[int | None, int | None]:
        """`left` and `right`, None where a side hides nothing, so that no int32 overflows."""
        left = None if self.left is None or self.left >= self.max_seqlen_k - 1 else self.left
        right = None if self.right is None or self.right >= self.max_seqlen_q - 1 else self.right
        return left, right


@dataclass(frozen=True, slots=True)
class Target:
    """What configurations depend on besides the call.

    Attributes:
        arch: one of `configs.ARCHITECTURES`.
        device: its name, by which a tuned file is found; None for the table alone.
        precision: of products of float32 tiles.
        configs: taken in place of table and file, by kernel.
    """

    arch: int
    device: str | None = None
    precision: Precision = "ieee"
    configs: dict[Kernel, Config] | None = None

    def config(self, kernel: Kernel, q: Tensor, call: Call, *, specialised: bool = False) -> Config:
        """The configuration of `kernel` for these queries; a specialised one only where that may be.

        Raises:
            ValueError: a specialised one is given for a call that its kernel does not take.
        """
        given = (self.configs or {}).get(kernel)
        if given and given.specialised and not specialised:
            raise ValueError(f"{given}: this call, or this triton, is not one that the specialised kernel takes")
        if given:
            return given
        masked = call.left is not None or call.right is not None
        key = Key.of(self.arch, kernel, q, masked=masked, capped=call.softcap != 0)
        return config_for(key, self.device, specialised=specialised)


def forward_launches(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: Call, target: Target
) -> list[Launch]:
    """The forward pass: fills `out` and `lse`.

    Args:
        q: [B, Hq, Sq, D] or packed [Tq, Hq, D].
        k: [B, Hkv, Sk, D] or packed.
        v: as `k`.
        out: as `q`.
        lse: float32 [B, Hq, Sq] or packed [Hq, Tq], contiguous.
        call: everything else.
        target: what configurations depend on.
    """
    config = target.config("forward", q, call, specialised=specialised.takes(call, q, k, v, out))
    lanes, groups = _batch(q, call) * q.shape[1], q.shape[1] // k.shape[1]
    arguments = {
        **_pointers(q=q, k=k, v=v, out=out, lse=lse, sinks=call.sinks),
        **_strides(call, q=q, k=k, v=v, out=out),
        **_lse_strides(lse, call),
        "heads": q.shape[1],
        **_band(call, q, k),
        **_grid(call.max_seqlen_q, config.block_m, lanes, together=groups, streamed=_pair_bytes(k, call.max_seqlen_k)),
        "HAS_SINKS": call.sinks is not None,
        "NEGATIVE_SCALE": call.scale < 0,
        **_tile(q, config, target.precision),
    }  # fmt: skip
    return [_kernel_launch("forward", arguments, config)]


def backward_launches(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, call: Call, target: Target,
) -> list[Launch]:  # fmt: skip
    """The backward pass: fills `delta`, then `dk` and `dv`, then `dq`, in as many launches.

    Args:
        grad: gradient of `out`, last dimension contiguous.
        grad_lse: gradient of `lse`, or None.
        q: as in the forward pass; so `k`, `v`, `out` and `lse`.
        k: see `q`.
        v: see `q`.
        out: see `q`.
        lse: see `q`.
        delta: float32, laid out as `lse`.
        dq: as `q`.
        dk: as `k`.
        dv: as `v`.
        call: everything else.
        target: what configurations depend on.
    """
    inputs = _pointers(q=q, k=k, v=v, grad=grad, lse=lse, delta=delta)
    q_bytes, k_bytes = _pair_bytes(q, call.max_seqlen_q), _pair_bytes(k, call.max_seqlen_k)
    strides = {**_strides(call, q=q, k=k, v=v, grad=grad), **_lse_strides(lse, call)}
    batch, groups = _batch(q, call), q.shape[1] // k.shape[1]
    plain = specialised.takes(call, q, k, v, grad, dq, dk, dv, flat=(lse, delta))

    by_keys = target.config("keys", q, call, specialised=plain)
    lanes = batch * k.shape[1]
    keys = {
        **inputs, **_pointers(dk=dk, dv=dv), **strides, **_strides(call, dk=dk, dv=dv), "kv_heads": k.shape[1],
        **_band(call, q, k),
        **_grid(call.max_seqlen_k, by_keys.block_n, lanes, together=1, streamed=groups * q_bytes),
        **_tile(q, by_keys, target.precision),
    }  # fmt: skip

    by_queries = target.config("queries", q, call, specialised=plain)
    lanes = batch * q.shape[1]
    queries = {
        **inputs, **_pointers(dq=dq), **strides, **_strides(call, dq=dq), "heads": q.shape[1], **_band(call, q, k),
        **_grid(call.max_seqlen_q, by_queries.block_m, lanes, together=groups, streamed=k_bytes),
        **_tile(q, by_queries, target.precision),
    }  # fmt: skip
    return [
        _delta_launch(grad, grad_lse, out, lse, delta, call),
        _kernel_launch("keys", keys, by_keys),
        _kernel_launch("queries", queries, by_queries),
    ]


def _delta_launch(grad: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, delta: Tensor, call: Call) -> Launch:
    config = Config(_DELTA_ROWS, _DELTA_ROWS, num_warps=4, num_stages=1)
    lanes = _batch(out, call) * out.shape[1]
    grad_lse_strides = (0, 0, 0) if grad_lse is None else (0, *grad_lse.stride())[-3:]
    arguments = {
        **_pointers(out=out, grad=grad, lse=lse, grad_lse=grad_lse, delta=delta),
        **_strides(call, out=out, grad=grad),
        **dict(zip(("grad_lse_batch", "grad_lse_head", "grad_lse_row"), grad_lse_strides, strict=True)),
        **_lse_strides(lse, call),
        "heads": out.shape[1],
        "len_q": out.shape[-2],
        "HAS_GRAD_LSE": grad_lse is not None,
        **_grid(call.max_seqlen_q, _DELTA_ROWS, lanes, together=lanes, streamed=0),
        **_tile(out, config, "ieee"),
        "PACKED": call.packed,
        "cu_q_ptr": call.cu_seqlens_q,
    }
    return _launch(attention_backward.delta, arguments, config)


def _kernel_launch(kernel: Kernel, arguments: dict[str, Any], config: Config) -> Launch:
    if config.specialised:
        return specialised.launch(kernel, arguments, config)
    return _launch(_PLAIN[kernel], arguments, config)


def _launch(kernel: Any, arguments: dict[str, Any], config: Config) -> Launch:
    """A launch with those of `arguments` that the kernel takes."""
    taken = {name: arguments[name] for name in kernel.arg_names}
    return Launch(
        kernel, taken, (arguments["blocks"] * arguments["lanes"],), num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip


def _pointers(**tensors: Tensor | None) -> dict[str, Any]:
    return {f"{name}_ptr": tensor for name, tensor in tensors.items()}


def _strides(call: Call, **tensors: Tensor) -> dict[str, int]:
    """Strides by batch, head and row; packed sequences are one batch, told apart by their offsets."""
    strides = {}
    for name, x in tensors.items():
        batch, head, row = (0, x.stride(1), x.stride(0)) if call.packed else x.stride()[:3]
        strides |= {f"{name}_batch": batch, f"{name}_head": head, f"{name}_row": row}
    return strides


def _lse_strides(lse: Tensor, call: Call) -> dict[str, int]:
    batch, head = (0, lse.stride(0)) if call.packed else lse.stride()[:2]
    return {"lse_batch": batch, "lse_head": head}


def _band(call: Call, q: Tensor, k: Tensor) -> dict[str, Any]:
    """Lengths, mask and scale."""
    left, right = call.band()
    return {
        "cu_q_ptr": call.cu_seqlens_q, "cu_k_ptr": call.cu_seqlens_k, "PACKED": call.packed,
        "groups": q.shape[1] // k.shape[1], "len_q": q.shape[-2], "len_k": k.shape[-2],
        "left": left or 0, "right": right or 0, "scale": call.scale, "softcap": call.softcap,
        "HAS_LEFT": left is not None, "HAS_RIGHT": right is not None, "HAS_SOFTCAP": call.softcap != 0,
    }  # fmt: skip


def _grid(length: int, block: int, lanes: int, *, together: int, streamed: int) -> dict[str, int]:
    """Blocks of `length` in every lane; `together` lanes stream through the same `streamed` bytes."""
    section = together * max(1, _SECTION_BYTES // max(1, streamed))
    return {"blocks": -(-length // block), "lanes": lanes, "section": max(1, min(lanes, section))}


def _tile(q: Tensor, config: Config, precision: Precision) -> dict[str, Any]:
    head_dim = q.shape[-1]
    block_d = max(16, triton.next_power_of_2(head_dim))
    return {
        "HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "PRECISION": precision,
    }  # fmt: skip


def _batch(q: Tensor, call: Call) -> int:
    return q.shape[0] if call.cu_seqlens_q is None else call.cu_seqlens_q.shape[0] - 1


def _pair_bytes(x: Tensor, length: int) -> int:
    """Bytes of one head of two tensors like `x` over a sequence of `length`: k and v, or q and the gradient."""
    return 2 * length * x.shape[-1] * x.element_size()
