"""What a single run cost, as one table: there is nothing to compare it with.

A run that did not end as planned enters no mean, but it has used its energy all the same, so its own record is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run, Study
from efftrain.report.classification import measures
from efftrain.report.figures import FIGURES
from efftrain.report.format import figure, percent

ALWAYS = ("time_total", "energy_total")
WHERE_KNOWN = (
    "energy_above_idle", "energy_per_token", "tokens_per_second", "time_step", "final_validation", "perplexity",
    "peak_memory", "mfu",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BillRow:
    """A figure in words."""

    label: str
    text: str
    method: str
    source: str


def bill(study: Study, runs: Sequence[Run]) -> list[BillRow]:
    """The figures of a study of one run, energy by component among them; empty where there is more to compare."""
    if len(runs) != 1 or len(study.variants) > 1:
        return []
    (run,) = runs
    unasked = {"perplexity"} if run.classification else set()
    known = [name for name in WHERE_KNOWN if name not in unasked and FIGURES[name].take(run).value]
    return [
        *(_figure(name, run) for name in ALWAYS),
        *(_row(f"of which {_words(name)}", q, figure(q)) for name, q in run.energy.components.items()),
        *_prepared(run),
        *_origin(run),
        *(_figure(name, run) for name in known),
        *_classification(run),
        _figure("carbon_total", run),
    ]


def _prepared(run: Run) -> list[BillRow]:
    """What preparing the text took, where that is on the bill; its joules stand among the phases, if they were told."""
    time = run.time.spans.get("prepare")
    return [_row("preparing the text in it", time, figure(time))] if time else []


def _origin(run: Run) -> list[BillRow]:
    if run.origin is None:
        return []
    cost = run.origin.training_energy
    return [_row("the checkpoint before, not in it", cost, figure(cost))]


def _classification(run: Run) -> list[BillRow]:
    found = measures(run.classification) if run.classification else {}
    return [_row(label, share, percent(share, interval=True)) for label, share in found.items()]


def _figure(name: str, run: Run) -> BillRow:
    shown = FIGURES[name]
    quantity = shown.take(run)
    return _row(shown.label, quantity, shown.text(quantity))


def _row(label: str, quantity: Quantity, text: str) -> BillRow:
    method = "" if quantity.method == "missing" else quantity.method
    return BillRow(label, text, method, quantity.source)


def _words(component: str) -> str:
    return {"gpu": "GPU", "cpu": "CPU", "dram": "memory"}.get(component, component.replace("_", " "))
