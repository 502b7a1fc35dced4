"""Which calls the specialised forward kernel takes, and its launch.

Tiles are copied by the engine for tensors (TMA), whose descriptors ask for addresses and strides in units of 16 bytes.
"""

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efftrain_kernels._kernels.configs import Config
from efftrain_kernels._kernels.launch import Launch

if TYPE_CHECKING:
    from efftrain_kernels._kernels.attention import Call

HEAD_DIMS = (64, 128)
_UNIT = 16  # bytes
_GROUP_ROWS = 64
# By groups of warps: those, and the loading warp's own group, have 65,536 registers between them.
_REGISTERS = {2: 168, 3: 128}


def takes(q: Tensor, k: Tensor, v: Tensor, out: Tensor, call: "Call") -> bool:
    """Whether the kernel can do a call: full or causal, with nothing else asked for.

    Args:
        q: [B, Hq, Sq, D]; packed tensors are not taken.
        k: [B, Hkv, Sk, D].
        v: as `k`.
        out: as `q`.
        call: the rest.
    """
    plain = not call.packed and call.sinks is None and call.softcap == 0 and call.scale > 0
    if not plain or not _gluon() or q.element_size() != 2 or q.shape[-1] not in HEAD_DIMS:
        return False
    left, right = call.band()
    lengths = q.shape[2] > 0 and k.shape[2] > 0 and (right is None or k.shape[2] >= q.shape[2])
    return left is None and right in {None, 0} and lengths and all(_aligned(x) for x in (q, k, v, out))


def launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, config: Config, arguments: dict[str, Any]) -> Launch:
    """The launch for tensors that the kernel takes.

    Args:
        q: see `takes`; so `k`, `v` and `out`.
        k: see `q`.
        v: see `q`.
        out: see `q`.
        config: a specialised one.
        arguments: by name, among them all that the kernel takes besides descriptors and sizes of tiles.
    """
    from efftrain_kernels._kernels.attention_specialised import forward

    head_dim = q.shape[-1]
    queries, keys = [1, 1, _GROUP_ROWS, head_dim], [1, 1, config.block_n, head_dim]
    known = {
        **arguments, "q_desc": _descriptor(q, queries), "k_desc": _descriptor(k, keys), "v_desc": _descriptor(v, keys),
        "out_desc": _descriptor(out, queries), "CAUSAL": arguments["HAS_RIGHT"], "STAGES": config.num_stages,
    }  # fmt: skip
    return Launch(
        forward, {name: known[name] for name in forward.arg_names}, (arguments["blocks"] * arguments["lanes"],),
        num_warps=config.num_warps, num_stages=1, max_registers=_REGISTERS[config.block_m // _GROUP_ROWS],
    )  # fmt: skip


@functools.cache
def _gluon() -> bool:
    """Whether this triton's Gluon, which is experimental, has what the kernel is written in."""
    try:
        from efftrain_kernels._kernels import attention_specialised  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def _aligned(x: Tensor) -> bool:
    sizes, strides = x.shape[:3], x.stride()[:3]
    rows = all(n == 1 or (s > 0 and s * x.element_size() % _UNIT == 0) for n, s in zip(sizes, strides, strict=True))
    return rows and x.stride(3) == 1 and x.data_ptr() % _UNIT == 0 and x.numel() > 0


def _descriptor(x: Tensor, block: list[int]) -> Any:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    # The stride of a dimension of one is never used, and need not be one that a descriptor takes.
    strides = [s if n > 1 else x.shape[3] for n, s in zip(x.shape, x.stride(), strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], block, layout)
