"""Attention on random numbers: no worse than twice plain PyTorch in the same type, and the same on every run.

FlashAttention's criterion: with the truth in float64 and plain PyTorch computed in the tensors' own type, our largest
error may be twice PyTorch's, plus twice what adding and subtracting 0.3 loses in that type. The factor stays 2.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from efftrain_kernels.evidence.attention_peers import Peer, ours
from efftrain_kernels.evidence.bench_attention import truth
from efftrain_kernels.evidence.cases import Case, Inputs, inputs

FACTOR = 2.0
NAMES = ("out", "dq", "dk", "dv", "dsinks")
LENGTHS = ((1, 1), (3, 3), (64, 1), (113, 203), (108, 256), (239, 1), (799, 3), (1023, 1024), (1024, 1023))
HEAD_DIMS = (32, 64, 80, 96, 128, 256)


@dataclass(frozen=True, slots=True)
class Finding:
    """The error of one tensor beside what is allowed: largest absolute differences to float64."""

    case: str
    tensor: str
    ours: float
    plain: float
    allowed: float

    @property
    def right(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.ours <= self.allowed


def compare(case: Case, device: torch.device, peer: Peer | None = None) -> list[Finding]:
    """Output and gradients of one case, ours against plain PyTorch and float64."""
    given = inputs(case, device)
    ready = (peer or ours("triton"))(case, given)
    out = ready.forward()
    found = [ready.canonical(x) for x in (out.detach(), *torch.autograd.grad(out, ready.leaves, ready.grad))]
    true, near = truth(case, given), plain(case, given)
    named = zip(NAMES, found, true, near, strict=False)
    return [_finding(case.name, name, x, y, z, _noise(case, given)) for name, x, y, z in named]


def plain(case: Case, given: Inputs) -> list[Tensor]:
    """Output and gradients by matrix products and a softmax in the tensors' own type; sinks in float32 as they are."""
    leaves = [x.detach().requires_grad_() for x in (given.q, given.k, given.v, given.sinks) if x is not None]
    q, k, v, *sinks = leaves
    if given.offsets is None:
        out = _plain(case, q, k, v, sinks)
    else:
        pieces = [x.split(case.packed) for x in (q, k, v)]
        parts = [[x.transpose(0, 1)[None] for x in piece] for piece in zip(*pieces, strict=True)]
        out = torch.cat([_plain(case, qs, ks, vs, sinks)[0].transpose(0, 1) for qs, ks, vs in parts])
    return [out.detach(), *torch.autograd.grad(out, leaves, given.grad)]


def cases(dtype: torch.dtype, *, small: bool = False) -> Iterator[Case]:
    """Every feature alone at an odd length, every head width, and every pair of lengths.

    Args:
        dtype: of q, k and v.
        small: a few tokens and a few cases, for an interpreter.
    """
    base = Case("", 1, 2, 1, 40, 32, dtype=dtype) if small else Case("", 2, 4, 2, 500, 64, dtype=dtype)
    yield replace(base, name="causal")
    yield replace(base, name="full", causal=False)
    yield replace(base, name="window", causal=False, window=(30, 7))
    yield replace(base, name="soft cap", softcap=5.0)
    yield replace(base, name="sinks", sinks=True)
    packed = (19, 0, 13, 7) if small else (333, 1, 0, 130, 64)
    yield replace(base, name="packed", batch=1, packed=packed, length=sum(packed))
    yield replace(base, name="all at once", window=(25, None), softcap=20.0, sinks=True)
    for head_dim in HEAD_DIMS[3:4] if small else HEAD_DIMS:
        yield replace(base, name=f"D{head_dim}", head_dim=head_dim)
    for length, kv_length in LENGTHS[:3:2] if small else LENGTHS:
        yield replace(base, name=f"{length} on {kv_length}", batch=1, length=length, kv_length=kv_length)


def attention_repeats(case: Case, device: torch.device, repeats: int) -> int:
    """How many of `repeats` runs of forward and backward differ from the first in any bit."""
    given = inputs(case, device)
    ready = ours("triton")(case, given)

    def results() -> list[Tensor]:
        out = ready.forward()
        return [out.detach(), *torch.autograd.grad(out, ready.leaves, ready.grad)]

    first = results()
    return sum(not _same(first, results()) for _ in range(repeats))


def adamw_repeats(device: torch.device, repeats: int, *, numel: int) -> int:
    """How many of `repeats` trainings of three steps differ from the first in any bit of the parameters."""
    first = _trained(device, numel)
    return sum(not _same(first, _trained(device, numel)) for _ in range(repeats))


def _trained(device: torch.device, numel: int) -> list[Tensor]:
    from efftrain_kernels import AdamW

    generator = torch.Generator(device).manual_seed(0)
    shapes = ((numel,), (numel // 3 + 1,), (5,))
    params = [nn.Parameter(torch.randn(n, generator=generator, device=device).bfloat16()) for n in shapes]
    optimizer = AdamW(params, max_grad_norm=1.0, state_dtype="int8", stochastic_rounding=True, backend="triton")
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, device=device).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _finding(case: str, name: str, found: Tensor, true: Tensor, near: Tensor, noise: float) -> Finding:
    typed = true.to(found.dtype)
    plain_error, lost = _largest(near.double() - true), _largest(((typed + 0.3) - 0.3).double() - typed.double())
    allowed = FACTOR * plain_error + 2 * lost
    if _largest(true) < noise:
        allowed += noise
    return Finding(case, name, _largest(found.double() - true), plain_error, allowed)


def _noise(case: Case, given: Inputs) -> float:
    """What float32 rounding of dO·V leaves of a gradient that is 0, as where there is one key: times a query or key."""
    largest = math.prod(map(_largest, (given.grad, given.v))) * max(_largest(given.q), _largest(given.k))
    return torch.finfo(torch.float32).eps * math.sqrt(case.head_dim) * largest


def _largest(x: Tensor) -> float:
    return float(x.abs().nan_to_num(nan=math.inf).max()) if x.numel() else 0.0


def _plain(case: Case, q: Tensor, k: Tensor, v: Tensor, sinks: list[Tensor]) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    hidden = _hidden(case, q.shape[2], k.shape[2], q.device)
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks:
        column = sinks[0].to(q.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        blind = hidden.all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    return weights @ v


def _hidden(case: Case, len_q: int, len_k: int, device: torch.device) -> Tensor:
    left, right = case.band
    offset = torch.arange(len_k, device=device) - torch.arange(len_q, device=device)[:, None] - (len_k - len_q)
    hidden = torch.zeros_like(offset, dtype=torch.bool)
    if left is not None:
        hidden |= offset < -left
    if right is not None:
        hidden |= offset > right
    return hidden
