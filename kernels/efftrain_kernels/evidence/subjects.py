"""Which kernels are shipped: every configuration of the tables, as launches over tensors that hold no data.

The table's configuration of attention is compiled plainly, with everything that a call of its kind may ask for at once
(window, sinks, packed sequences, shared heads, a padded head dimension, lengths that divide by nothing), and with the
narrower heads that use it too; what tuning may choose besides is compiled plainly. The plain call is in bfloat16, the
other in float16, which compile to the same registers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from efftrain_kernels._kernels import configs
from efftrain_kernels._kernels.attention import Call, Precision, Target, backward_launches, forward_launches
from efftrain_kernels._kernels.configs import Config, Key, Kind
from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels.evidence.limits import HOPPER, Limits

BATCH, HEADS, KV_HEADS, LENGTH, WINDOW, SOFTCAP = 2, 8, 2, 1024, 256, 30.0
QUICK_OPTIMIZER = {
    "adamw coefficients", "adamw norm total", "adamw norm fp32", "adamw norm bf16", "adamw fp32/fp32 float32",
    "adamw bf16/bf16 float32", "adamw bf16/bf16 float32 split16", "adamw bf16/bf16 bfloat16 stochastic",
    "adamw bf16/bf16 int8 stochastic",
}  # fmt: skip
# What may be spilled, in bytes a thread, and why; everything else that is shipped spills nothing.
WIDE_HEADS = Limits(
    320, reason="the accumulators of 256 columns leave too few registers, and a smaller tile reads more"
)
ALL_AT_ONCE = Limits(128, reason="every feature at once and padded columns; no tile is shipped for each combination")
FULL_PRECISION = Limits(64, reason="float32 products take their operands from registers")
ONE_REGISTER = Limits(
    8, reason="ptxas keeps one register in memory to fit one more program; there is no loop around it"
)
TO_BE_MEASURED = Limits(192, reason="not in the table: taken only where it was measured to be faster")
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_LAUNCH_OF = {"keys": 1, "queries": 2}  # where `backward_launches` puts them; the first is `delta`


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel to be checked.

    Attributes:
        name: kernel, shape and configuration.
        family: attention or adamw.
        launch: what is compiled.
        limits: what it is held to.
        quick: most training runs use it.
    """

    name: str
    family: Literal["attention", "adamw"]
    launch: Launch
    limits: Limits
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of calling attention.

    Attributes:
        dtype: of q, k and v.
        head_dim: of q, k and v.
        kind: full, masked (causal) or capped (causal with a soft cap).
        features: ask for everything else that a call of this kind may ask for; a window takes causal's place.
        precision: of products of float32.
    """

    dtype: torch.dtype
    head_dim: int
    kind: Kind
    features: bool = False
    precision: Precision = "ieee"

    def name(self) -> str:
        """Such as `D128 masked bf16`."""
        extras = " +all" if self.features else ""
        dtype = "tf32" if self.precision == "tf32" else _NAMES[self.dtype]
        return f"D{self.head_dim} {self.kind} {dtype}{extras}"


def shipped(arch: int) -> list[Subject]:
    """All kernels for one architecture, attention first."""
    return [*attention(arch), *optimizer(arch)]


def attention(arch: int) -> Iterator[Subject]:
    """Every configuration of attention on one architecture, in every variant that uses it."""
    every_key = configs.keys()
    for key in every_key:
        if key.arch == arch:
            chosen, *others = configs.candidates(key)
            for variant in variants(key):
                yield _subject(key, chosen, variant, allowance(key, variant), quick=_common(key, variant))
            for config in others:
                yield _subject(key, config, next(variants(key)), TO_BE_MEASURED)


def variants(key: Key) -> Iterator[Variant]:
    """The ways of calling attention that use a key's configuration, the plain one first."""
    half = key.dtype == "half"
    plain = Variant(torch.bfloat16 if half else torch.float32, key.block_d, key.kind)
    yield plain
    if not half:
        yield replace(plain, precision="tf32")
    yield replace(plain, head_dim=key.block_d - 16, dtype=torch.float16 if half else torch.float32, features=True)
    if key.block_d == min(configs.BLOCK_D):
        yield replace(plain, head_dim=key.block_d // 2)


def allowance(key: Key, variant: Variant) -> Limits:
    """What the table's configuration for a key may spill in one variant; nothing for plain calls of usual widths."""
    if key.dtype == "float":
        return FULL_PRECISION
    if key.block_d > 128:
        return WIDE_HEADS
    return ALL_AT_ONCE if variant.features else Limits()


def attention_launch(key: Key, config: Config, variant: Variant) -> Launch:
    """The launch of one kernel of attention with one configuration, over meta tensors."""
    target = Target(key.arch, precision=variant.precision, configs={key.kernel: config})
    call = _call(variant)
    q, k, lse = _tensors(variant)
    if key.kernel == "forward":
        return forward_launches(q, k, k, q, lse, call, target)[0]
    grad_lse = lse if variant.features else None
    launches = backward_launches(q, grad_lse, q, k, k, q, lse, lse, q, k, k, call, target)
    return launches[_LAUNCH_OF[key.kernel]]


def optimizer(arch: int) -> Iterator[Subject]:
    """Every kernel of AdamW; they are the same for all architectures."""
    from efftrain_kernels._kernels import adamw

    allowed = ONE_REGISTER if arch < HOPPER else Limits()
    for name, launch in adamw.shipped():
        limits = replace(allowed, wide=bool(launch.arguments.get("ALIGNED")))
        yield Subject(name, "adamw", launch, limits, quick=arch == HOPPER and name in QUICK_OPTIMIZER)


def _subject(key: Key, config: Config, variant: Variant, limits: Limits, *, quick: bool = False) -> Subject:
    return Subject(
        name=f"{key.kernel} {variant.name()} {config}",
        family="attention",
        launch=attention_launch(key, config, variant),
        limits=replace(limits, wgmma=key.dtype == "half"),
        quick=quick,
    )


def _common(key: Key, variant: Variant) -> bool:
    """Whether most training runs use it: causal attention of the usual widths in bfloat16 on Hopper."""
    plain = variant == Variant(torch.bfloat16, key.block_d, key.kind)
    return key.arch == HOPPER and plain and key.block_d <= 128 and key.kind == "masked"


def _tensors(variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, log-sum-exp); with features, packed and with shared heads."""
    if variant.features:
        tokens = BATCH * LENGTH + 1
        q, k = (_meta(variant.dtype, tokens, heads, variant.head_dim) for heads in (HEADS, KV_HEADS))
        return q, k, _meta(torch.float32, HEADS, tokens)
    q = _meta(variant.dtype, BATCH, HEADS, LENGTH, variant.head_dim)
    return q, q, _meta(torch.float32, BATCH, HEADS, LENGTH)


def _call(variant: Variant) -> Call:
    scale = variant.head_dim**-0.5
    softcap = SOFTCAP if variant.kind == "capped" else 0.0
    masked = variant.kind != "full"
    if not variant.features:
        return Call(scale, None, 0 if masked else None, softcap, LENGTH, LENGTH)
    side = WINDOW + 1 if masked else None
    offsets = _meta(torch.int32, BATCH + 1)
    return Call(
        scale, side, side, softcap, LENGTH + 1, LENGTH + 1, sinks=_meta(torch.float32, HEADS), cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
    )  # fmt: skip


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
