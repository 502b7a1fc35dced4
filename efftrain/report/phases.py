"""What a report says about the joules of a step's phases, and of modules and ops, variant by variant."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from efftrain.comparison.statistics import mean_of
from efftrain.comparison.verdicts import COUNTED
from efftrain.record.quantities import Quantity, estimate
from efftrain.record.schema import EnergyRow, Run
from efftrain.report.format import figure, percent
from efftrain.report.overview import VariantView

TOP: Final = 8
"""Modules and ops shown; the records hold all."""

TOO_SMALL: Final = 0.002
"""A part of less than this share of a run's joules is left to the records."""

ROOT: Final = "outside of any module"


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One part of a run: its share of the joules, its J and W, means over the variant's runs."""

    name: str
    share: Quantity
    energy: Quantity
    power: Quantity

    @property
    def width(self) -> float:
        """Share in percent, for a bar; a part is never wider than the whole."""
        return round(100 * min(1.0, max(0.0, self.share.value or 0.0)), 2)


@dataclass(frozen=True, slots=True)
class PhaseView:
    """The joules of one variant by part, or why there are none.

    Attributes:
        variant: its name.
        rows: its parts in the order of a step, then what lies outside of steps.
        how: how they were found; where they were not, why.
        closure: sum of the parts over the total, as text; empty where there are none.
        modules: the dearest modules of one run and their J.
        ops: the dearest ops of it.
        model: the prices that modules and ops were reckoned with, as text; empty where there are none.
    """

    variant: str
    rows: list[PhaseRow]
    how: str
    closure: str = ""
    modules: list[tuple[str, Quantity]] = field(default_factory=list)
    ops: list[tuple[str, Quantity]] = field(default_factory=list)
    model: str = ""

    @property
    def line(self) -> str:
        """All in one line: `forward 45 % [43, 47], backward …`."""
        if not self.rows:
            return self.how
        return ", ".join(f"{row.name} {percent(row.share, interval=True)}" for row in self.rows)


def phase_views(variants: Sequence[VariantView]) -> list[PhaseView]:
    """One view for each variant that has a finished run, or the only one, whose record says something of its phases."""
    alone = sum(len(variant.runs) for variant in variants) == 1
    views = (_view(variant, alone=alone) for variant in variants)
    return [view for view in views if view is not None]


def _view(variant: VariantView, *, alone: bool) -> PhaseView | None:
    runs = [r for r in variant.runs if (alone or r.status in COUNTED) and r.steps and r.energy.attribution]
    if not runs:
        return None
    known = [run for run in runs if run.energy.phase_power]
    if not known:
        return PhaseView(variant.name, [], runs[0].energy.attribution)
    # Two runs may be divided differently; what most of them have is shown.
    division = Counter(tuple(run.energy.phases) for run in known).most_common(1)[0][0]
    alike = [run for run in known if tuple(run.energy.phases) == division]
    first = alike[0].energy
    count = f"{len(alike)} of {len(runs)} runs; the first: " if len(runs) > 1 else ""
    return PhaseView(
        variant.name,
        rows=_rows(alike, division),
        how=f"{count}{first.attribution}",
        closure=percent(mean_of([run.energy.closure for run in alike]), interval=True),
        modules=_dearest(first.modules),
        ops=_dearest(first.ops),
        model=_model(alike[0]),
    )


def _rows(runs: Sequence[Run], names: Sequence[str]) -> list[PhaseRow]:
    rows = [
        PhaseRow(
            name,
            share=mean_of([_share(run, name) for run in runs]),
            energy=mean_of([run.energy.phases[name] for run in runs]),
            power=mean_of([run.energy.phase_power[name] for run in runs]),
        )
        for name in names
    ]
    return [row for row in rows if (row.share.value or 0.0) >= TOO_SMALL]


def _share(run: Run, name: str) -> Quantity:
    """Share of a run's joules; its interval is the random part, for a gain errs alike in part and whole."""
    part, whole = run.energy.phases[name], math.fsum(q.value or 0.0 for q in run.energy.phases.values())
    return estimate(
        (part.value or 0.0) / whole, "1", method=part.method, source=f"{name} over all parts",
        u_random=(part.u_random or 0.0) / whole,
    )  # fmt: skip


def _dearest(rows: Sequence[EnergyRow]) -> list[tuple[str, Quantity]]:
    return [(row.name or ROOT, row.energy) for row in rows[:TOP]]


def _model(run: Run) -> str:
    model = run.energy.model
    if model is None:
        return ""
    residual = percent(model.residual) if model.residual.value is not None else model.residual.source
    return (
        f"{figure(model.flop_j)}, {figure(model.byte_j)} and {figure(model.base_w)} ({model.flop_j.source}); "
        f"residual: {residual}"
    )
