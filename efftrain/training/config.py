"""What one run trains and how, as typed data without torch, so that a command line can build and check it at once.

A configuration goes into the journal's header and into the run's record as it stands here, and comes back from there
through `from_dict`.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

from efftrain.record.plain import from_plain
from efftrain.workload.models.presets import AnyModel, ModelConfig

Precision = Literal["fp32", "tf32", "bf16", "fp16", "pure-bf16"]
"""`bf16` and `fp16` are autocast over fp32 weights; `tf32` lets fp32 matrix products round their inputs; `pure-bf16`
has weights, activations and gradients in bf16, and fp32 master weights in the optimizer."""

Task = Literal["causal", "masked", "classification"]
"""What a model learns: the next token, masked tokens (arXiv:1810.04805), or the class of a document."""

Parallel = Literal["ddp", "fsdp"]
"""How several ranks share a training: whole copies (DistributedDataParallel), or shards (FSDP2's fully_shard)."""

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

    teacher: AnyModel
    temperature: float = 2.0
    weight: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HorizonConfig:
    """What ends a training before its last step.

    Attributes:
        patience: evaluations without a better validation loss after which training stops.
        min_delta: nat/token by which a loss must be lower to be better.
        target_loss: validation loss in nat/token at which training stops.
        max_joules: energy in J that the run may use, on its own bill.
        max_gco2e: CO2e in g that it may cause.
    """

    patience: int | None = None
    min_delta: float = 0.0
    target_loss: float | None = None
    max_joules: float | None = None
    max_gco2e: float | None = None

    def __post_init__(self) -> None:
        for name in ("patience", "target_loss", "max_joules", "max_gco2e"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(f"--min-delta {self.min_delta:g}: expected a number of at least 0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside frozen matrices (arXiv:2106.09685), put in by `peft`.

    Attributes:
        rank: of each pair of matrices.
        alpha: their product is scaled by alpha / rank.
        dropout: before the first of the pair.
        targets: names of the layers that get one; empty: all linear layers of the blocks.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora rank must be at least 1, not {self.rank}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        model: shape of what is trained.
        task: what it learns.
        steps: optimizer steps at most; the learning rate's schedule ends there.
        horizon: what may end the training before.
        batch_size: sequences in one micro-batch of one rank.
        grad_accumulation: micro-batches in one step.
        seed: of weights, batches and dropout.
        eval_every: steps between evaluations; the last step is always evaluated.
        eval_batches: micro-batches of the fixed validation set.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of torch.
        log_every: steps between host synchronisations on a device that runs asynchronously.
        start: folder of a checkpoint whose weights are where training begins, or None.
        lora: adapters that are trained in place of the weights, or None.
        checkpoint_every: steps between checkpoints; None: none are written.
        ranks: processes that train together.
        parallel: how they share the work; None where there is one.
    """

    model: AnyModel
    task: Task = "causal"
    horizon: HorizonConfig = HorizonConfig()
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
    start: str | None = None
    lora: LoraConfig | None = None
    checkpoint_every: int | None = None
    ranks: int = 1
    parallel: Parallel | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "grad_accumulation", "eval_every", "eval_batches", "threads", "log_every",
            "checkpoint_every", "ranks",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision {self.precision!r}: choose one of {', '.join(get_args(Precision))}")
        if self.prune and not 0 < self.prune_step < self.steps:
            raise ConfigError(f"pruning needs a dense and a pruned part: {self.steps} steps are too few")
        _check_together(self)

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained in one optimizer step."""
        return self.rank_tokens_per_step * self.ranks

    @property
    def rank_tokens_per_step(self) -> int:
        """Tokens that one rank trains in one optimizer step; padding counts."""
        return self.batch_size * self.grad_accumulation * self.model.seq_len

    @property
    def prune_step(self) -> int:
        """Steps that are trained dense; pruning comes after this one. 0 where nothing is pruned."""
        return round(self.steps * self.prune.after) if self.prune else 0

    @property
    def pruned_model(self) -> ModelConfig | None:
        """Shape after pruning: fewer query heads in each group, fewer MLP channels; None where nothing is pruned."""
        if self.prune is None or not isinstance(self.model, ModelConfig):
            return None
        group = self.model.num_heads // self.model.num_kv_heads
        kept = max(1, round(group * self.prune.keep_heads))
        channels = max(1, round(self.model.d_ff * self.prune.keep_channels))
        return dataclasses.replace(self.model, num_heads=kept * self.model.num_kv_heads, d_ff=channels)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in journals and records."""
        return dataclasses.asdict(self)


def not_prunable(config: RunConfig) -> str | None:
    """Why a training cannot be pruned on the way; None where it can."""
    if not isinstance(config.model, ModelConfig):
        return "pruning knows the layers of the default model, not those of a Hugging Face model"
    reasons = {"LoRA": config.lora, "several ranks": config.parallel, "classification": config.model.num_classes}
    hindrance = next((name for name, present in reasons.items() if present), None)
    return f"pruning does not go together with {hindrance}" if hindrance else None


def _check_together(config: RunConfig) -> None:
    """Raise a ConfigError for fields that do not go together."""
    model, task = config.model, config.task
    if task != "classification" and model.causal != (task == "causal"):
        kind, learns = ("decoder", "causal") if model.causal else ("encoder", "masked")
        raise ConfigError(f"task {task!r}: this model is a {kind}, which learns {learns!r} or 'classification'")
    if (task == "classification") != (model.num_classes is not None):
        raise ConfigError(f"task {task!r} does not go with num_classes {model.num_classes}")
    if config.prune and (why := not_prunable(config)):
        raise ConfigError(why)
    if (config.ranks > 1) != (config.parallel is not None):
        raise ConfigError(f"{config.ranks} ranks do not go with parallel {config.parallel!r}")


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
