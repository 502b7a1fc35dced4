"""Joules by module and op: a model with three prices, fitted to this run's own phases.

No sensor sees a module. But the phases' joules are known, and so are the FLOPs, the bytes and the seconds of each, so
the prices of a FLOP, of a byte and of a second can be fitted, none of them negative; where the devices were read at
idle, that is one more equation for the price of a second. With the prices of FLOPs and bytes each row of the cost table
gets its share of its phase; the price of a second goes along with them, because how long a single row takes is not
known. The rows of a phase make up its joules by construction; how well the prices explain the phases is the residual,
which is printed and is in every interval.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import nnls

from efftrain.meters.parts.phase_energy import PhaseEnergy
from efftrain.meters.parts.timeline import Floats
from efftrain.meters.utilization import cost_stages, stage_of
from efftrain.record.journal import Line
from efftrain.record.quantities import Quantity, estimate, missing, total, weakest
from efftrain.record.schema import EnergyModel, EnergyRow

DRAWS: Final = 400
"""Draws of the phases' joules from their intervals: the scatter of the prices is that of these."""

MIN_U: Final = 0.02
"""No phase is trusted to less than this share in the fit, or the surest one would decide the prices alone."""

INSIDE: Final = {"recompute": "backward"}
"""Costs that are counted apart but run inside a phase."""


@dataclass(frozen=True, slots=True)
class Modelled:
    """Joules of the run by module and by op, the dearest first, and the model; empty where `reason` says why."""

    modules: list[EnergyRow]
    ops: list[EnergyRow]
    model: EnergyModel | None
    reason: str = ""


def modelled(phases: PhaseEnergy, costs: Sequence[Line], steps: Sequence[Line], idle: Quantity) -> Modelled:
    """Spread the joules of the steps' phases over the cost table.

    Args:
        phases: the run's joules by phase.
        costs: cost lines.
        steps: step lines.
        idle: J of the same devices at idle over the billed time; missing where they were not read.
    """
    if not phases.power:
        return Modelled([], [], None, "no model of modules and ops: it is fitted to the joules of the phases")
    rows = _rows(costs, steps)
    groups = _groups(phases, rows)
    if len(groups) < 2:
        return Modelled([], [], None, "no model of modules and ops: the costs of fewer than two phases were counted")
    x, joules, spread = _equations(phases, groups, idle)
    prices = _prices(x, joules, spread)
    if not prices[:2].any():
        return Modelled([], [], None, "no model of modules and ops: the phases' joules follow their seconds alone")
    draws = _draws(x, joules, spread)
    residual = float(np.sqrt(np.mean((x @ prices / joules - 1) ** 2)))
    tested = len(x) > x.shape[1]
    return Modelled(
        modules=_spread(phases, groups, "module", prices, draws=draws, residual=residual),
        ops=_spread(phases, groups, "op", prices, draws=draws, residual=residual),
        model=_model(
            prices, draws, residual, parts=[*groups, *(["idle"] if len(x) > len(groups) else [])], tested=tested
        ),
    )


_Row = tuple[Line, float, float]
"""A cost row with its FLOP and bytes over all steps of the run."""


def _rows(costs: Sequence[Line], steps: Sequence[Line]) -> list[_Row]:
    stages = cost_stages(costs)
    counts = Counter(stage_of(stages, step["step"]) for step in steps)
    return [
        (row, counts[stage] * float(row["flops"]), counts[stage] * float(row["bytes"]))
        for stage, rows in stages.items()
        for row in rows
        if counts[stage] and (row["flops"] or row["bytes"])
    ]


