"""`efftrain carbon`: questions about the grid that need no training; so far, when to start."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efftrain.cli import options

if TYPE_CHECKING:
    from efftrain.meters.carbon.intensity_profile import Choice, Start

app = typer.Typer(
    help="What the grid says about when to train.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Keeps `window` a word of its own while it is the only command of the group."""


@app.command("window")
def window(
    *,
    intensity_profile: Annotated[Path, typer.Option(help="CSV of hourly carbon intensities, g/kWh.")],
    hours: Annotated[float, typer.Option(help="How long the job takes.")],
    power_w: Annotated[float | None, typer.Option(help="Its power in W, for grams instead of shares.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Name the greenest start in a file of hourly intensities for a job of a given length."""
    from efftrain.meters.carbon.grids import CarbonError
    from efftrain.meters.carbon.intensity_profile import greenest, read_profile

    with options.usage_errors():
        for option, value in (("--hours", hours), ("--power-w", power_w)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise CarbonError(f"{option} {value:g}: expected a number above 0")
        choice = greenest(read_profile(intensity_profile), hours * 3600)
    kwh = None if power_w is None else power_w * hours / 1000
    typer.echo(json.dumps(_plain(choice, hours, kwh)) if as_json else _text(choice, hours, kwh))


def _plain(choice: "Choice", hours: float, kwh: float | None) -> dict[str, Any]:
    """The answer for scripts: g/kWh, and g where a power was given."""
    starts = {"best": choice.best, "first": choice.first, "worst": choice.worst}
    return {
        "hours": hours,
        "energy_kwh": kwh,
        **{name: _plain_start(start, hours, kwh) for name, start in starts.items()},
        "saved_against_first": _saved(choice.best, choice.first, kwh),
        "saved_against_worst": _saved(choice.best, choice.worst, kwh),
    }


def _plain_start(start: "Start", hours: float, kwh: float | None) -> dict[str, Any]:
    return {
        "start": _iso(start.time),
        "end": _iso(start.time + hours * 3600),
        "intensity_g_per_kwh": start.intensity,
        "grams": None if kwh is None else start.intensity * kwh,
    }


def _saved(best: "Start", other: "Start", kwh: float | None) -> dict[str, float | None]:
    less = other.intensity - best.intensity
    return {
        "share": less / other.intensity if other.intensity else 0.0,
        "intensity_g_per_kwh": less,
        "grams": None if kwh is None else less * kwh,
    }


def _text(choice: "Choice", hours: float, kwh: float | None) -> str:
    from efftrain.report.format import number

    def amount(intensity: float) -> str:
        return f"{number(intensity)} g/kWh" if kwh is None else f"{number(intensity * kwh)} g"

    best = choice.best
    grams = "" if kwh is None else f", {amount(best.intensity)} of CO2e for {number(kwh)} kWh"
    lines = [
        f"start at {_iso(best.time)}, end at {_iso(best.time + hours * 3600)}",
        f"{number(best.intensity)} g/kWh on average{grams}",
    ]
    for name, start in (("the first start", choice.first), ("the worst start", choice.worst)):
        saved = _saved(best, start, kwh)
        less = amount(start.intensity - best.intensity)
        lines.append(f"{less} ({number(100 * (saved['share'] or 0.0))} %) less than {name}, {_iso(start.time)}")
    return "\n".join(lines)


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
