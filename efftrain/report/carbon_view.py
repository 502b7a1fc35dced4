"""What a report says about carbon: how the figure came about, what stands beside it, and the same run elsewhere.

One run is shown, the baseline's first that ended as planned, or the only one; the comparison has the means.
"""

from dataclasses import dataclass

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Carbon, Run
from efftrain.report.format import figure, number

SCI = "SCI (ISO/IEC 21031:2024): location-based and embodied, over"


@dataclass(frozen=True, slots=True)
class CarbonRow:
    """One line of the table: what it is, its figure, how it was obtained, and from what."""

    what: str
    text: str
    method: str
    source: str


def carbon_rows(run: Run | None) -> list[CarbonRow]:
    """The carbon of a run, part by part; nothing for no run."""
    if run is None:
        return []
    carbon = run.carbon
    return [
        _row("of the energy, location-based", carbon.operational, _grid(carbon)),
        *_market(carbon),
        _row("embodied in the hardware", carbon.embodied, carbon.embodied.source),
        _row("together", carbon.total, "location-based and embodied"),
        _row("for a token", carbon.per_token, f"{SCI} trained tokens"),
        _row("for an exaFLOP", carbon.per_exaflop, f"{SCI} model FLOPs"),
        *_water(carbon),
        *(CarbonRow("as much as", f"{number(e.amount, 2)} {e.what}", "", e.source) for e in carbon.equivalents),
    ]


def region_rows(run: Run | None) -> list[tuple[str, str, str]]:
    """(grid, its intensity, CO2e of the run there); nothing for no run."""
    rows = run.carbon.regions if run else []
    return [(row.location, figure(row.intensity), figure(row.total)) for row in rows]


def carbon_legend(run: Run) -> list[str]:
    """The lines below the comparison that say what CO2e means there."""
    carbon = run.carbon
    lines = [
        f"CO₂e: {carbon.location}, {figure(carbon.intensity)} ({carbon.intensity.method}: {carbon.intensity.source}), "
        f"PUE {figure(carbon.pue)} ({carbon.pue.method}: {carbon.pue.source})."
    ]
    if carbon.embodied.present:
        share = f"{figure(carbon.embodied)} in the {figure(carbon.total, interval=False)} of {run.run_id}"
        lines.append(f"Embodied in the hardware: {share} ({carbon.embodied.method}: {carbon.embodied.source}).")
    if carbon.market is not None:
        lines.append(f"Market-based, beside it and in no total: {figure(carbon.market)} of {run.run_id}.")
    return lines


def _row(what: str, quantity: Quantity, source: str) -> CarbonRow:
    return CarbonRow(what, figure(quantity), quantity.method, source if quantity.present else quantity.source)


def _grid(carbon: Carbon) -> str:
    return f"{carbon.location}, {figure(carbon.intensity)}: {carbon.intensity.source}; PUE {figure(carbon.pue)}"


def _market(carbon: Carbon) -> list[CarbonRow]:
    if carbon.market is None or carbon.market_intensity is None:
        return []
    source = f"{figure(carbon.market_intensity)}, {carbon.market_intensity.source}; in no total"
    return [_row("of the energy, market-based", carbon.market, source)]


def _water(carbon: Carbon) -> list[CarbonRow]:
    if carbon.water is None or carbon.wue is None:
        return []
    return [_row("water of the site", carbon.water, f"WUE {figure(carbon.wue)}, {carbon.wue.source}")]
