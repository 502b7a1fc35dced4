"""Carbon intensities of grids: yearly averages, from the tables that codecarbon ships.

The tables are read as files; nothing is looked up over the network, and the package itself is not imported, which
would take longer than everything else here. They differ in year and in scope (lifecycle or direct combustion), so
each figure carries both in its source.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, estimate

POUND_G = 453.59237
"""Grams in a pound, by definition."""


class CarbonError(ValueError):
    """A location, an intensity or a PUE that cannot be used; the message is one line."""


def known_countries() -> dict[str, str]:
    """ISO 3166-1 alpha-3 codes of the countries in the table, with their names."""
    return {code: row["country_name"] for code, row in sorted(_countries().items())}


def known_regions(country: str) -> list[str]:
    """Names of the regions within a country that have a figure of their own; empty for most countries."""
    reader = _REGIONS.get(country)
    return sorted(reader(country)) if reader else []


def world() -> Quantity:
    """Average intensity of the world in g/kWh, weighted by generation.

    The interval holds the countries between the 5 % and the 95 % quantile of generation: it says where a machine may
    stand, not how well the average is known.
    """
    rows = sorted((row["carbon_intensity"], row["total_TWh"]) for row in _countries().values())
    generation = sum(twh for _, twh in rows)
    mean = sum(intensity * twh for intensity, twh in rows) / generation
    source = (
        f"no location given: average of {len(rows)} countries weighted by generation, interval from the 5 % to the "
        f"95 % quantile of generation; {_COUNTRY_SOURCE}"
    )
    limits = (_quantile(rows, 0.05 * generation), _quantile(rows, 0.95 * generation))
    return estimate(mean, "g/kWh", method="assumed", source=source, limits=limits, u_systematic=_spread(limits))


def country_intensity(country: str) -> Quantity:
    """Yearly average of a country in g/kWh; no interval is claimed, as the table gives none.

    Raises:
        CarbonError: the table has no such code, or no usable figure for it.
    """
    row = _countries().get(country)
    if row is None:
        raise CarbonError(
            f"--country {country}: no grid is known by this code; codes are ISO 3166-1 alpha-3, for example FRA"
        )
    return _modelled(row["carbon_intensity"], f"{row['country_name']}, average of {row['year']}, {_COUNTRY_SOURCE}")


def region_intensity(country: str, region: str) -> Quantity:
    """Yearly average of a state, a province or a bidding zone in g/kWh.

    Raises:
        CarbonError: the country has no regions in the tables, or none of this name.
    """
    reader = _REGIONS.get(country)
    if reader is None:
        have = ", ".join(_REGIONS)
        raise CarbonError(f"--region {region}: {country} has no regions in the tables; countries that have: {have}")
    found = {name.casefold(): figure for name, figure in reader(country).items()}.get(region.casefold())
    if found is None:
        names = ", ".join(known_regions(country)[:5])
        raise CarbonError(f"--region {region}: no region of {country} is known by this name; known are {names}, ...")
    return _modelled(*found)


_COUNTRY_SOURCE = "lifecycle (Our World in Data and Ember, codecarbon's tables)"

_Figures = Mapping[str, tuple[float, str]]
"""g/kWh and source by region name."""


def _us_states(_: str) -> _Figures:
    table = _load("2023/usa_emissions.json")
    source = "eGRID 2023 average, direct combustion (EPA, codecarbon's tables)"
    states = {name: row["emissions"] for name, row in table.items() if not name.startswith("_") and name != "usa"}
    # lb/MWh to g/kWh
    return {name: (pounds * POUND_G / 1000, f"{name.title()}, {source}") for name, pounds in states.items()}


def _canadian_provinces(_: str) -> _Figures:
    per_source = _load("carbon_intensity_per_source.json")
    source = "generation mix × direct combustion of coal, oil and gas (codecarbon's tables of 2023)"
    fuels = {"coal": "coal", "petroleum": "petroleum", "naturalGas": "natural_gas"}
    return {
        name: (
            sum(mix[fuel] * per_source[key] for fuel, key in fuels.items()) / mix["total"],
            f"{name.title()}, {source}",
        )
        for name, mix in _load("2023/canada_energy_mix.json").items()
    }


def _chinese_provinces(_: str) -> _Figures:
    source = "CO2 only, direct combustion (MEE and NBS of China, codecarbon's tables)"
    rows = _load("2023/china_provincial_emissions.json")["data"].values()
    return {
        name: (row["emission_factor"], f"{row['description']}, average of {row['year']}, {source}")
        for row in rows
        for name in row["names"]
    }


def _nordic_zones(country: str) -> _Figures:
    source = "generation mix × lifecycle factors (ENTSO-E, codecarbon's tables)"
    return {
        zone: (row["emission_factor"], f"{row['description']}, average of {row['year']}, {source}")
        for zone, row in _load("nordic_emissions.json")["data"].items()
        if zone.startswith(_NORDIC_PREFIX[country])
    }


_NORDIC_PREFIX = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}

_REGIONS: Mapping[str, Callable[[str], _Figures]] = {
    "USA": _us_states,
    "CAN": _canadian_provinces,
    "CHN": _chinese_provinces,
    "SWE": _nordic_zones,
    "NOR": _nordic_zones,
    "FIN": _nordic_zones,
}


@cache
def _load(name: str) -> dict[str, Any]:
    spec = find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        raise CarbonError("the tables of carbon intensities are not installed; install codecarbon 3.3.2 or later")
    path = Path(spec.submodule_search_locations[0]) / "data" / "private_infra" / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CarbonError(f"{path}: cannot be read ({error}); install codecarbon 3.3.2 or later") from None


def _countries() -> dict[str, dict[str, Any]]:
    """The countries with a usable figure: an intensity of 0 is a rounding of very little generation, not a fact."""
    return {code: row for code, row in _load("global_energy_mix.json").items() if row["carbon_intensity"]}


def _modelled(value: float, source: str) -> Quantity:
    return Quantity(value=value, unit="g/kWh", method="modelled", source=source)


def _quantile(rows: list[tuple[float, float]], generation: float) -> float:
    """The intensity below which the given generation lies; rows of (intensity, generation) in order."""
    below = 0.0
    for intensity, twh in rows:
        below += twh
        if below >= generation:
            return intensity
    return rows[-1][0]


def _spread(limits: tuple[float, float]) -> float:
    return (limits[1] - limits[0]) / (2 * COVERAGE_FACTOR)
