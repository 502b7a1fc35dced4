"""From lists of tensors to launches: the tables of addresses that the kernels of AdamW read, and who keeps them.

A table is built on the host and uploaded when an address has changed, which in steady training is never: PyTorch's
allocator gives gradients the same memory every step. Two caches hold what is on the device, one for addresses and one
for chunk lists, which depend on the lengths alone. Tables that a CUDA graph was captured with are kept for good, and
those built for it serve it alone: they are filled when it is replayed.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from efftrain_kernels._optimizer import layout
from efftrain_kernels._optimizer.reference import Lists

_LISTS = {
    "params": layout.PARAM, "grads": layout.GRAD, "exp_avgs": layout.EXP_AVG, "exp_avg_sqs": layout.EXP_AVG_SQ,
    "max_exp_avg_sqs": layout.MAX_EXP_AVG_SQ, "masters": layout.MASTER, "exp_avg_scales": layout.EXP_AVG_SCALE,
    "exp_avg_sq_scales": layout.EXP_AVG_SQ_SCALE, "max_exp_avg_sq_scales": layout.MAX_EXP_AVG_SQ_SCALE,
    "steps": layout.STEP,
}  # fmt: skip
_WIDE = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters")  # accessed 16 bytes at a time
_MOMENTS: dict[torch.dtype, layout.Moments] = {torch.bfloat16: "bfloat16", torch.int8: "int8"}
_UNPREPARED = "a CUDA graph captured a step of AdamW before any like it was taken; take a few on a side stream first"
_SPARES = 16  # pinned buffers of one size that wait for a capture


@dataclass(slots=True)
class _Kept:
    """What stays on the device: the latest `capacity` bytes of what eager steps use, and all that captured ones do."""

    capacity: int
    latest: OrderedDict[tuple[Any, ...], Any] = field(default_factory=OrderedDict)
    captured: list[Any] = field(default_factory=list)
    held: int = 0  # bytes of the latest

    def get(self, key: tuple[Any, ...], device: torch.device, build: Callable[[], Any]) -> Any:
        found = self.latest.get(key)
        if capturing(device):
            self.captured.append(build() if found is None else found)
            return self.captured[-1]
        if found is None:
            found = self.latest[key] = build()
            self.held += found.nbytes
        self.latest.move_to_end(key)
        while self.held > self.capacity and len(self.latest) > 1:
            self.held -= self.latest.popitem(last=False)[1].nbytes
        return found


@dataclass(frozen=True, slots=True)
class _Table:
    addresses: Tensor  # int64 [rows, COLUMNS]
    coefficients: Tensor  # float32 [rows, COEFFICIENTS]
    aligned: tuple[bool, ...]  # of each tensor
    host: Tensor  # where the addresses were uploaded from; a captured upload reads it again

    @property
    def nbytes(self) -> int:
        return self.addresses.nbytes + self.coefficients.nbytes


_tables = _Kept(capacity=64 << 20)  # 24 KiB for up to 128 tensors
_chunks = _Kept(capacity=256 << 20)  # 8 bytes for 2048 elements
_spares: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)


def step(
    lists: Lists,
    settings: Tensor,
    norm: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    stochastic_rounding: bool,
) -> None:
    """Launch the kernels for one form; arguments as of `_optimizer.reference.step`, settings on the tensors' device."""
    from efftrain_kernels._kernels import adamw

    device = lists.params[0].device
    lengths = [p.numel() for p in lists.params]
    with _current(device):
        table = _table(lists, lengths)
        scalars = [_scalar(x, device) for x in (norm, grad_scale, found_inf)]
        adamw.coefficients_launch(table.addresses, settings, table.coefficients, *scalars).run()
        for aligned in (True, False):
            chunks = _chunk_list(lengths, table.aligned, aligned, layout.BLOCK, device)
            form = _form(lists, stochastic_rounding, aligned)
            adamw.update_launch(form, table.addresses, chunks, table.coefficients).run()


def norm(grads: Sequence[Tensor]) -> Tensor:
    """The joint L2 norm of gradients of one type on one device: float32 [1], the same bits every time."""
    with _current(grads[0].device):
        return _norm(grads, grads[0].device)


