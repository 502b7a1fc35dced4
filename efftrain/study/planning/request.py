"""What a user asks for, under the names of the command line's options, and how a wish is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from efftrain.training.config import OptimizerName, Parallel, Precision, Task
from efftrain.workload.models.presets import Attention, Initialisation
from efftrain.workload.text.config import CleaningStep

Default = TypeVar("Default", int, None)


class PlanError(ValueError):
    """A wish that cannot be planned: one line that says what is wrong and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asks for, under the names of the command line's options; None takes the preset's or the model's.

    `start` is `--from`; `data` holds a path, or PATH=WEIGHT, for each source.
    """

    preset: str = "quick"
    variants: tuple[str, ...] | None = None
    seeds: int | None = None
    first_seed: int = 0
    device: str = "cpu"
    parallel: Parallel | None = None
    ranks: int = 1

    model: str | None = None
    task: Task | None = None
    attention: Attention = "sdpa"
    init: Initialisation | None = None
    dropout: float | None = None
    window: int | None = None
    seq_len: int | None = None

    data: Sequence[str] = ()
    text_column: str = "text"
    label_column: str | None = None
    clean: tuple[CleaningStep, ...] = ()
    tokenizer: Path | None = None

    precision: Precision = "fp32"
    optimizer: OptimizerName = "torch"
    batch_size: int | None = None
    grad_accumulation: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None

    steps: int | None = None
    tokens: int | None = None
    tokens_per_parameter: float | None = None
    max_flops: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    target_loss: float | None = None
    max_joules: float | None = None
    max_gco2e: float | None = None
    eval_every: int | None = None
    checkpoint_every: int | None = None

    start: Path | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None


def named(name: str, table: dict[str, Any], option: str) -> Any:
    """The entry of `name`.

    Raises:
        PlanError: there is none.
    """
    if name not in table:
        raise PlanError(f"{option} {name!r}: unknown; choose from {', '.join(table)}")
    return table[name]


def at_least_one(value: int | None, default: Default, option: str) -> int | Default:
    """`value`, or `default` where it is None.

    Raises:
        PlanError: it is below 1.
    """
    if value is not None and value < 1:
        raise PlanError(f"{option} {value}: at least 1 is needed")
    return default if value is None else value


def positive(value: float | None, default: float, option: str, *, zero: bool = False) -> float:
    """`value`, or `default` where it is None.

    Raises:
        PlanError: it is not finite, below 0, or 0 where `zero` does not allow it.
    """
    if value is None:
        return default
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise PlanError(f"{option} {value:g}: expected a number {'of at least' if zero else 'above'} 0")
    return value