def _groups(phases: PhaseEnergy, rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """The rows of each part of the run that has any."""
    groups: dict[str, list[_Row]] = {}
    for name in phases.phases:
        members = name.split("+")
        own = [row for row in rows if INSIDE.get(row[0]["phase"], row[0]["phase"]) in members]
        if own:
            groups[name] = own
    return groups


def _equations(phases: PhaseEnergy, groups: Mapping[str, Sequence[_Row]], idle: Quantity) -> tuple[Floats, ...]:
    """[parts, 3] FLOP, bytes and s; [parts] J; [parts] their standard uncertainty."""
    work = [
        (sum(f for _, f, _ in own), sum(b for _, _, b in own), phases.seconds[name]) for name, own in groups.items()
    ]
    found = [phases.phases[name] for name in groups]
    if idle.value and not idle.lower_bound:
        work.append((0.0, 0.0, sum(phases.seconds.values())))
        found.append(idle)
    x = np.array(work)
    joules = np.array([q.value or 0.0 for q in found])
    return x, joules, np.array([q.u_random or 0.0 for q in found])


def _prices(x: Floats, joules: Floats, spread: Floats) -> Floats:
    """[3] J per FLOP, J per byte and W that explain the joules best, each phase weighted by how well it is known."""
    weight = 1 / np.maximum(spread, MIN_U * np.abs(joules))
    weighted = x * weight[:, None]
    scale = np.maximum(np.sqrt((weighted**2).sum(axis=0)), 1e-300)
    return nnls(weighted / scale, joules * weight)[0] / scale


def _draws(x: Floats, joules: Floats, spread: Floats) -> Floats:
    """[draws, 3] prices for joules drawn from their intervals; always the same for the same run."""
    drawn = np.random.default_rng(0).normal(joules, spread, (DRAWS, len(joules)))
    return np.array([_prices(x, one, spread) for one in np.maximum(drawn, 1e-9)])


def _model(prices: Floats, draws: Floats, residual: float, *, parts: Sequence[str], tested: bool) -> EnergyModel:
    source = f"non-negative least squares on {', '.join(parts)} of this run"
    spread = draws.std(axis=0)

    def price(i: int, unit: str) -> Quantity:
        # A model that misses its own phases by the residual does not know its prices better than that.
        u_systematic = float(prices[i]) * residual
        return estimate(
            float(prices[i]), unit, method="modelled", source=source, u_random=float(spread[i]),
            u_systematic=u_systematic,
        )  # fmt: skip

    return EnergyModel(
        flop_j=price(0, "J/FLOP"),
        byte_j=price(1, "J/B"),
        base_w=price(2, "W"),
        residual=_residual(residual, len(parts)) if tested else missing("1", source=_UNTESTED),
    )


_UNTESTED: Final = "as many prices as parts of the run to fit them to: nothing is left over to test the model with"


def _residual(value: float, parts: int) -> Quantity:
    return Quantity(value=value, unit="1", method="modelled", source=f"root mean square over {parts} parts of the run")


def _spread(
    phases: PhaseEnergy, groups: Mapping[str, Sequence[_Row]], key: str, prices: Floats, *, draws: Floats,
    residual: float,
) -> list[EnergyRow]:  # fmt: skip
    """Joules by module or by op, over the phases whose costs were counted."""
    parts: dict[str, list[Quantity]] = {}
    for name, own in groups.items():
        named: dict[str, Floats] = {}
        for row, flop, moved in own:
            named[row[key]] = named.get(row[key], np.zeros(2)) + np.array([flop, moved])
        work = np.array(list(named.values()))
        shares, u_shares = _shares(work, prices, draws)
        for label, share, u_share in zip(named, shares, u_shares, strict=True):
            parts.setdefault(label, []).append(_part(phases.phases[name], share, math.hypot(u_share, share * residual)))
    boundary = "training steps, without evaluation and what lies between steps"
    sums = {label: total(quantities, boundary=boundary, source=_SOURCE) for label, quantities in parts.items()}
    ordered = sorted(sums.items(), key=lambda item: (-(item[1].value or 0.0), item[0]))
    return [EnergyRow(name=label, energy=quantity) for label, quantity in ordered]


_SOURCE: Final = "the phase's joules, shared out by the fitted prices of FLOPs and bytes"


def _shares(work: Floats, prices: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """[rows] share of each in its phase, and its standard uncertainty over the draws; `work` [rows, 2] FLOP, bytes."""
    cost = work @ prices[:2]
    if not cost.any():  # the phase has but one kind of work, and that has no price here: by bytes, which all rows move
        cost = work[:, 1]
    drawn = work @ draws[:, :2].T
    sums = drawn.sum(axis=0)
    known = sums > 0
    shares = cost / cost.sum()
    if not known.any():
        return shares, shares
    # The scatter about the share itself: the fit to the estimates need not be the mean of the draws.
    apart = drawn[:, known] / sums[known] - shares[:, None]
    return shares, np.sqrt((apart**2).mean(axis=1))


def _part(phase: Quantity, share: float, u_share: float) -> Quantity:
    value, joules = (phase.value or 0.0) * share, phase.value or 0.0
    limits = None if phase.low is None or phase.high is None else (share * phase.low, share * phase.high)
    return estimate(
        value, "J", method=weakest([phase.method, "modelled"]), source=_SOURCE,
        u_random=math.hypot(share * (phase.u_random or 0.0), joules * u_share),
        u_systematic=share * (phase.u_systematic or 0.0), limits=limits, lower_bound=phase.lower_bound,
    )  # fmt: skip
