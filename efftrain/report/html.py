"""The report as one HTML file that needs nothing else: no network, no second file, light or dark as the reader likes.

What casts doubt on the figures comes first. Every text from a record passes through the template's escaping; charts
travel as JSON in which no tag can end the script that holds them.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from efftrain.comparison.verdicts import COUNTED, METRICS
from efftrain.record.schema import Run, Study
from efftrain.report import charts
from efftrain.report.bill import bill
from efftrain.report.classification import METHOD, classification_views
from efftrain.report.figures import FIGURES
from efftrain.report.format import figure, percent, span, times, times_span
from efftrain.report.overview import Overview, overview
from efftrain.report.phases import phase_views

TEMPLATES = Path(__file__).parent / "templates"


def html(study: Study, runs: Sequence[Run]) -> str:
    """The text of `report.html`; about 1 MB, most of it the chart library."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    view = overview(study, runs)
    specs = _charts(view, runs)
    return environment.get_template("report.html.j2").render(
        view=view, study=study, bill=bill(study, runs), phases=phase_views(view.variants), figures=FIGURES,
        classifications=classification_views(view.variants), classification_method=METHOD,
        metrics=METRICS, figure=figure, percent=percent, span=span, times=times, times_span=times_span, charts=specs,
        missing_parts=_missing_parts(runs), ended_well=COUNTED,
        specs=Markup(_script_json({name: spec for name, (_, spec, _) in specs.items() if spec})),
        library=Markup(_library() if any(spec for _, spec, _ in specs.values()) else ""),
    )  # fmt: skip


def _charts(view: Overview, runs: Sequence[Run]) -> dict[str, tuple[str, charts.Spec | None, str]]:
    """Chart name to (title, specification or None, what to say beside it)."""
    names = [v.name for v in view.variants]
    return {
        "loss": (
            "Loss against energy",
            charts.loss_against_energy(runs, names),
            "One line a run. Further left at the same height is cheaper for the same loss.",
        ),
        "components": (
            "Energy by component",
            charts.energy_by_component(view.variants),
            "Mean of finished runs; only what was read.",
        ),
        "phases": (
            "Time by phase",
            charts.time_by_phase(view.variants),
            "Mean of a training step; recomputation is inside backward.",
        ),
    }


def _missing_parts(runs: Sequence[Run]) -> list[str]:
    found: dict[str, None] = {}  # a set that keeps its order
    for name, quantity in (item for run in runs for item in run.energy.components.items()):
        if quantity.value is None:
            found[f"{name.replace('_', ' ')}: missing: {quantity.source}"] = None
    return list(found)


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; it takes seconds to bundle, so it is made once a process."""
    from vl_convert import javascript_bundle

    return javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _script_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")
