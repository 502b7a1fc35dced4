"""AdamW's benchmark: one step over the parameters of a model of a billion, by everybody who offers one.

The rate is the least that an implementation's own formats have to move, over the time it took: what it moves twice is
its own loss. Formats differ between implementations, so bytes a parameter stand among the settings, and seconds are
what compares. The error is that of the parameters after ten steps on a small model, against AdamW in float64.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from efftrain_kernels.evidence.bench import Entry, Work

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
STEPS = 10
MAX_NORM = 1.0
SMALL_MODEL = [(64, 48), (48,), (130, 7)]


@dataclass(frozen=True, slots=True)
class Case:
    """One set of parameters.

    Attributes:
        name: for tables.
        dtype: of parameters and gradients.
        shapes: of the parameters.
        clipped: gradients are clipped by their global norm as well.
        joules: measure energy too.
    """

    name: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    clipped: bool = False
    joules: bool = False

    @property
    def numel(self) -> int:
        """Parameters in all."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class Peer:
    """An optimizer.

    Attributes:
        make: from parameters and the norm to clip at, or None.
        state_bytes: bytes of state for one parameter, by the type of the parameter.
        clips: clips by itself; else `clip_grad_norm_` is called before each step, and is part of it.
    """

    make: Callable[[list[nn.Parameter], float | None], Optimizer]
    state_bytes: Callable[[torch.dtype], float]
    clips: bool = False


