"""What a measurement cost, in a few lines for whoever has just waited for it."""

from pathlib import Path

from efftrain.record.quantities import Quantity, scaled
from efftrain.record.schema import Run
from efftrain.report.format import figure

JOULES_PER_WH = 3600.0


def paragraph(run: Run | None, folder: Path | None, problems: list[str]) -> str:
    """The figures as running text."""
    return " ".join(line.strip() for line in lines(run, folder, problems))


def lines(run: Run | None, folder: Path | None, problems: list[str]) -> list[str]:
    """The figures, one thing a line.

    Args:
        run: the record, or None where there is none.
        folder: where the report is, or None where nothing could be written.
        problems: what went wrong with measuring.
    """
    if run is None:
        return ["No record was made.", *(f"Problem: {text}." for text in problems)]
    components = "; ".join(f"{_words(name)} {_component(q)}" for name, q in run.energy.components.items())
    found = [
        f"{run.run_id}: {_ended(run)}{_work(run)} in {_duration(run.time.total.value)}.",
        f"Energy {_energy(run.energy.total)}.",
        *([f"Of which {components}."] if components else []),
        f"CO₂e {figure(run.carbon.total)}{_embodied(run)} at {figure(run.carbon.intensity, interval=False)} "
        f"({run.carbon.location}, {run.carbon.intensity.method}), PUE {figure(run.carbon.pue, interval=False)}.",
        *(f"Problem: {text}." for text in problems),
    ]
    if folder is not None:
        found.append(f"Report: {folder / 'report.html'}")
    return found


def _energy(total: Quantity) -> str:
    if total.value is None:
        return f"missing ({total.source})"
    wh = figure(scaled(total, 1 / JOULES_PER_WH, "Wh"), interval=False)
    bound = ", a lower bound" if total.lower_bound else ""
    return f"{figure(total)}, that is {wh}: {total.method}{bound}"


def _embodied(run: Run) -> str:
    """What of the grams does not come from the joules."""
    made = run.carbon.embodied
    return f", of which {figure(made, interval=False)} for making the hardware, the rest" if made.value else ""


def _component(quantity: Quantity) -> str:
    return "not read" if quantity.value is None else f"{figure(quantity)} {quantity.method}"


def _ended(run: Run) -> str:
    """The status, with what is known of how it came to it."""
    said = [note for note in run.notes if note.startswith(f"{run.status}: ")]
    return f"{run.status} ({said[-1].removeprefix(f'{run.status}: ')})" if said else run.status


def _work(run: Run) -> str:
    if not run.steps:
        return ""
    ranks = f" on {run.ranks} ranks" if run.ranks > 1 else ""
    return f", {run.steps:,} steps and {run.tokens:,} tokens{ranks}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _words(name: str) -> str:
    return {"gpu": "GPU", "cpu": "CPU", "dram": "memory"}.get(name, name.replace("_", " "))
