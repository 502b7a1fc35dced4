"""The variants: named changes of a configuration, as data in one table.

A variant sets fields of `RunConfig` or scales whole numbers of the model. What the
change does is code in training/ and compression/.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efftrain.training.config import DistillConfig, PruneConfig, RunConfig, not_prunable
from efftrain.training.precision.support import Capability, refusal

BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named change.

    Attributes:
        summary: what it changes, for tables.
        sets: `RunConfig` field -> value.
        scales: `ModelConfig` field -> factor, rounded up to a whole number.
        distill: how it learns from the baseline of the same seed, or None.
        cuda_only: why it cannot run on a CPU, or empty.
    """

    summary: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    distill: "Distill | None" = None
    cuda_only: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Temperature and weight of the teacher's term; see `DistillConfig`."""

    temperature: float = 2.0
    weight: float = 0.5


VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(summary="fp32, nothing changed"),
    "bf16": Variant(summary="bf16 autocast over fp32 weights", sets={"precision": "bf16"}),
    "recompute": Variant(
        summary="every block's activations are computed again in the backward pass", sets={"recompute": "full"}
    ),
    "selective": Variant(summary="as recompute, but attention's output is kept", sets={"recompute": "selective"}),
    "pruned": Variant(
        summary="dense for a third of the tokens, then half of the heads and MLP channels are removed",
        sets={"prune": PruneConfig()},
    ),
    "distilled": Variant(
        summary="half of the layers, taught by the same seed's baseline",
        scales={"num_layers": 0.5},
        distill=Distill(),
    ),
    "fp16": Variant(summary="fp16 autocast with loss scaling over fp32 weights", sets={"precision": "fp16"}),
    "pure-bf16": Variant(
        summary="weights, activations and gradients in bf16, fp32 master weights", sets={"precision": "pure-bf16"}
    ),
    "tf32": Variant(summary="fp32 with TF32 matrix products", sets={"precision": "tf32"}),
    "compile": Variant(summary="the model compiled by torch.compile", sets={"compile": True}),
    "kernels": Variant(
        summary="attention and AdamW by efftrain's own kernels",
        model={"attention": "efftrain"},
        optimizer={"name": "efftrain"},
        cuda_only="the kernels need CUDA; on a CPU both fall back to plain PyTorch",
    ),
}

QUICK_VARIANTS = (BASELINE, "bf16", "recompute", "pruned", "distilled")


def apply_variant(base: RunConfig, variant: Variant) -> RunConfig:
    """The configuration of `variant` over `base`.

    Raises:
        ConfigError: the two do not go together: too few steps to prune in, say.
    """
    scaled = {name: math.ceil(getattr(base.model, name) * factor) for name, factor in variant.scales.items()}
    model = dataclasses.replace(base.model, **scaled, **variant.model)
    optimizer = dataclasses.replace(base.optimizer, **variant.optimizer)
    distill = variant.distill and DistillConfig(
        teacher=base.model, temperature=variant.distill.temperature, weight=variant.distill.weight
    )
    return dataclasses.replace(base, model=model, optimizer=optimizer, distill=distill, **variant.sets)


def unavailable(variant: Variant, base: RunConfig, capability: Capability | None = None) -> str | None:
    """Why `variant` cannot run over `base`, on its device; None where it can.

    Args:
        variant: one of the table.
        base: what it would change.
        capability: of the device, as in `refusal`.
    """
    if base.device == "cpu" and variant.cuda_only:
        return variant.cuda_only
    if variant.sets.get("prune"):
        return not_prunable(base)
    if variant.scales and (base.start or base.lora):
        return "a smaller model cannot begin with the checkpoint's weights"
    return refusal(variant.sets["precision"], base.device, capability) if "precision" in variant.sets else None
