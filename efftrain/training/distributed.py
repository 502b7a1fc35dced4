"""One training on several processes: what they say to each other, and how they share the model.

With `ddp` every rank holds the whole model and gradients are averaged; with `fsdp` each holds a shard of every layer's
weights, gradients and moments (FSDP2), and gathers a layer when it is used. Both average gradients over ranks, so each
rank divides its loss by its own predictions. Ranks begin with the same weights because each builds them from the seed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from efftrain.training.optimizer import build_optimizer
from efftrain.training.ranks import Ranks
from efftrain.training.session import Session
from efftrain.workload.models.build import blocks

_NAMES = signature(DistributedDataParallel).parameters.keys() & {"forward_sync_buffers", "broadcast_buffers"}
_BUFFERS_STAY: dict[str, Any] = {max(_NAMES): False}
"""Buffers hold tables that are alike on all ranks; torch 2.13 has a new name for leaving them alone."""


class Group:
    """The ranks of a process group; see `efftrain.training.ranks.Ranks`.

    Args:
        control: the group over which the host agrees, without waiting for a device.
        checkpoints: another one, for threads.
    """

    def __init__(self, control: dist.ProcessGroup, checkpoints: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._control, self.checkpoints = control, checkpoints

    def any(self, asked: bool) -> bool:
        """See `Ranks.any`."""
        flag = torch.tensor(int(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._control)
        return bool(flag)

    def total(self, values: Tensor) -> Tensor:
        """See `Ranks.total`."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def whole(self, value: Tensor) -> Tensor:
        """See `Ranks.whole`."""
        return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def joined(store: Store, *, rank: int, size: int, device: torch.device, timeout_s: float) -> Iterator[Group]:
    """Be one of the ranks of a training.

    Args:
        store: common to all of them, and used for nothing else.
        rank: number of this process.
        size: how many there are.
        device: of this rank; NCCL where it is a GPU, gloo on the host.
        timeout_s: the longest that a rank may keep the others waiting, in s.
    """
    on_gpu, timeout = device.type == "cuda", timedelta(seconds=timeout_s)
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=timeout,
        device_id=device if on_gpu else None,
    )  # fmt: skip
    control, checkpoints = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    assert isinstance(control, dist.ProcessGroup), "every rank is in every group"
    assert isinstance(checkpoints, dist.ProcessGroup), "every rank is in every group"
    yield Group(control, checkpoints)
    dist.destroy_process_group()  # not after an exception: it would wait for ranks that are gone


def share(session: Session, ranks: Ranks) -> None:
    """Let `session`, which has not trained yet, train together with those of the other ranks.

    `session.model` stays what it was, whole or with its weights in shards; its optimizer is a new one for shards.
    """
    session.ranks = ranks
    match session.config.parallel:
        case "ddp":
            _replicate(session)
        case "fsdp":
            _shard(session)
        case None:
            pass


def whole_state(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """A model's state with its shards put together; every rank calls it at the same time."""
    return {name: ranks.whole(value) for name, value in model.state_dict().items()}


def _replicate(session: Session) -> None:
    forward, device = session.forward, session.device
    assert isinstance(forward, nn.Module), "a session calls its model, compiled or not"
    replica = DistributedDataParallel(
        forward, device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # else each gradient is in memory twice
        **_BUFFERS_STAY,
    )  # fmt: skip
    session.forward, session.synchronise = replica, partial(setattr, replica, "require_backward_grad_sync")


def _shard(session: Session) -> None:
    """Gradients are reduced after each micro-batch, so that no rank ever holds those of the whole model."""
    model = session.model
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    for block in blocks(model):
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    session.optimizer = build_optimizer(model, session.config.optimizer, session.config.precision)
