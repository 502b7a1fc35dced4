"""The joint norm of a step's gradients, over ranks where they are sharded."""

from typing import Any

from torch import Tensor

from efftrain_kernels._optimizer.ops import adamw_norm
from efftrain_kernels._optimizer.plan import Member, gradients
from efftrain_kernels._optimizer.reference import total_norm


def grad_norm(members: list[Member]) -> Tensor:
    """The L2 norm of all gradients as one vector: [], on the device of the first.

    A gradient that is replicated over a dimension of a mesh is counted once, the shards of one are added up. For
    float32 gradients on one rank it is that of `clip_grad_norm_`, bit for bit, unless kernels run.
    """
    parts = [_over_ranks(adamw_norm(grads, kernels), mesh) for kernels, mesh, grads in gradients(members)]
    if len(parts) == 1 and members[0].kernels:
        return parts[0][0]
    return total_norm(parts)


def _over_ranks(norms: Tensor, mesh: tuple[Any, tuple[Any, ...]] | None) -> Tensor:
    if mesh is None:
        return norms
    from torch.distributed.tensor import DTensor, Partial, Replicate

    # A placement that sums what the ranks hold does the reduction, one mesh dimension after another.
    placements = [Replicate() if isinstance(placement, Replicate) else Partial() for placement in mesh[1]]
    squares = DTensor.from_local(norms.double().square().sum(), mesh[0], placements, run_check=False)
    return squares.full_tensor().sqrt().to(norms.dtype)[None]
