"""Which calls the kernels take whose warps have different work, and their launches.

Tiles are copied by the engine for tensors (TMA), whose descriptors ask for addresses and strides in units of 16 bytes.
"""

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from efftrain_kernels._kernels.configs import Config, Kernel
from efftrain_kernels._kernels.launch import Launch

if TYPE_CHECKING:
    from efftrain_kernels._kernels.attention import Call

HEAD_DIMS = (64, 128)
_UNIT = 16  # bytes
_GROUP_ROWS = 64
# By groups of warps: those, and the loading warp's own group, have 65,536 registers between them.
_REGISTERS = {2: 168, 3: 128}
# What a group keeps 64 rows of, what comes through the ring, and what stands beside that as flat float32.
_KEPT: dict[Kernel, tuple[str, ...]] = {
    "forward": ("q", "out"), "keys": ("k", "v", "dk", "dv"), "queries": ("q", "grad", "dq"),
}  # fmt: skip
_STREAMED: dict[Kernel, tuple[str, ...]] = {"forward": ("k", "v"), "keys": ("q", "grad"), "queries": ("k", "v")}
_FLAT: dict[Kernel, tuple[str, ...]] = {"forward": (), "keys": ("lse", "delta"), "queries": ()}


def takes(call: "Call", q: Tensor, k: Tensor, *others: Tensor, flat: tuple[Tensor, ...] = ()) -> bool:
    """Whether the kernels can do a call: full or causal, with nothing else asked for.

    Args:
        call: what is asked for.
        q: [B, Hq, Sq, D]; packed tensors are not taken.
        k: [B, Hkv, Sk, D].
        others: what else has one of these shapes.
        flat: log-sum-exp and delta, where they are read.
    """
    plain = not call.packed and call.sinks is None and call.softcap == 0 and call.scale > 0
    if not plain or not _gluon() or q.element_size() != 2 or q.shape[-1] not in HEAD_DIMS:
        return False
    left, right = call.band()
    band = left is None and right in {None, 0} and (right is None or k.shape[2] >= q.shape[2])
    one_piece = all(x.is_contiguous() and x.data_ptr() % _UNIT == 0 and x.numel() < 2**31 for x in flat)
    return band and one_piece and all(_aligned(x) for x in (q, k, *others))


def launch(kernel: Kernel, arguments: dict[str, Any], config: Config) -> Launch:
    """The launch of a call that `takes` allows.

    Args:
        kernel: which.
        arguments: by name, tensors as `q_ptr` and so on, among them all that the kernel takes besides descriptors and
            the sizes of tiles.
        config: a specialised one.
    """
    from efftrain_kernels._kernels import attention_backward_specialised, attention_specialised

    function = {
        "forward": attention_specialised.forward, "keys": attention_backward_specialised.keys_and_values,
        "queries": attention_backward_specialised.queries,
    }[kernel]  # fmt: skip
    own, streamed = (config.block_n, config.block_m) if kernel == "keys" else (config.block_m, config.block_n)
    rows = dict.fromkeys(_KEPT[kernel], _GROUP_ROWS) | dict.fromkeys(_STREAMED[kernel], streamed)
    known = {
        **arguments,
        **{f"{name}_desc": _descriptor(arguments[f"{name}_ptr"], n) for name, n in rows.items()},
        **{f"{name}_desc": _flat_descriptor(arguments[f"{name}_ptr"], streamed) for name in _FLAT[kernel]},
        "CAUSAL": arguments["HAS_RIGHT"], "STAGES": config.num_stages,
    }  # fmt: skip
    return Launch(
        function, {name: known[name] for name in function.arg_names}, (arguments["blocks"] * arguments["lanes"],),
        num_warps=config.num_warps, num_stages=1, max_registers=_REGISTERS[own // _GROUP_ROWS],
    )  # fmt: skip


@functools.cache
def _gluon() -> bool:
    """Whether this triton's Gluon, which is experimental, has what the kernels are written in."""
    try:
        from efftrain_kernels._kernels import attention_backward_specialised, attention_specialised  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


def _aligned(x: Tensor) -> bool:
    sizes, strides = x.shape[:3], x.stride()[:3]
    rows = all(n == 1 or (s > 0 and s * x.element_size() % _UNIT == 0) for n, s in zip(sizes, strides, strict=True))
    return rows and x.stride(3) == 1 and x.data_ptr() % _UNIT == 0 and x.numel() > 0


def _descriptor(x: Tensor, rows: int) -> Any:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    # The stride of a dimension of one is never used, and need not be one that a descriptor takes.
    strides = [s if n > 1 else x.shape[3] for n, s in zip(x.shape, x.stride(), strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], [1, 1, rows, x.shape[3]], layout)


def _flat_descriptor(x: Tensor, length: int) -> Any:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    return TensorDescriptor(x.view(-1), [x.numel()], [1], [length], layout)
