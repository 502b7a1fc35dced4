"""What a run's starting weights had cost, beside its own bill and never in it; and what of them it trains."""

from collections.abc import Sequence

from efftrain.comparison.statistics import mean_of
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Origin, Run
from efftrain.report.format import figure


def origin_lines(runs: Sequence[Run]) -> list[str]:
    """A sentence for each checkpoint that runs began with, and one for what adapters leave to be trained."""
    origins = {run.origin.path: run.origin for run in runs if run.origin}
    lines = [_sentence(o, [r for r in runs if r.origin and r.origin.path == path]) for path, o in origins.items()]
    trained = {(r.trainable_parameters, r.parameters) for r in runs if r.trainable_parameters is not None}
    return [*lines, *(_adapters(some, whole) for some, whole in sorted(trained))]


def origin_name(origin: Origin) -> str:
    """The checkpoint in words: which run made it, and how long that run had trained."""
    return f"{origin.run_id or origin.path}, {origin.steps:,} steps, {origin.tokens:,} tokens"


def _sentence(origin: Origin, runs: Sequence[Run]) -> str:
    who, they = ("this run", "it") if len(runs) == 1 else ("these runs, on average,", "they")
    what = f"the checkpoint that {they} began with ({origin_name(origin)})"
    cost = origin.training_energy
    had = f"had cost {_joules(cost)}" if cost.present else f"had cost what nobody knows ({cost.source})"
    own = _joules(mean_of([run.energy.total for run in runs]))
    return f"{who.capitalize()} took {own}; {what} {had}, which is not in this bill."


def _joules(energy: Quantity) -> str:
    return f"{figure(energy, interval=False)} ({energy.method})" if energy.present else figure(energy)


def _adapters(trained: int, whole: int) -> str:
    return f"{trained:,} weights are trained (LoRA); the model itself has {whole:,}."
