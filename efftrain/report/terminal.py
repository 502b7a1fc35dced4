"""The comparison table on a terminal, or plain when it is piped.

What casts doubt on the figures comes first, then the table with the most useful figures first, then what its signs mean
and what did not run. A console too narrow for one table gets two, with the variants' names in both.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from efftrain.comparison.statistics import MIN_PAIRS
from efftrain.record.schema import Ratio, Run, Study
from efftrain.report.bill import BillRow, bill
from efftrain.report.classification import classification_views
from efftrain.report.figures import FIGURES
from efftrain.report.flags import Flag
from efftrain.report.format import figure, span, times, times_span
from efftrain.report.overview import Overview, VariantView, overview
from efftrain.report.phases import PhaseView, phase_views

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Cell = Callable[[VariantView], str]

SAID_IN_LEGEND = frozenset({"enough_seeds", "energy_complete", "energy_measured", "tokens_per_parameter"})
"""Warnings that the lines below the table say anyway; the written reports list them all."""

ENERGY = "energy/token"
STYLES = {"failed": "bold red", "warning": "yellow", "better": "green", "worse": "red"}


def render(study: Study, runs: Sequence[Run], console: "Console") -> None:
    """Print the comparison of `study` on `console`."""
    view = overview(study, runs)
    console.print(f"[bold]{_plain(study.study_id)}[/bold]: {_plain(view.subtitle)}", highlight=False)
    unfinished = [f"[bold red]unfinished[/bold red] {_plain(text)}" for text in view.unfinished]
    _lines(console, [*unfinished, *map(_flag, view.flagged("failed"))])
    rows = bill(study, runs)
    if rows:
        _bill(console, rows)
    else:
        _tables(console, view)
        _lines(console, [f"[bold]{_plain(text)}[/bold]" for text in view.findings])
    known = classification_views(view.variants) if not rows else []  # the bill has the same figures
    _lines(console, [f"[bold]{_plain(each.variant)}[/bold] {_plain(each.line)}" for each in known])
    _phases(console, phase_views(view.variants))
    _lines(console, [f"[dim]{_plain(text)}[/dim]" for text in view.legend])
    _lines(console, [_flag(f) for f in view.flagged("warning") if f.check not in SAID_IN_LEGEND])
    _lines(console, [f"[bold]not run[/bold] {_plain(f'{name}: {reason}')}" for name, reason in view.not_run])


def _phases(console: "Console", views: Sequence[PhaseView]) -> None:
    """Shares of the joules by phase, a line a variant; variants without an answer give their reason once."""
    known = [f"  {_plain(view.variant)}: {_plain(view.line)}" for view in views if view.rows]
    reasons: dict[str, list[str]] = {}
    for view in views:
        if not view.rows:
            reasons.setdefault(view.how, []).append(view.variant)
    why = [f"  [dim]{_plain(', '.join(names))}: {_plain(how)}[/dim]" for how, names in reasons.items()]
    if known or why:
        _lines(console, ["[bold]Joules by phase[/bold]", *known, *why])


def _bill(console: "Console", rows: Sequence[BillRow]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    for row in rows:
        table.add_row(_plain(row.label), _plain(row.text), _plain(row.method or row.source))
    console.print()
    console.print(table)


def _tables(console: "Console", view: Overview) -> None:
    if not view.variants:
        return
    whole = _table(view, list(COLUMNS))
    fits = whole.__rich_measure__(console, console.options).maximum <= console.width
    rest = ["variant", *(name for name in COLUMNS if name not in FIRST_HALF)]
    for table in [whole] if fits else [_table(view, FIRST_HALF), _table(view, rest)]:
        console.print()
        console.print(table)


def _table(view: Overview, names: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    methods = {v.means["energy_per_token"].method for v in view.variants} - {"missing"}
    shared = f"\n({methods.pop()})" if len(methods) == 1 else ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in names:
        left = name in FIRST_HALF
        header = f"{name}{shared}" if name == ENERGY else name
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    for variant in view.variants:
        own = "" if shared else variant.means["energy_per_token"].method
        cells = {name: COLUMNS[name](variant) for name in names}
        if ENERGY in cells and cells[ENERGY] != own:
            cells[ENERGY] = _stack(cells[ENERGY], own)
        table.add_row(*cells.values())
    return table


def _variant(view: VariantView) -> str:
    return f"[bold]{_plain(view.name)}[/bold]{'*' if view.summary.on_pareto_front else ''}"


def _energy(view: VariantView) -> str:
    quantity = view.means["energy_per_token"]
    like = view.energy_like
    return _stack(figure(quantity, interval=False, like=like), span(quantity, like=like))


def _ratio(metric: str) -> Cell:
    def cell(view: VariantView) -> str:
        ratio = view.summary.ratios.get(metric)
        return _ratio_cell(ratio) if ratio else "baseline"

    return cell


def _ratio_cell(ratio: Ratio) -> str:
    verdict = ratio.verdict if ratio.pairs >= MIN_PAIRS else ""
    style = STYLES.get(verdict)
    coloured = f"[{style}]{verdict}[/{style}]" if style else verdict
    return _stack(times(ratio), _plain(times_span(ratio)), coloured)


def _mean(name: str) -> Cell:
    def cell(view: VariantView) -> str:
        return FIGURES[name].text(view.means[name], interval=False)

    return cell


COLUMNS: dict[str, Cell] = {
    "variant": _variant,
    ENERGY: _energy,
    "vs baseline": _ratio("energy_per_token"),
    "energy\nto target": _ratio("energy_to_target"),
    "token/s": lambda view: _mean("tokens_per_second")(view).removesuffix(" token/s"),
    "peak\nmemory": _mean("peak_memory"),
    "val.\nloss": lambda view: _mean("final_validation")(view).partition(" nat/")[0],
    "MFU": _mean("mfu"),
    "CO₂e/run": _mean("carbon_total"),
    "runs": lambda view: view.runs_ok,
}
FIRST_HALF = ["variant", ENERGY, "vs baseline", "energy\nto target"]


def _flag(flag: Flag) -> str:
    style = STYLES[flag.status]
    return f"[{style}]{flag.label}[/{style}] {_plain(f'{flag.heading} ({flag.where}): {flag.detail}')}"


def _lines(console: "Console", lines: Sequence[str]) -> None:
    """A block of lines below an empty one; nothing for no lines."""
    if lines:
        console.print()
    for line in lines:
        console.print(line, highlight=False)


def _stack(*lines: str) -> str:
    return "\n".join(filter(None, lines))


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape

    return escape(text)
