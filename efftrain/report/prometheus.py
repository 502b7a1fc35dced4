"""Figures of runs as a Prometheus text file, for node_exporter's textfile collector or a push gateway.

Each figure is a gauge in base units with the run, the variant and the method as labels; the ends of its 95 % interval
are gauges of their own, and what is missing is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_ENDS = (
    ("", "value", ""),
    ("_low", "low", " Lower end of the 95 % interval."),
    ("_high", "high", " Upper end of the 95 % interval."),
)
"""Suffix of a metric's name, the field of the figure, and what is added to the help."""


def _classes(run: Run, name: str) -> Quantity | None:
    return getattr(run.classification, name) if run.classification else None


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric.

    Attributes:
        name: without the project's name and the unit.
        unit: base unit in the plural, the end of the metric's name; empty for a pure number.
        text: what it is.
        take: its figures in a run, by the value of the label `part`; None where a run has none.
        part: a label of its own; empty for a metric with one figure a run.
    """

    name: str
    unit: str
    text: str
    take: Callable[[Run], dict[str, Quantity] | Quantity | None]
    part: str = ""


GAUGES = (
    Gauge("energy", "joules", "Energy on the bill of a run.", lambda r: r.energy.total),
    Gauge("component_energy", "joules", "Energy of a run by component.", lambda r: r.energy.components, "component"),
    Gauge("phase_energy", "joules", "Energy of a run by phase and span.", lambda r: r.energy.phases, "phase"),
    Gauge("energy_per_token", "joules", "Energy over trained tokens.", lambda r: r.energy.per_token),
    Gauge("carbon_operational", "grams", "CO2e of the energy, location-based.", lambda r: r.carbon.operational),
    Gauge("carbon_market", "grams", "CO2e of the energy, market-based.", lambda r: r.carbon.market),
    Gauge("carbon_embodied", "grams", "CO2e of making the hardware, a run's share.", lambda r: r.carbon.embodied),
    Gauge("carbon_per_token", "grams", "SCI of a trained token, ISO/IEC 21031:2024.", lambda r: r.carbon.per_token),
    Gauge("water", "liters", "Water that the site used for a run.", lambda r: r.carbon.water),
    Gauge("duration", "seconds", "Time on the bill of a run.", lambda r: r.time.total),
    Gauge("tokens_per_second", "", "Tokens in a second of training steps.", lambda r: r.time.tokens_per_second),
    Gauge("peak_memory", "bytes", "Peak memory of a step.", lambda r: r.memory.peak),
    Gauge("model_flops_utilization", "ratio", "Model FLOPs over the peak rate.", lambda r: r.flops.mfu),
    Gauge("accuracy", "ratio", "Share of documents put into the right class.", lambda r: _classes(r, "accuracy")),
    Gauge("macro_f1", "ratio", "F1, mean over classes.", lambda r: _classes(r, "f1")),
    Gauge("validation_loss", "nats", "Final validation loss of a prediction.", lambda r: r.loss.final_validation),
)


def write_prometheus(path: Path, runs: Sequence[Run]) -> None:
    """Write the text format 0.0.4; a file that is there is replaced.

    Raises:
        OSError: `path` cannot be written.
    """
    lines = (line + "\n" for gauge in GAUGES for line in _metrics(gauge, runs))
    path.write_text("".join(lines), encoding="utf-8")


def _metrics(gauge: Gauge, runs: Sequence[Run]) -> Iterator[str]:
    """The metric and those of its interval's ends; nothing of what no run has."""
    figures = [(labels, quantity) for run in runs for labels, quantity in _figures(gauge, run)]
    for suffix, end, more in _ENDS:
        known = [
            (labels | {"method": quantity.method}, value)
            for labels, quantity in figures
            if (value := getattr(quantity, end)) is not None
        ]
        name = "_".join(filter(None, ("efftrain", f"{gauge.name}{suffix}", gauge.unit)))
        if known:
            yield f"# HELP {name} {gauge.text}{more}"
            yield f"# TYPE {name} gauge"
        for labels, value in known:
            said = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
            yield f"{name}{{{said}}} {float(value)!r}"


def _figures(gauge: Gauge, run: Run) -> Iterator[tuple[dict[str, str], Quantity]]:
    labels = {"study": run.study_id, "run": run.run_id, "variant": run.variant, "seed": str(run.seed)}
    found = gauge.take(run)
    if isinstance(found, Quantity):
        yield labels, found
    elif found is not None:
        for name, quantity in found.items():
            yield labels | {gauge.part: name}, quantity
