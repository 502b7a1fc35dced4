"""Grams of CO2e of a run: energy × PUE × intensity of the grid, and what is not counted beside it.

`resolve` turns what the user says about the place into the form that the journal's header keeps; `carbon_section`
multiplies. Without a location the world average is assumed, and the same run is shown under several grids.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from efftrain.meters.grids import CarbonError, country_intensity, known_countries, region_intensity, world
from efftrain.record.quantities import Quantity, exact, missing, product, scaled, total
from efftrain.record.schema import Carbon, RegionCarbon

__all__ = ["CarbonError", "carbon_section", "known_countries", "operational", "resolve"]

JOULES_PER_KWH = 3.6e6
WORLD = "world average"
REGIONS = ("FRA", "SWE", "DEU", "USA", "CHN", "IND", "POL")
"""Grids from nearly carbon-free to nearly all coal, shown beside the run's own."""

_EMBODIED = missing("g", source="embodied carbon is not yet counted", boundary="making of the hardware")
_OPERATIONAL = "location-based: energy × PUE × grid average"


def resolve(
    country: str | None = None,
    region: str | None = None,
    intensity: float | None = None,
    pue: float | None = None,
) -> dict[str, Any]:
    """The header's `carbon` entry from the options of a command.

    Args:
        country: ISO 3166-1 alpha-3 code; None for the world average.
        region: a state, province or bidding zone within it.
        intensity: g/kWh, in place of the table's figure.
        pue: power usage effectiveness of the site, at least 1.

    Raises:
        CarbonError: one of them cannot be used.
    """
    if region is not None and country is None:
        raise CarbonError(f"--region {region}: needs the country it lies in, for example --country USA")
    location, figure = _place(country, region)
    if intensity is not None:
        figure = _given_intensity(intensity)
        location = location if country else "given intensity"
    regions = [(WORLD, world()), *((known_countries()[code], country_intensity(code)) for code in REGIONS)]
    return {
        "location": location,
        "intensity": _plain(figure),
        "pue": _plain(_pue(pue)),
        "regions": [{"location": name, "intensity": _plain(grid)} for name, grid in regions],
    }


def carbon_section(energy: Quantity, header: Mapping[str, Any], tokens: int, model_flops: float | None) -> Carbon:
    """CO2e of a run in g.

    Args:
        energy: the run's energy in J.
        header: the journal header's `carbon` entry.
        tokens: tokens trained.
        model_flops: FLOP of all steps by the model's convention, or None where they were not counted.
    """
    here = operational(energy, header)
    whole = _with_embodied(here)
    return Carbon(
        location=header["location"],
        intensity=_quantity(header["intensity"], "g/kWh"),
        pue=_quantity(header["pue"], "1"),
        operational=here,
        embodied=_EMBODIED,
        total=whole,
        per_token=_per(whole, tokens, "g/token", "no token was trained"),
        per_exaflop=_per(whole, (model_flops or 0) / 1e18, "g/EFLOP", "no model FLOPs were counted"),
        regions=[_elsewhere(energy, header, grid) for grid in header["regions"]],
    )


def operational(energy: Quantity, header: Mapping[str, Any]) -> Quantity:
    """Energy × PUE × intensity in g; a lower bound where the energy is one."""
    kwh = scaled(energy, 1 / JOULES_PER_KWH, "kWh")
    pue, intensity = _quantity(header["pue"], "1"), _quantity(header["intensity"], "g/kWh")
    boundary = f"{_OPERATIONAL}; {pue.source}; energy: {energy.boundary}"
    return product([kwh, pue, intensity], "g", boundary=boundary)


def _place(country: str | None, region: str | None) -> tuple[str, Quantity]:
    if country is None:
        return WORLD, world()
    code = country.upper()
    figure = country_intensity(code)
    if region is None:
        return known_countries()[code], figure
    return f"{known_countries()[code]}, {region}", region_intensity(code, region)


def _given_intensity(value: float) -> Quantity:
    if not (math.isfinite(value) and value > 0):
        raise CarbonError(f"--intensity {value:g}: expected g/kWh above 0, for example 56")
    return exact(value, "g/kWh", source="given by --intensity", method="assumed")


def _pue(value: float | None) -> Quantity:
    if value is None:
        source = "no PUE given: energy at the machine's own supply, facility overhead not counted"
        return exact(1.0, "1", source=source, method="assumed")
    if not (math.isfinite(value) and value >= 1):
        raise CarbonError(f"--pue {value:g}: expected a ratio of at least 1, for example 1.2")
    return exact(value, "1", source="PUE given by --pue", method="assumed")


def _elsewhere(energy: Quantity, header: Mapping[str, Any], grid: Mapping[str, Any]) -> RegionCarbon:
    moved = operational(energy, {**header, "intensity": grid["intensity"]})
    intensity = _quantity(grid["intensity"], "g/kWh")
    return RegionCarbon(location=grid["location"], intensity=intensity, total=_with_embodied(moved))


def _with_embodied(part: Quantity) -> Quantity:
    return total([part, _EMBODIED], boundary=f"{part.boundary}; embodied carbon not counted")


def _per(whole: Quantity, count: float, unit: str, why: str) -> Quantity:
    return scaled(whole, 1 / count, unit) if count else missing(unit, source=why, boundary=whole.boundary)


def _plain(quantity: Quantity) -> dict[str, Any]:
    """A quantity as the header keeps it, without what is empty."""
    return {name: value for name, value in asdict(quantity).items() if value is not None and value != ""}


def _quantity(plain: Mapping[str, Any], unit: str) -> Quantity:
    return Quantity(**{"unit": unit, **plain})
