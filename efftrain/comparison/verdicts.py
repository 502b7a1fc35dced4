"""Which variant is better than the baseline, in which figure, and whether the study can tell.

Runs are paired by seed; only runs that ended as planned count. A verdict needs six pairs, a p-value below 0.05 and an
interval that does not hold 1; `equivalent` needs six pairs and an interval within the metric's margin. Everything else
is `inconclusive`, and says what it would take.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from efftrain.comparison.statistics import (
    MIN_PAIRS,
    SIGNIFICANCE,
    Estimate,
    log_ratios,
    mean_of,
    paired_ratio,
    pairs_needed,
)
from efftrain.comparison.targets import Reading, censored_ratio, to_target
from efftrain.record.quantities import Quantity
from efftrain.record.recorder import ENDED_WELL
from efftrain.record.schema import Ratio, Run, VariantSummary, Verdict

COUNTED = ENDED_WELL
"""Statuses of runs that ended as planned; no other run enters a mean or a ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that variants are compared in.

    Attributes:
        label: in words, for reports.
        better: which direction is better.
        margin: half-width of the band around a ratio of 1 inside which a difference is of no consequence.
        take: the figure of a run, given the same seed's baseline run; None where it is missing.
        energy: whether it is made of joules, and so needs the same parts measured the same way on both sides.
    """

    label: str
    better: Literal["lower", "higher"]
    margin: float
    take: Callable[[Run, Run], Reading | None]
    energy: bool = False


def _figure(choose: Callable[[Run], Quantity]) -> Callable[[Run, Run], Reading | None]:
    def take(run: Run, baseline: Run) -> Reading | None:
        value = choose(run).value
        return Reading(value) if value is not None and value > 0 else None

    return take


def _energy_to_target(run: Run, baseline: Run) -> Reading | None:
    return to_target(run, baseline, spent=lambda v: v.energy_j, total=run.energy.total)


def _time_to_target(run: Run, baseline: Run) -> Reading | None:
    return to_target(run, baseline, spent=lambda v: v.time_s, total=run.time.total)


METRICS: dict[str, Metric] = {
    "energy_per_token": Metric(
        label="energy per token", better="lower", margin=0.01, take=_figure(lambda r: r.energy.per_token), energy=True,
    ),
    "energy_to_target": Metric(
        label="energy to target", better="lower", margin=0.01, take=_energy_to_target, energy=True,
    ),
    "time_to_target": Metric(
        label="time to target", better="lower", margin=0.01, take=_time_to_target,
    ),
    "peak_memory": Metric(
        label="peak memory", better="lower", margin=0.01, take=_figure(lambda r: r.memory.peak),
    ),
    # 0.5 % of 4 nat is 0.02 nat, 2 % in perplexity: beyond that a change of the model is a change for the worse
    "final_validation": Metric(
        label="final validation loss", better="lower", margin=0.005, take=_figure(lambda r: r.loss.final_validation),
    ),
    "tokens_per_second": Metric(
        label="tokens per second", better="higher", margin=0.01, take=_figure(lambda r: r.time.tokens_per_second),
    ),
}  # fmt: skip


def compare(
    runs: Sequence[Run], *, variants: Mapping[str, tuple[str, bool, str | None]], baseline: str
) -> list[VariantSummary]:
    """Summaries of all variants of a study, in the order of `variants`.

    Args:
        runs: the study's runs, of whatever status; at most one for each variant and seed.
        variants: name to (summary, skipped, reason why it was skipped or None).
        baseline: name of the variant that the others are held against; its own ratios are empty.
    """
    fronts = _pareto({name: _position(runs, name) for name in variants})
    return [
        VariantSummary(
            name=name,
            runs=[r.run_id for r in runs if r.variant == name],
            skipped=skipped,
            reason=reason,
            ratios={} if name == baseline or skipped else _ratios(runs, name, baseline),
            on_pareto_front=fronts[name],
            summary=summary,
        )
        for name, (summary, skipped, reason) in variants.items()
    ]


def counted(runs: Sequence[Run], variant: str) -> list[Run]:
    """The runs of `variant` that ended as planned, by seed."""
    return sorted((r for r in runs if r.variant == variant and r.status in COUNTED), key=lambda r: r.seed)


def judge(estimate: Estimate, *, better: Literal["lower", "higher"], margin: float) -> Verdict:
    """The verdict that an estimate of variant / baseline allows."""
    low, high = estimate.low, estimate.high
    if estimate.pairs < MIN_PAIRS or low is None or high is None:
        return "inconclusive"
    if estimate.p_value < SIGNIFICANCE and not low <= 1 <= high:
        return "better" if (estimate.ratio < 1) == (better == "lower") else "worse"
    return "equivalent" if 1 - margin <= low and high <= 1 + margin else "inconclusive"


def _ratios(runs: Sequence[Run], variant: str, baseline: str) -> dict[str, Ratio]:
    by_seed = {r.seed: r for r in counted(runs, baseline)}
    pairs = [(r, by_seed[r.seed]) for r in counted(runs, variant) if r.seed in by_seed]
    return {name: _ratio(pairs, metric) for name, metric in METRICS.items()}


def _ratio(pairs: Sequence[tuple[Run, Run]], metric: Metric) -> Ratio:
    alike = [(r, b) for r, b in pairs if not metric.energy or _same_energy_parts(r, b)]
    readings = [(metric.take(r, b), metric.take(b, b)) for r, b in alike]
    usable = [(v, b.value) for v, b in readings if v is not None and b is not None and not b.censored]
    left_out = _left_out(len(pairs), len(alike), len(usable))
    if not usable:
        return Ratio(
            ratio=None, low=None, high=None, pairs=0, p_value=None, verdict="inconclusive",
            detail=left_out or "no seed has both a finished run and a finished baseline",
        )  # fmt: skip
    variant, base = [v for v, _ in usable], [b for _, b in usable]
    if any(v.censored for v in variant):
        result = censored_ratio(variant, base)
        return result.model_copy(update={"detail": "; ".join(filter(None, (result.detail, left_out)))})
    values = [v.value for v in variant]
    estimate = paired_ratio(values, base)
    verdict = judge(estimate, better=metric.better, margin=metric.margin)
    advice = _advice(verdict, estimate, log_ratios(values, base), metric.margin)
    return Ratio(
        ratio=estimate.ratio, low=estimate.low, high=estimate.high, pairs=estimate.pairs, p_value=estimate.p_value,
        verdict=verdict, detail="; ".join(filter(None, (advice, left_out))),
    )  # fmt: skip


def _advice(verdict: Verdict, estimate: Estimate, logs: list[float], margin: float) -> str:
    pairs = f"{estimate.pairs} {'pair' if estimate.pairs == 1 else 'pairs'}"
    if verdict in ("better", "worse"):
        return f"{pairs}" + (f"; the difference is below {margin:.1%}" if abs(estimate.ratio - 1) < margin else "")
    if verdict == "equivalent":
        return f"{pairs}; within {margin:.1%}"
    needed = pairs_needed(logs)
    if needed is None:
        return f"{pairs}; at least {MIN_PAIRS} are needed" if estimate.pairs < MIN_PAIRS else f"{pairs}; no effect seen"
    if needed <= MIN_PAIRS and estimate.pairs < MIN_PAIRS:
        return f"{pairs}; at least {MIN_PAIRS} are needed"
    return f"{pairs}; about {max(needed, estimate.pairs + 1)} are needed for an effect and a spread like these"


def _left_out(pairs: int, alike: int, usable: int) -> str:
    parts = []
    if alike < pairs:
        parts.append(f"{pairs - alike} of {pairs} pairs left out: their energy is not made of the same parts")
    if usable < alike:
        parts.append(f"{alike - usable} of {pairs} pairs left out: a figure is missing")
    return "; ".join(parts)


def _same_energy_parts(run: Run, baseline: Run) -> bool:
    """Whether both energies hold the same components by the same methods, and none stopped being read mid-run."""

    def parts(r: Run) -> set[tuple[str, str]]:
        return {(name, q.method) for name, q in r.energy.components.items()}

    return parts(run) == parts(baseline) and not (_lost_energy(run) or _lost_energy(baseline))


def _lost_energy(run: Run) -> bool:
    return any(q.value is not None and q.lower_bound for q in run.energy.components.values())


def _position(runs: Sequence[Run], variant: str) -> tuple[float, float] | None:
    """Mean final validation loss and mean energy per token of a variant; None where a figure is missing."""
    whole = [r for r in counted(runs, variant) if not _lost_energy(r)]
    if not whole:
        return None
    loss = mean_of([r.loss.final_validation for r in whole]).value
    energy = mean_of([r.energy.per_token for r in whole]).value
    return None if loss is None or energy is None else (loss, energy)


def _pareto(positions: Mapping[str, tuple[float, float] | None]) -> dict[str, bool | None]:
    known = [p for p in positions.values() if p is not None]

    def dominated(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in known)

    return {name: None if p is None else not dominated(p) for name, p in positions.items()}