def capturing(device: torch.device) -> bool:
    """Whether work for `device` goes into a CUDA graph just now."""
    if device.type != "cuda":
        return False
    with _current(device):
        return torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError where a CUDA graph would do again at each replay what is to be done once."""
    if capturing(device):
        raise RuntimeError(_UNPREPARED)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device the one that triton launches on, and whose stream is asked about."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _norm(grads: Sequence[Tensor], device: torch.device) -> Tensor:
    from efftrain_kernels._kernels import adamw

    lengths = [grad.numel() for grad in grads]
    lists = Lists([], grads, *[[] for _ in range(11)])
    table = _table(lists, lengths)
    chunk_lists = {
        aligned: _chunk_list(lengths, table.aligned, aligned, layout.BLOCK * layout.NORM_BLOCKS, device)
        for aligned in (True, False)
    }
    partials = torch.empty(sum(len(chunks) for chunks in chunk_lists.values()), device=device)
    start = 0
    for aligned, chunks in chunk_lists.items():
        part = partials[start : start + len(chunks)]
        adamw.norm_launch(grads[0].dtype, aligned, table.addresses, chunks, part).run()
        start += len(chunks)
    total = torch.empty(1, device=device)
    adamw.total_launch(partials, total).run()
    return total


def _form(lists: Lists, stochastic_rounding: bool, aligned: bool) -> layout.Form:
    param = lists.params[0].dtype
    moments = _MOMENTS.get(lists.exp_avgs[0].dtype, "float32")
    master: layout.Master = "none"
    if lists.masters:
        master = "float32" if lists.masters[0].dtype == torch.float32 else "split16"
    rounds = stochastic_rounding and param == torch.bfloat16 and master == "none"
    return layout.Form(param, lists.grads[0].dtype, moments, master, rounds, bool(lists.max_exp_avg_sqs), aligned)


def _table(lists: Lists, lengths: list[int]) -> _Table:
    device = lists.grads[0].device
    tensors = [getattr(lists, name) for name in _LISTS]
    addresses = [[x.data_ptr() for x in xs] for xs in tensors]
    key = (device, tuple(map(len, tensors)), *chain(*addresses), *lengths, *lists.rows, *lists.keys, *lists.offsets)
    return _tables.get(key, device, lambda: _build(lists, addresses, lengths, device))


def _build(lists: Lists, addresses: list[list[int]], lengths: list[int], device: torch.device) -> _Table:
    count = len(lengths)
    host = _host_buffer((-(-count // layout.ROWS) * layout.ROWS, layout.COLUMNS), device)
    columns = dict(zip(_LISTS.values(), addresses, strict=True))
    columns |= {
        layout.NUMEL: lengths, layout.KEY: list(lists.keys), layout.OFFSET: list(lists.offsets),
        layout.SETTINGS: list(lists.rows),
    }  # fmt: skip
    for column, values in columns.items():
        if values:
            host[:count, column] = torch.tensor(values, dtype=torch.int64)
    coefficients = torch.empty(len(host), layout.COEFFICIENTS, device=device)
    wide = [values for name, values in zip(_LISTS, addresses, strict=True) if name in _WIDE and values]
    aligned = tuple(length % 16 == 0 and not any(xs[i] % 16 for xs in wide) for i, length in enumerate(lengths))
    return _Table(host.to(device, non_blocking=True, copy=True), coefficients, aligned, host)


def _host_buffer(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Zeros that can be uploaded without waiting; during a capture, when none can be made, one made before."""
    if device.type != "cuda":
        return torch.zeros(shape, dtype=torch.int64)
    spares = _spares[shape]
    if capturing(device):
        if not spares:
            raise RuntimeError(_UNPREPARED)
        return spares.pop().zero_()
    if len(spares) < _SPARES:
        spares.append(torch.zeros(shape, dtype=torch.int64, pin_memory=True))
    return torch.zeros(shape, dtype=torch.int64, pin_memory=True)


def _chunk_list(lengths: list[int], aligned: tuple[bool, ...], wanted: bool, size: int, device: torch.device) -> Tensor:
    """Row and chunk of every program that serves the tensors whose alignment is `wanted`: int32 [chunks, 2]."""

    def build() -> Tensor:
        refuse_capture(device)
        rows = torch.tensor([i for i, a in enumerate(aligned) if a == wanted], dtype=torch.int64)
        counts = -(-torch.tensor(lengths, dtype=torch.int64)[rows] // size)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        chunks = torch.stack([rows.repeat_interleave(counts), torch.arange(len(first)) - first], 1).to(torch.int32)
        return (chunks.pin_memory() if device.type == "cuda" else chunks).to(device, non_blocking=True)

    return _chunks.get((device, wanted, size, aligned, *lengths), device, build)


def _scalar(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.detach().to(device, torch.float32)
