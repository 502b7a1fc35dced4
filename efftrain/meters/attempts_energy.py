"""Joules of several attempts of one run.

Attempts on one machine were read by the same sensors, whose gain errors are the same each time: they add linearly.
Those of different machines add in quadrature.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from efftrain.meters.attempts_means import added_up, common_sum, weighted
from efftrain.record.quantities import Quantity, exact, missing, scaled, total
from efftrain.record.schema import Energy, EnergyRow, Run

UNATTRIBUTED: Final = "unattributed"
"""Phase of the joules of attempts whose phases could not be told apart."""


def add_energy(runs: Sequence[Run], tokens: int) -> Energy:
    """The energy of all attempts.

    Args:
        runs: the attempts, in order.
        tokens: of the steps that count; steps that were done twice are on the bill of each token.
    """
    last = runs[-1].energy
    components = _by_name(runs, lambda energy: energy.components)
    whole = _whole(runs, components)
    joules = [run.energy.total.value or 0.0 for run in runs]
    return Energy(
        components=components,
        devices=_by_name(runs, lambda energy: energy.devices),
        total=whole,
        idle=_add(runs, [run.energy.idle for run in runs]),
        above_idle=_add(runs, [run.energy.above_idle for run in runs]),
        per_token=scaled(whole, 1 / tokens, "J/token") if tokens else missing("J/token", source="no token was trained"),
        phases=_phases(runs),
        phase_power=_power(runs),
        closure=_closure(runs, joules),
        attribution="; ".join(dict.fromkeys(run.energy.attribution for run in runs if run.energy.attribution)),
        modules=_rows(runs, lambda energy: energy.modules),
        ops=_rows(runs, lambda energy: energy.ops),
        model=last.model,
    )


def _whole(runs: Sequence[Run], components: Mapping[str, Quantity]) -> Quantity:
    """The sum over components; over the attempts' totals where no attempt has components."""
    boundary = runs[-1].energy.total.boundary
    if not components:
        return _add(runs, [run.energy.total for run in runs])
    return total(list(components.values()), boundary=boundary)


def _by_name(runs: Sequence[Run], read: Callable[[Energy], Mapping[str, Quantity]]) -> dict[str, Quantity]:
    names = dict.fromkeys(chain.from_iterable(read(run.energy) for run in runs))
    return {name: _sum_of(runs, name, read) for name in names}


def _sum_of(runs: Sequence[Run], name: str, read: Callable[[Energy], Mapping[str, Quantity]]) -> Quantity:
    """One name's sum over the attempts that have it; one that has not lacks the part, or calls it otherwise."""
    having = [run for run in runs if name in read(run.energy)]
    return _add(having, [read(run.energy)[name] for run in having])


def _add(runs: Sequence[Run], parts: Sequence[Quantity]) -> Quantity:
    """Linear within a machine, in quadrature across machines."""
    machines: dict[Any, list[Quantity]] = {}
    for run, part in zip(runs, parts, strict=True):
        machines.setdefault(_machine(run), []).append(part)
    sums = [common_sum(found) for found in machines.values()]
    return sums[0] if len(sums) == 1 else total(sums, boundary=sums[-1].boundary, source=added_up(parts))


def _machine(run: Run) -> str:
    """What tells one machine's sensors from another's."""
    known = run.environment
    return repr((known.get("host"), known.get("cpu"), [board.get("uuid") for board in known.get("devices") or []]))


def _attributed(run: Run) -> bool:
    """Whether an attempt could tell its phases apart; a short one often cannot."""
    return any(joules.present for joules in run.energy.phases.values())


def _phases(runs: Sequence[Run]) -> dict[str, Quantity]:
    """Joules by phase; those of attempts that could not tell stand apart, so that nothing of the total is lost."""
    known = [run for run in runs if _attributed(run)]
    if not known:
        return dict(runs[-1].energy.phases)
    phases = {name: q for name, q in _by_name(known, lambda energy: energy.phases).items() if q.present}
    rest = [run for run in runs if not _attributed(run) and run.energy.total.present and run.time.total.value]
    if rest:
        phases[UNATTRIBUTED] = _add(rest, [run.energy.total for run in rest])
    return phases


def _closure(runs: Sequence[Run], joules: Sequence[float]) -> Quantity:
    """The parts' sum over the total; an attempt that was not divided is one part."""
    if not any(map(_attributed, runs)):
        return runs[-1].energy.closure
    whole = exact(1.0, "1", source="not divided into phases")
    return weighted([run.energy.closure if _attributed(run) else whole for run in runs], joules)


def _power(runs: Sequence[Run]) -> dict[str, Quantity]:
    """Watts of each phase: a mean, weighted by the seconds that its joules and watts tell of."""
    names = dict.fromkeys(chain.from_iterable(run.energy.phase_power for run in runs))
    watts = {name: weighted(*_watts_and_seconds(runs, name)) for name in names}
    rest = [run for run in runs if not _attributed(run) and run.energy.total.present and run.time.total.value]
    if watts and rest:
        length = sum(run.time.total.value or 0.0 for run in rest)
        watts[UNATTRIBUTED] = scaled(_add(rest, [run.energy.total for run in rest]), 1 / length, "W")
    return watts


def _watts_and_seconds(runs: Sequence[Run], name: str) -> tuple[list[Quantity], list[float]]:
    watts = [run.energy.phase_power[name] for run in runs if name in run.energy.phase_power]
    joules = [run.energy.phases.get(name) for run in runs if name in run.energy.phase_power]
    seconds = [(j.value or 0.0) / w.value if j and w.value else 0.0 for w, j in zip(watts, joules, strict=True)]
    return watts, seconds


def _rows(runs: Sequence[Run], read: Callable[[Energy], Sequence[EnergyRow]]) -> list[EnergyRow]:
    """Joules by module or op, the costliest first; where an attempt could not tell, nobody can."""
    if not all(read(run.energy) for run in runs):
        return []
    named = [{row.name: row.energy for row in read(run.energy)} for run in runs]
    names = dict.fromkeys(chain.from_iterable(named))
    rows = [EnergyRow(name=name, energy=common_sum([n[name] for n in named if name in n])) for name in names]
    return sorted(rows, key=lambda row: -(row.energy.value or 0.0))
