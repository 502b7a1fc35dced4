"""Which tensors go together: the parameters of a step in lists of one form, local shards for DTensors.

A list holds what one launch, or one sequence of list operations, can update: one device, one type of parameter and
of gradient, one format of state.
"""

from collections import defaultdict
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efftrain_kernels._optimizer import formats, layout
from efftrain_kernels._optimizer.checks import Options

_PLAIN = (Tensor, torch.nn.Parameter)
_WIDE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "remainder")
_SMALL = ("step", "exp_avg_scale", "exp_avg_sq_scale", "max_exp_avg_sq_scale")
_HAS_TRITON = find_spec("triton") is not None


class Member(NamedTuple):
    """One parameter of a step.

    Attributes:
        param: itself, or its local shard.
        grad: of the same shape; where kernels run, of the same strides and of a type that they read.
        state: as of `_optimizer.state`, local shards for DTensors.
        row: number of its group.
        number: its position among all parameters of the optimizer.
        offset: number of its first element in the whole parameter.
        mesh: mesh and placements of a DTensor, None for a plain tensor.
        amsgrad: of its group.
        kernels: whether kernels update it.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    row: int
    number: int
    offset: int
    mesh: tuple[Any, tuple[Any, ...]] | None
    amsgrad: bool
    kernels: bool


class Bucket(NamedTuple):
    """Parameters of one form.

    Attributes:
        kernels: whether kernels update them.
        tensors: lists in the order of the arguments of `efftrain::adamw_step`; those that the form lacks are empty.
        numbers: rows, positions and offsets.
    """

    kernels: bool
    tensors: tuple[list[Tensor], ...]
    numbers: tuple[list[int], list[int], list[int]]


def buckets(members: list[Member]) -> list[Bucket]:
    """The members by form, in order of first appearance."""
    found: defaultdict[tuple[Any, ...], list[Member]] = defaultdict(list)
    for member in members:
        param, state = member.param, member.state
        master = state.get("master", state.get("remainder"))
        form = (
            param.device, param.dtype, member.grad.dtype if member.kernels else None, state["exp_avg"].dtype,
            None if master is None else master.dtype, member.amsgrad, member.kernels,
        )  # fmt: skip
        found[form].append(member)
    return [_bucket(same) for same in found.values()]


def _bucket(members: list[Member]) -> Bucket:
    largest = ("max_exp_avg_sq",) if members[0].amsgrad else ()
    scales = ("exp_avg", "exp_avg_sq", *largest) if "exp_avg_scale" in members[0].state else ()

    def of(key: str, wanted: bool = True) -> list[Tensor]:
        return [member.state[key] for member in members] if wanted else []

    master = next((key for key in ("master", "remainder") if key in members[0].state), "")
    tensors = (
        [member.param for member in members], [member.grad for member in members], of("step"), of("exp_avg"),
        of("exp_avg_sq"), of("max_exp_avg_sq", bool(largest)), of(master, bool(master)),
        *(of(f"{key}_scale", key in scales) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    )  # fmt: skip
    numbers = ([m.row for m in members], [m.number for m in members], [m.offset for m in members])
    return Bucket(members[0].kernels, tensors, numbers)


def gradients(members: list[Member]) -> list[tuple[bool, Any, list[Tensor]]]:
    """The gradients by device, type and placement: whether kernels read them, mesh and placements, the tensors."""
    found: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for member in members:
        grad = member.grad
        found[member.kernels, member.mesh, grad.device, grad.dtype, member.param.dtype == torch.float64].append(grad)
    return [(key[0], key[1], grads) for key, grads in found.items()]


def uses_kernels(param: Tensor, options: Options) -> bool:
    """Whether kernels update the parameter: on CUDA, or where they are asked for; never float64 or with gaps."""
    if options.backend == "reference" or (options.backend == "auto" and not (param.is_cuda and _HAS_TRITON)):
        return False
    return param.dtype in layout.GRADIENTS and formats.is_dense(local(param))


def fits(param: Tensor, state: dict[str, Tensor]) -> bool:
    """Whether kernels can read the state as it is: beside the parameter, what has its elements in the same order."""
    shape, stride, device = param.shape, param.stride(), param.device
    wide = [state[key] for key in _WIDE if key in state]
    return all(x.device == device and x.stride() == stride and x.shape == shape for x in wide) and all(
        state[key].device == device for key in _SMALL if key in state
    )


def is_distributed(x: Tensor) -> bool:
    """Whether x is a DTensor, without importing what defines it."""
    return type(x) not in _PLAIN and hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """The local shard of a DTensor, a plain tensor itself."""
    return x.to_local() if is_distributed(x) else x  # pyright: ignore[reportAttributeAccessIssue]


def member(
    param: Tensor, grad: Tensor, state: dict[str, Tensor], row: int, number: int, amsgrad: bool, options: Options
) -> Member:
    """What a step needs of one parameter.

    Raises:
        ValueError: a gradient that is placed otherwise than its parameter.
    """
    kernels = uses_kernels(param, options)
    if not is_distributed(param) and not is_distributed(grad):
        return Member(param, _readable(param, grad) if kernels else grad, state, row, number, 0, None, amsgrad, kernels)
    where: Any = param
    if getattr(grad, "placements", None) != getattr(param, "placements", None):
        raise ValueError(
            f"a gradient of shape {list(grad.shape)} is placed {getattr(grad, 'placements', 'on one rank')}, its "
            f"parameter {getattr(param, 'placements', 'on one rank')}; redistribute the gradient first"
        )
    mesh, placements = where.device_mesh, tuple(where.placements)
    shard, piece = local(param), local(grad)
    states = {name: local(value) for name, value in state.items()}
    piece = _readable(shard, piece) if kernels else piece
    return Member(shard, piece, states, row, number, _offset(where), (mesh, placements), amsgrad, kernels)


def _readable(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient in the parameter's strides and in a type that kernels read; itself as a rule."""
    dtype = grad.dtype if grad.dtype in layout.GRADIENTS[param.dtype] else torch.float32
    if grad.dtype == dtype and grad.stride() == param.stride():
        return grad
    return torch.empty_like(param, dtype=dtype).copy_(grad)


def _offset(param: Any) -> int:
    """Number of a shard's first element where one mesh dimension cuts the rows; 0, and so local, otherwise."""
    from torch.distributed.tensor import Replicate, Shard

    cuts = [i for i, placement in enumerate(param.placements) if not isinstance(placement, Replicate)]
    if len(cuts) != 1 or param.placements[cuts[0]] != Shard(0):
        return 0
    rows = param.shape[0]
    per_rank = -(-rows // param.device_mesh.size(cuts[0]))
    return min(per_rank * param.device_mesh.get_local_rank(cuts[0]), rows) * (param.numel() // max(rows, 1))
