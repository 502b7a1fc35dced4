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
from typing import Any

from efftrain.monitor.machine import compute_capability
from efftrain.study.planning.base import STUDY_PRESETS, base
from efftrain.study.planning.request import PlanError, Request, at_least_one, named
from efftrain.study.planning.variants import BASELINE, QUICK_VARIANTS, VARIANTS, apply_variant, unavailable
from efftrain.training.checkpoints.folder import CheckpointInfo
from efftrain.training.config import RunConfig
from efftrain.workload.text.config import TextConfig

MAX_SEED = 2**32
"""Beyond any need, and within what every generator of random numbers takes."""


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
    """A study to be made: its runs in order, and the variants that cannot run here with the reason.

    `origin` is what the checkpoint that its runs begin with had cost, as it stands in a journal's header; `notes` are
    what a reader of every run should know; `classes` are the names of the text's classes, by the head's order.
    """

    study_id: str
    created: str
    command: str
    baseline: str
    variants: tuple[str, ...]
    skipped: dict[str, str]
    runs: tuple[RunPlan, ...]
    text: TextConfig
    origin: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def needed(self) -> list[str]:
        """Files and folders that the runs read."""
        start = [self.origin["path"]] if self.origin else []
        tokenizer = [self.text.tokenizer] if self.text.tokenizer else []
        return [*start, *tokenizer, *(source.path for source in self.text.sources)]


def make_plan(request: Request) -> Plan:
    """Order the runs of a study.

    Raises:
        PlanError: an unknown name, or a number out of range.
        ConfigError: a configuration that cannot be trained.
        DataError: a text whose classes are needed and cannot be read.
    """
    preset = named(request.preset, STUDY_PRESETS, "--preset")
    names = _variants(request)
    if not 0 <= request.first_seed < MAX_SEED:
        raise PlanError(f"--seed {request.first_seed}: 0 to {MAX_SEED - 1} is needed")
    seeds = range(request.first_seed, request.first_seed + at_least_one(request.seeds, preset.seeds, "--seeds"))
    common = base(request, preset)
    capability = compute_capability(request.device)
    skipped = {name: why for name in names if (why := unavailable(VARIANTS[name], common.config, capability))}
    runnable = [name for name in names if name not in skipped]
    if not runnable:
        raise PlanError("; ".join(f"variant {name!r}: {why}" for name, why in skipped.items()))
    configs = {name: apply_variant(common.config, VARIANTS[name]) for name in runnable}
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
        baseline=BASELINE if BASELINE in names else runnable[0],
        variants=tuple(names),
        skipped=skipped,
        runs=tuple(runs),
        text=common.text,
        origin=_origin(common.start),
        notes=common.notes,
        classes=common.classes,
    )


def _origin(start: CheckpointInfo | None) -> dict[str, Any] | None:
    from efftrain.study.planning.origin import origin_of  # reads records, which a run can be made without

    return origin_of(start) if start else None


def _variants(request: Request) -> list[str]:
    names = list(dict.fromkeys(QUICK_VARIANTS if request.variants is None else request.variants))
    if not names:
        raise PlanError(f"--variants: none given; choose from {', '.join(VARIANTS)}")
    for name in names:
        named(name, VARIANTS, "variant")
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
