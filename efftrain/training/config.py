"""What one run trains and how, as typed data without torch, so that a command line can build and check it at once.

A configuration goes into the journal's header and into the run's record as it stands here, and comes back from there
through `from_dict`.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

from efftrain.record.plain import from_plain
from efftrain.workload.models.presets import ModelConfig

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""`bf16` and `fp16` are autocast over fp32 weights; `tf32` lets fp32 matrix products round their inputs."""

Recompute = Literal["none", "full", "selective"]
"""Activation recomputation: `full` keeps each block's input and computes the rest again in the backward pass;
`selective` also keeps what attention returns, whose cost grows with the square of the sequence."""

OptimizerName = Literal["torch", "efftrain"]


class ConfigError(ValueError):
    """A configuration that cannot be trained; the message is one line."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv:1711.05101) with linear warm-up and a cosine to `min_learning_rate_ratio` (arXiv:1608.03983).

    Attributes:
        name: `torch` is torch.optim.AdamW, `efftrain` that of efftrain_kernels.
        learning_rate: at the end of the warm-up.
        min_learning_rate_ratio: what the cosine ends at, as a share of `learning_rate`.
        warmup_share: share of the steps in which the learning rate rises.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: for weight matrices; norms, biases and embeddings have none.
        max_grad_norm: global L2 norm to which gradients are clipped, or None.
    """

    name: OptimizerName = "torch"
    learning_rate: float = 3e-3
    min_learning_rate_ratio: float = 0.1
    warmup_share: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float | None = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Dense training, then heads and MLP channels removed by activation importance, then recovery.

    Attributes:
        after: share of the steps that is trained dense.
        keep_heads: share of each group's query heads that stays; at least one does.
        keep_channels: share of each block's MLP channels that stays.
        calibration_batches: batches whose activations are looked at.
    """

    after: float = 1 / 3
    keep_heads: float = 0.5
    keep_channels: float = 0.5
    calibration_batches: int = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """A student that learns from a teacher's logits beside the data (arXiv:1503.02531).

    Attributes:
        teacher: shape of the teacher.
        temperature: of both softmaxes; the loss is multiplied by its square.
        weight: share of the teacher's term in the loss, the data's being 1 − weight.
    """

    teacher: ModelConfig
    temperature: float = 2.0
    weight: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        model: shape of what is trained.
        steps: optimizer steps.
        batch_size: sequences in one micro-batch.
        grad_accumulation: micro-batches in one step.
        seed: of weights, batches and dropout.
        eval_every: steps between evaluations; the last step is always evaluated.
        eval_batches: micro-batches of the fixed validation set.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of torch.
        log_every: steps between host synchronisations on a device that runs asynchronously.
    """

    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int
    batch_size: int
    grad_accumulation: int = 1
    seed: int = 0
    precision: Precision = "fp32"
    recompute: Recompute = "none"
    compile: bool = False
    prune: PruneConfig | None = None
    distill: DistillConfig | None = None
    eval_every: int = 100
    eval_batches: int = 16
    device: str = "cpu"
    threads: int = 1
    log_every: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "grad_accumulation", "eval_every", "eval_batches", "threads", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision {self.precision!r}: choose one of {', '.join(get_args(Precision))}")
        if self.prune and not 0 < self.prune_step < self.steps:
            raise ConfigError(f"pruning needs a dense and a pruned part: {self.steps} steps are too few")

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained in one optimizer step."""
        return self.batch_size * self.grad_accumulation * self.model.seq_len

    @property
    def prune_step(self) -> int:
        """Steps that are trained dense; pruning comes after this one. 0 where nothing is pruned."""
        return round(self.steps * self.prune.after) if self.prune else 0

    @property
    def pruned_model(self) -> ModelConfig | None:
        """Shape after pruning: fewer query heads in each group, fewer MLP channels; None where nothing is pruned."""
        if self.prune is None:
            return None
        group = self.model.num_heads // self.model.num_kv_heads
        kept = max(1, round(group * self.prune.keep_heads))
        channels = max(1, round(self.model.d_ff * self.prune.keep_channels))
        return dataclasses.replace(self.model, num_heads=kept * self.model.num_kv_heads, d_ff=channels)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in journals and records."""
        return dataclasses.asdict(self)


def from_dict(data: dict[str, Any]) -> RunConfig:
    """The configuration that `RunConfig.as_dict` wrote.

    Raises:
        ConfigError: unknown or missing names, or values out of range.
    """
    try:
        return from_plain(RunConfig, data)
    except ValueError as error:
        raise ConfigError(f"configuration: {error}") from None


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of `step`, counted from 1: a line up to `learning_rate`, then a cosine down to its minimum.

    A function of the step alone, so that resuming needs no schedule's state.
    """
    warmup = max(1, round(steps * config.warmup_share))
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
