"""Bytes at the peak of a step, against what was predicted for the same model.

What the prediction does not explain (workspaces, fragmentation, a context) stands apart and may be negative.
"""

from collections.abc import Sequence
from typing import Any

from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import Quantity, exact, missing
from efftrain.record.schema import Memory

_UNPREDICTED = missing("B", source="no memory was predicted for this model")


def memory_section(journal: Journal) -> Memory:
    """The highest measured peak of the run, and the prediction that was made for the same stage of the model."""
    lines = [line for line in journal.of("memory") if line["peak_bytes"] is not None]
    top = max(lines, key=lambda line: line["peak_bytes"], default=None)
    predicted = _prediction(journal.of("cost"), top)
    peak = _bytes(top, "peak_bytes")
    predicted_peak = _modelled(predicted["peak_bytes"], predicted["source"]) if predicted else _UNPREDICTED
    return Memory(
        peak=peak,
        peak_phase=top["peak_phase"] if top else None,
        predicted_peak=predicted_peak,
        categories=_categories(predicted),
        unexplained=_difference(peak, predicted_peak),
        process_peak=_bytes(max(journal.of("memory"), key=_process_peak, default=None), "process_peak_bytes"),
    )


def _prediction(costs: Sequence[Line], top: Line | None) -> dict[str, Any] | None:
    """The predicted memory of the stage in which the peak was measured; of the first stage where none was."""
    predictions = {line["from_step"]: line["predicted_memory"] for line in costs if "predicted_memory" in line}
    return predictions.get(top["from_step"] if top else min(predictions, default=None))


def _categories(predicted: dict[str, Any] | None) -> dict[str, Quantity]:
    if predicted is None:
        return {}
    return {name: _modelled(count, predicted["source"]) for name, count in predicted["categories"].items()}


def _process_peak(line: Line) -> int:
    return line["process_peak_bytes"] or 0


def _bytes(line: Line | None, name: str) -> Quantity:
    if line is None or line[name] is None:
        return missing("B", source="no memory was measured")
    source = line["source"] if name == "peak_bytes" else "high-water mark of the process's resident memory"
    return exact(line[name], "B", source=source)


def _modelled(count: float, source: str) -> Quantity:
    return Quantity(value=count, unit="B", method="modelled", source=source)


def _difference(peak: Quantity, predicted: Quantity) -> Quantity:
    if peak.value is None or predicted.value is None:
        return missing("B", source="needs a measured and a predicted peak")
    return _modelled(peak.value - predicted.value, "measured peak − predicted peak")
