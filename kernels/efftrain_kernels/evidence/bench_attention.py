"""Attention's benchmark: every implementation on every case, forward, backward and both, and its error.

The error is the largest absolute difference of output and gradients to the reference in float64 on the same inputs,
at no more tokens than a float64 score matrix has room for.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from efftrain_kernels import reference
from efftrain_kernels.evidence import attention_peers as peers
from efftrain_kernels.evidence.bench import Entry, Work
from efftrain_kernels.evidence.cases import BACKWARD_FACTOR, Case, Inputs, cpu_cases, feature_cases, gpu_cases, inputs

ERROR_TOKENS = {"cuda": 4096, "cpu": 96}
_NAMES = ("out", "dq", "dk", "dv", "dsinks")

GPU_PEERS: dict[str, peers.Peer] = {
    "efftrain triton": peers.ours("triton"),
    "efftrain auto": peers.ours("auto"),
    "sdpa flash": peers.sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": peers.sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": peers.sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "torch varlen": peers.varlen,
    "flex compiled": peers.flex,
    "flash-attn": peers.flash_attn,
}
CPU_PEERS: dict[str, peers.Peer] = {
    "efftrain reference": peers.ours("reference"),
    "efftrain auto": peers.ours("auto"),
    "sdpa math": peers.sdpa(SDPBackend.MATH),
    "sdpa flash": peers.sdpa(SDPBackend.FLASH_ATTENTION),
}


def entries(device: torch.device, cases: Sequence[Case] | None = None) -> list[Entry]:
    """Every implementation on every case, case by case; on a CPU small ones, with interpreted kernels."""
    from efftrain_kernels._kernels.launch import interpreting

    cuda = device.type == "cuda"
    who = GPU_PEERS if cuda else CPU_PEERS
    if not cuda and interpreting():
        who = {"efftrain triton, interpreted": peers.ours("triton"), **who}
    chosen = cases or ([*gpu_cases(64), *gpu_cases(128), *feature_cases()] if cuda else cpu_cases())
    return [_entry(case, name, peer, device) for case in chosen for name, peer in who.items()]


def _entry(case: Case, name: str, peer: peers.Peer, device: torch.device) -> Entry:
    tokens = min(ERROR_TOKENS[device.type], case.length)
    settings = {**case.settings(), "error_tokens": tokens}

    def prepare() -> tuple[dict[str, Work], dict[str, float]]:
        errors = max_errors(case.shortened(tokens), peer, device)
        return _works(case, peer(case, inputs(case, device))), errors

    return Entry(case.name, name, settings, prepare)


def _works(case: Case, ready: peers.Ready) -> dict[str, Work]:
    out = ready.forward()
    forward, backward = case.flops(), int(BACKWARD_FACTOR * case.flops())

    def gradients(of: Tensor, *, keep: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(of, ready.leaves, ready.grad, retain_graph=keep)

    return {
        "forward": Work(ready.forward, forward, "FLOP/s"),
        "backward": Work(lambda: gradients(out, keep=True), backward, "FLOP/s"),
        "forward+backward": Work(
            lambda: gradients(ready.forward(), keep=False), forward + backward, "FLOP/s", joules=case.joules
        ),
    }


def max_errors(case: Case, peer: peers.Peer, device: torch.device) -> dict[str, float]:
    """Largest absolute differences to the reference in float64: of the output and of each gradient."""
    given = inputs(case, device)
    ready = peer(case, given)
    out = ready.forward()
    found = [out, *torch.autograd.grad(out, ready.leaves, ready.grad)]
    true = _truth(case, device)
    return {
        name: float((ready.canonical(ours).detach().double() - theirs).abs().max())
        for name, ours, theirs in zip(_NAMES, found, true, strict=False)
    }


@lru_cache(maxsize=1)
def _truth(case: Case, device: torch.device) -> list[Tensor]:
    """Output and gradients in float64, of the inputs as they are in the case's type."""
    return truth(case, inputs(case, device))


def truth(case: Case, given: Inputs, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Output and gradients of q, k, v and sinks by the plain reference, computed in `dtype`."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (given.q, given.k, given.v, given.sinks) if x is not None]
    q, k, v, *rest = leaves
    out, _ = reference.attention(
        q, k, v, causal=case.causal, window=case.window, softcap=case.softcap, sinks=rest[0] if rest else None,
        cu_seqlens_q=given.offsets, cu_seqlens_k=given.offsets,
    )  # fmt: skip
    return [out.detach(), *torch.autograd.grad(out, leaves, given.grad.to(dtype))]
