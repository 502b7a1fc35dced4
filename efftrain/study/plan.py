"""From what a user asks for to an ordered list of runs.

Runs are interleaved in time: each seed is a block that holds every variant once, and every second block runs in
reverse, so that a machine that warms up or slows down favours nobody. A distilled run comes after its teacher.
"""

import dataclasses
import secrets
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from efftrain.hardware.probe import cpu
from efftrain.study.variants import BASELINE, QUICK_VARIANTS, VARIANTS, apply_variant, unavailable
from efftrain.training.config import OptimizerConfig, OptimizerName, RunConfig
from efftrain.workload.models.presets import PRESETS, Attention

MAX_SEED = 2**32
"""Beyond any need, and within what every generator of random numbers takes."""


class PlanError(ValueError):
    """A wish that cannot be planned: one line that says what is wrong and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a model preset is trained where nobody says otherwise."""

    batch_size: int
    learning_rate: float
    grad_accumulation: int = 1


WORKLOADS: dict[str, Workload] = {
    "nano": Workload(batch_size=4, learning_rate=4e-3),
    "micro": Workload(batch_size=8, learning_rate=2e-3),
    "small": Workload(batch_size=8, learning_rate=6e-4, grad_accumulation=4),
    "1b": Workload(batch_size=4, learning_rate=3e-4, grad_accumulation=4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPreset:
    """Size of a study where nobody says otherwise."""

    model: str
    steps: int
    seeds: int
    evaluations: int
    eval_batches: int


STUDY_PRESETS: dict[str, StudyPreset] = {
    "quick": StudyPreset(model="nano", steps=240, seeds=2, evaluations=8, eval_batches=8),
    "standard": StudyPreset(model="micro", steps=1500, seeds=6, evaluations=15, eval_batches=16),
    "full": StudyPreset(model="small", steps=3000, seeds=6, evaluations=30, eval_batches=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asks for; None takes the preset's."""

    preset: str = "quick"
    variants: tuple[str, ...] | None = None
    model: str | None = None
    data: Path | None = None
    seeds: int | None = None
    first_seed: int = 0
    steps: int | None = None
    tokens: int | None = None
    device: str = "cpu"
    attention: Attention = "sdpa"
    optimizer: OptimizerName = "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run to be made."""

    run_id: str
    variant: str
    seed: int
    config: RunConfig
    teacher: str | None
    teaches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study to be made: its runs in order, and the variants that cannot run here with the reason."""

    study_id: str
    created: str
    command: str
    baseline: str
    variants: tuple[str, ...]
    skipped: dict[str, str]
    runs: tuple[RunPlan, ...]
    data: str | None


def make_plan(request: Request) -> Plan:
    """Order the runs of a study.

    Raises:
        PlanError: an unknown name, or a number out of range.
        ConfigError: a configuration that cannot be trained.
    """
    preset = _named(request.preset, STUDY_PRESETS, "--preset")
    names = _variants(request)
    base = base_config(request, preset)
    if not 0 <= request.first_seed < MAX_SEED:
        raise PlanError(f"--seed {request.first_seed}: 0 to {MAX_SEED - 1} is needed")
    seeds = range(request.first_seed, request.first_seed + _at_least_one(request.seeds, preset.seeds, "--seeds"))
    skipped = {name: why for name in names if (why := unavailable(VARIANTS[name], request.device))}
    runnable = [name for name in names if name not in skipped]
    configs = {name: apply_variant(base, VARIANTS[name]) for name in runnable}
    taught = any(VARIANTS[name].distill for name in runnable)
    runs = [
        RunPlan(
            run_id=f"{name}-s{seed}", variant=name, seed=seed, config=dataclasses.replace(configs[name], seed=seed),
            teacher=f"{BASELINE}-s{seed}" if VARIANTS[name].distill else None, teaches=taught and name == BASELINE,
        )
        for block, seed in enumerate(seeds)
        for name in _block_order(runnable, reverse=block % 2 == 1)
    ]  # fmt: skip
    created = datetime.now(UTC)
    return Plan(
        study_id=f"{request.preset}-{created:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        created=created.isoformat(timespec="seconds"),
        command=shlex.join(["efftrain", *sys.argv[1:]]),
        baseline=BASELINE if BASELINE in names else next(iter(runnable), names[0]),
        variants=tuple(names),
        skipped=skipped,
        runs=tuple(runs),
        data=str(request.data.resolve()) if request.data else None,
    )


def base_config(request: Request, preset: StudyPreset) -> RunConfig:
    """The baseline's configuration: what every variant changes.

    Raises:
        PlanError: an unknown model, or a number out of range.
    """
    model_name = request.model or preset.model
    model = dataclasses.replace(_named(model_name, PRESETS, "--model"), attention=request.attention)
    workload = WORKLOADS[model_name]
    per_step = workload.batch_size * workload.grad_accumulation * model.seq_len
    if request.steps is not None and request.tokens is not None:
        raise PlanError("--steps and --tokens say the same thing twice; give one of them")
    tokens_as_steps = None if request.tokens is None else -(-request.tokens // per_step)
    if request.tokens is not None and request.tokens < 1:
        raise PlanError(f"--tokens {request.tokens}: at least 1 is needed")
    steps = _at_least_one(tokens_as_steps if request.steps is None else request.steps, preset.steps, "--steps")
    return RunConfig(
        model=model,
        optimizer=OptimizerConfig(name=request.optimizer, learning_rate=workload.learning_rate),
        steps=steps,
        batch_size=workload.batch_size,
        grad_accumulation=workload.grad_accumulation,
        eval_every=max(1, steps // preset.evaluations),
        eval_batches=preset.eval_batches,
        device=request.device,
        threads=cpu().threads,
        log_every=1 if request.device == "cpu" else 10,
    )


def _variants(request: Request) -> list[str]:
    names = list(dict.fromkeys(QUICK_VARIANTS if request.variants is None else request.variants))
    if not names:
        raise PlanError(f"--variants: none given; choose from {', '.join(VARIANTS)}")
    for name in names:
        _named(name, VARIANTS, "variant")
    needs_baseline = [name for name in names if VARIANTS[name].distill]
    if needs_baseline and BASELINE not in names:
        raise PlanError(
            f"variant {needs_baseline[0]!r} is taught by the baseline of the same study:"
            f" efftrain bench --variants {BASELINE},{needs_baseline[0]}"
        )
    return sorted(names, key=lambda name: name != BASELINE)


def _block_order(names: list[str], *, reverse: bool) -> list[str]:
    ordered = names[::-1] if reverse else list(names)
    return sorted(ordered, key=lambda name: VARIANTS[name].distill is not None)


def _named(name: str, table: dict[str, Any], option: str) -> Any:
    if name not in table:
        raise PlanError(f"{option} {name!r}: unknown; choose from {', '.join(table)}")
    return table[name]


def _at_least_one(value: int | None, default: int, option: str) -> int:
    if value is not None and value < 1:
        raise PlanError(f"{option} {value}: at least 1 is needed")
    return default if value is None else value
