"""The report as Markdown, to be pasted where people talk: checks, table, what it means, where it comes from."""

from collections.abc import Sequence
from pathlib import Path

from efftrain.record.schema import Ratio, Run, Study
from efftrain.report.bill import bill
from efftrain.report.classification import METHOD, classification_views
from efftrain.report.figures import FIGURES
from efftrain.report.format import figure, percent, times, times_span
from efftrain.report.overview import overview
from efftrain.report.phases import phase_views

TEMPLATES = Path(__file__).parent / "templates"


def markdown(study: Study, runs: Sequence[Run]) -> str:
    """The text of `report.md`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["cell"] = _cell
    view = overview(study, runs)
    return environment.get_template("report.md.j2").render(
        view=view, study=study, bill=bill(study, runs), phases=phase_views(view.variants), figures=FIGURES,
        classifications=classification_views(view.variants), classification_method=METHOD,
        figure=figure, percent=percent, ratio_text=_ratio_text,
    )  # fmt: skip


def _ratio_text(ratio: Ratio | None) -> str:
    if ratio is None:
        return "baseline"
    return " ".join(filter(None, (times(ratio), times_span(ratio), ratio.verdict)))


def _cell(text: object) -> str:
    """Text that neither ends a cell nor begins markup."""
    escaped = str(text).replace("\\", "\\\\").replace("\n", " ")
    for sign in "|<>*_`[":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
