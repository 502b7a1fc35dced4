"""Rows to a table, and to the question whether the targets are met."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accuracy.rows import Row
from accuracy.run import OURS

MIN_COVERAGE, MIN_WINDOWS = 0.91, 200
"""In 200 trials, a true 95 % interval covers at least 91 % of them in 99 % of cases (binomial)."""
MARGIN = 0.005
"""How far our median error may lie above the best tool's in a line of the table, as a share of the true energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One scenario at one length of window.

    Attributes:
        errors: median absolute relative error by tool.
        covered: how many of our intervals hold the truth.
        claimed: of how many.
        half_width: median half-width of our intervals, as a share of the value; None: none has two ends.
    """

    scenario: str
    window_s: float
    windows: int
    errors: dict[str, float]
    covered: int
    claimed: int
    half_width: float | None


def lines(rows: Sequence[Row]) -> list[Line]:
    """The table, in the order of the rows."""
    keys = dict.fromkeys((row.scenario, row.window_s) for row in rows)
    ordered = sorted(keys, key=lambda key: ([k[0] for k in keys].index(key[0]), key[1]))
    return [_line(*key, [r for r in rows if (r.scenario, r.window_s) == key]) for key in ordered]


def _line(scenario: str, window_s: float, rows: Sequence[Row]) -> Line:
    ours = [row for row in rows if row.tool == OURS]
    verdicts = [row.covered for row in ours if row.covered is not None]
    return Line(
        scenario=scenario, window_s=window_s, windows=len(ours), errors=errors(rows), covered=sum(verdicts),
        claimed=len(verdicts), half_width=half_width(ours),
    )  # fmt: skip


def errors(rows: Iterable[Row]) -> dict[str, float]:
    """Median absolute relative error by tool."""
    by_tool: dict[str, list[float]] = {}
    for row in rows:
        by_tool.setdefault(row.tool, []).append(abs(row.error))
    return {tool: statistics.median(found) for tool, found in by_tool.items()}


def half_width(rows: Iterable[Row]) -> float | None:
    """Median half-width of the intervals that have two ends, as a share of the value."""
    widths = [
        (row.high - row.low) / 2 / row.value_j
        for row in rows
        if row.low is not None and row.high is not None and row.value_j
    ]
    return statistics.median(widths) if widths else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that was promised, and what came out."""

    promise: str
    outcome: str
    met: bool


def targets(rows: Sequence[Row]) -> list[Target]:
    """What issue and README promise, on the rows that count; peers may be absent, and then nothing is compared."""
    ours = [row for row in rows if row.tool == OURS and row.low is not None]
    covered, claimed = sum(bool(row.covered) for row in ours), len(ours)
    open_ended = sum(row.high is None for row in ours)
    share = covered / claimed if claimed else 0.0
    found = [
        Target(
            promise=f"the truth lies in our interval in at least {MIN_COVERAGE:.0%} of at least {MIN_WINDOWS} windows",
            outcome=f"{covered} of {claimed} ({share:.1%}); median half-width {_percent(half_width(ours))} %,"
            f" {open_ended} without an upper end",
            met=share >= MIN_COVERAGE and claimed >= MIN_WINDOWS,
        )
    ]
    overall = errors(rows)
    if len(overall) > 1:
        found.append(
            Target(
                promise="our median error is the smallest overall",
                outcome=", ".join(f"{tool} {_percent(error)} %" for tool, error in overall.items()),
                met=overall[OURS] <= min(overall.values()),
            )
        )
        behind = [line for line in lines(rows) if line.errors[OURS] > min(line.errors.values()) + MARGIN]
        cases = [_case(b, [r for r in rows if (r.scenario, r.window_s) == (b.scenario, b.window_s)]) for b in behind]
        found.append(
            Target(
                promise="our median error is never more than 0.5 points above the best tool's in a line",
                outcome="; ".join(cases) or "in no line",
                met=not behind,
            )
        )
    return found


def _case(line: Line, rows: Sequence[Row]) -> str:
    """A line in which another tool came out ahead, and in how many of its windows it did: whether chance explains it.

    All tools measure the same windows in the same order. Two-sided sign test: as many or more on one side by chance.
    """
    best = min(line.errors, key=lambda tool: line.errors[tool])
    ours, theirs = ([abs(row.error) for row in rows if row.tool == tool] for tool in (OURS, best))
    worse, n = sum(a > b for a, b in zip(ours, theirs, strict=True)), len(ours)
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(max(worse, n - worse), n + 1)) / 2**n)
    return (
        f"{line.scenario}, {line.window_s:g} s ({_percent(line.errors[OURS])} against {best}'s"
        f" {_percent(line.errors[best])}; larger in {worse} of {n} windows, p = {p:.2g})"
    )


def markdown(found: Sequence[Line]) -> list[str]:
    """The table's lines; the smallest error of each is bold."""
    tools = list(found[0].errors) if found else []
    head = ["scenario", "window", "n", *tools, "truth in our interval", "its half-width"]
    text = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for line in found:
        best = min(line.errors.values())
        cells = [f"**{_percent(e)}**" if e == best else _percent(e) for e in line.errors.values()]
        covered = f"{line.covered} of {line.claimed}"
        width = f"±{_percent(line.half_width)} %" if line.half_width is not None else "–"
        row = [line.scenario, f"{line.window_s:g} s", str(line.windows), *cells, covered, width]
        text.append("| " + " | ".join(row) + " |")
    return text


def _percent(share: float | None) -> str:
    """Percent with three digits that say something."""
    if share is None:
        return "–"
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 100 else f"{percent:.1f}" if percent >= 10 else f"{percent:.2f}"