def model_shapes(width: int, inner: int, layers: int, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Parameters of a decoder as Llama has it: attention, gated feed-forward, two norms a layer, tied embedding."""
    layer = ((width, width),) * 4 + ((inner, width),) * 2 + ((width, inner),) + ((width,),) * 2
    return ((vocabulary, width), *layer * layers, (width,))


def gpu_cases() -> list[Case]:
    """A billion parameters in both types, clipped too, and a thousand small tensors, where launching is what costs."""
    large = model_shapes(2048, 5632, 18, 32000)
    return [
        Case("1b fp32", torch.float32, large, joules=True),
        Case("1b bf16", torch.bfloat16, large, joules=True),
        Case("1b bf16 clipped", torch.bfloat16, large, clipped=True),
        Case("1000 small fp32", torch.float32, ((4096,), (33,)) * 500),
    ]


def cpu_cases() -> list[Case]:
    """Small ones."""
    small = model_shapes(64, 176, 2, 512)
    return [Case("small fp32", torch.float32, small), Case("small bf16 clipped", torch.bfloat16, small, clipped=True)]


def tiny_cases() -> list[Case]:
    """One for an interpreter."""
    return [Case("tiny bf16 clipped", torch.bfloat16, tuple(SMALL_MODEL), clipped=True)]


def entries(device: torch.device, cases: Sequence[Case] | None = None) -> list[Entry]:
    """Every optimizer on every case, case by case."""
    chosen = cases or (gpu_cases() if device.type == "cuda" else cpu_cases())
    return [
        _entry(case, name, peer, device)
        for case in chosen
        for name, peer in _peers(case.dtype, device, clipped=case.clipped)
    ]


def _peers(dtype: torch.dtype, device: torch.device, *, clipped: bool) -> Iterator[tuple[str, Peer]]:
    """Who runs on a device with parameters of a type, ours first."""
    from efftrain_kernels._kernels.launch import interpreting

    yield "efftrain", Peer(_ours(), lambda _: 8, clips=True)
    if dtype == torch.bfloat16:
        yield "efftrain bf16 moments", Peer(_ours(state_dtype="bfloat16", stochastic_rounding=True), lambda _: 4, True)
        yield (
            "efftrain int8 moments",
            Peer(_ours(state_dtype="int8", stochastic_rounding=True), lambda _: 2 + 8 / 256, True),
        )
        yield "efftrain split16", Peer(_ours(master_weights="split16"), lambda _: 10, clips=True)
        yield "efftrain float32 master", Peer(_ours(master_weights="float32"), lambda _: 12, clips=True)
    if device.type == "cpu" and interpreting():
        yield "efftrain triton, interpreted", Peer(_ours(backend="triton"), lambda _: 8, clips=True)
    yield "torch foreach", Peer(_torch(foreach=True), lambda kind: 2 * kind.itemsize)
    yield "torch fused", Peer(_torch(fused=True), lambda kind: 2 * kind.itemsize)
    if device.type == "cuda" and not clipped:
        yield "apex", Peer(_apex, lambda _: 8)
        yield "bitsandbytes 8-bit", Peer(_bitsandbytes, lambda _: 2 + 8 / 256)


def _entry(case: Case, name: str, peer: Peer, device: torch.device) -> Entry:
    traffic = bytes_moved(case, peer)
    settings = {
        "dtype": str(case.dtype).removeprefix("torch."), "numel": case.numel, "tensors": len(case.shapes),
        "clipped": case.clipped, "bytes_per_parameter": traffic / case.numel, "error_of": "a small model, 10 steps",
    }  # fmt: skip

    def prepare() -> tuple[dict[str, Work], dict[str, float]]:
        error = max_error(case.dtype, peer, device)
        step = _step(peer, _parameters(case.shapes, case.dtype, device), clipped=case.clipped)
        return {"step": Work(step, traffic, "B/s", joules=case.joules)}, {"parameters": error}

    return Entry(case.name, name, settings, prepare)


def bytes_moved(case: Case, peer: Peer) -> int:
    """Least bytes of a step: parameters and state read and written, gradients read, once more to clip them."""
    size = case.dtype.itemsize
    gradient = 2 * size if case.clipped else size
    return round(case.numel * (2 * size + gradient + 2 * peer.state_bytes(case.dtype)))


def max_error(dtype: torch.dtype, peer: Peer, device: torch.device) -> float:
    """Largest absolute difference of the parameters after ten steps to AdamW in float64, unclipped."""
    params = _parameters(SMALL_MODEL, dtype, device)
    true = [nn.Parameter(p.detach().double()) for p in params]
    ours = peer.make(params, None)
    theirs = torch.optim.AdamW(true, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        _set_gradients(params, step)
        for p, q in zip(params, true, strict=True):
            q.grad = None if p.grad is None else p.grad.double()
        ours.step()
        theirs.step()
    return max(float((p.detach().double() - q.detach()).abs().max()) for p, q in zip(params, true, strict=True))


def _step(peer: Peer, params: list[nn.Parameter], *, clipped: bool) -> Callable[[], object]:
    _set_gradients(params, 0)
    optimizer = peer.make(params, MAX_NORM if clipped and peer.clips else None)
    if not clipped or peer.clips:
        return optimizer.step

    def step() -> None:
        nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def _parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[nn.Parameter]:
    generator = torch.Generator(device).manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, device=device).to(dtype)) for shape in shapes]


def _set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator(params[0].device).manual_seed(1 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device=p.device).to(p.dtype)


def _ours(**options: Any) -> Callable[[list[nn.Parameter], float | None], Optimizer]:
    def make(params: list[nn.Parameter], max_norm: float | None) -> Optimizer:
        from efftrain_kernels import AdamW

        return AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, max_grad_norm=max_norm, **options)

    return make


def _torch(**options: bool) -> Callable[[list[nn.Parameter], float | None], Optimizer]:
    def make(params: list[nn.Parameter], _: float | None) -> Optimizer:
        return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, **options)

    return make


def _apex(params: list[nn.Parameter], _: float | None) -> Optimizer:
    adam: Any = importlib.import_module("apex.optimizers").FusedAdam
    return adam(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, adam_w_mode=True)


def _bitsandbytes(params: list[nn.Parameter], _: float | None) -> Optimizer:
    adam: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit
    return adam(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
