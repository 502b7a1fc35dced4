"""Grams of CO2e of a run: energy × PUE × intensity of the grid, and the making of the hardware beside it.

`resolve` turns what the user says about the place into the form that the journal's header keeps; `run_carbon`
multiplies. Without a location the world average is assumed, and the same run is shown under several grids. Rates are
those of the Software Carbon Intensity specification (SCI 1.1, ISO/IEC 21031:2024), which takes location-based figures:
what the user's contract says about the electricity stands beside them and enters no total.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efftrain.meters.carbon.embodied import DEFAULT_LIFETIME_YEARS, DEFAULT_UTILIZATION, embodied
from efftrain.meters.carbon.equivalents import equivalents
from efftrain.meters.carbon.grids import CarbonError, country_intensity, known_countries, region_intensity, world
from efftrain.meters.carbon.intensity_profile import covering, intensity_over, read_profile
from efftrain.meters.windows import Window, seconds
from efftrain.record.quantities import Quantity, exact, missing, product, scaled, total
from efftrain.record.schema import Carbon, RegionCarbon

__all__ = [
    "CarbonError", "carbon_section", "facility_energy", "known_countries", "operational", "resolve", "run_carbon",
]  # fmt: skip

JOULES_PER_KWH = 3.6e6
WORLD = "world average"
REGIONS = ("FRA", "SWE", "DEU", "USA", "CHN", "IND", "POL")
"""Grids from nearly carbon-free to nearly all coal, shown beside the run's own."""

LOCATION_BASED = "location-based: energy × PUE × grid average"
MARKET_BASED = "market-based: energy × PUE × intensity of the contract; enters no total"
_NO_HARDWARE = missing("g", source="embodied carbon: nothing is known of the hardware", boundary="making of hardware")


def resolve(
    country: str | None = None,
    region: str | None = None,
    intensity: float | None = None,
    pue: float | None = None,
    *,
    market_intensity: float | None = None,
    wue: float | None = None,
    lifetime_years: float | None = None,
    utilization: float | None = None,
    profile: str | Path | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """The header's `carbon` entry from the options of a command.

    Args:
        country: ISO 3166-1 alpha-3 code; None for the world average.
        region: a state, province or bidding zone within it.
        intensity: g/kWh, in place of the table's figure.
        pue: power usage effectiveness of the site, at least 1.
        market_intensity: g/kWh of the user's own contract, 0 for carbon-free.
        wue: water usage effectiveness of the site, L per kWh of the machines.
        lifetime_years: how long the hardware is kept.
        utilization: share of that time in which it is used.
        profile: a file of hourly intensities, in place of the yearly average.
        now: Unix seconds; the time if not given.

    Raises:
        CarbonError: one of them cannot be used.
    """
    if region is not None and country is None:
        raise CarbonError(f"--region {region}: needs the country it lies in, for example --country USA")
    if profile is not None and intensity is not None:
        raise CarbonError("--intensity-profile and --intensity say the same thing twice; give one of them")
    location, figure = _place(country, region)
    if intensity is not None:
        figure = _number("--intensity", intensity, "g/kWh", "g/kWh above 0, for example 56", least=math.ulp(0.0))
        location = f"{location}, given intensity" if country else "given intensity"
    regions = [(WORLD, world()), *((known_countries()[code], country_intensity(code)) for code in REGIONS)]
    found = {
        "location": location,
        "country": country.upper() if country else None,
        "region": region,
        "intensity": _plain(figure),
        "pue": _plain(_pue(pue)),
        "regions": [{"location": name, "intensity": _plain(grid)} for name, grid in regions],
        "embodied": _embodied_settings(lifetime_years, utilization),
    }
    if market_intensity is not None:
        form = "g/kWh of at least 0, for example 0 for a contract without carbon"
        found["market_intensity"] = _plain(_number("--market-intensity", market_intensity, "g/kWh", form))
    if wue is not None:
        found["wue"] = _plain(_number("--wue", wue, "L/kWh", "L/kWh of at least 0, for example 1.8"))
    return (
        found if profile is None else {**found, **_hourly(Path(profile), time.time() if now is None else now, country)}
    )


def run_carbon(
    header: Mapping[str, Any],
    energy: Quantity,
    windows: Sequence[Window],
    energy_over: Callable[[Sequence[Window]], Quantity],
    *,
    tokens: int,
    model_flops: float | None,
) -> Carbon:
    """CO2e of a run in g, with the intensity of its own hours and its share of the hardware.

    Args:
        header: the journal's header line.
        energy: the run's energy in J.
        windows: the billed stretches that it was used in, ns.
        energy_over: energy in J of some windows, as `Ledger.total`.
        tokens: tokens trained.
        model_flops: FLOP of all steps by the model's convention, or None where they were not counted.
    """
    carbon = header["carbon"]
    made = embodied(header.get("environment", {}), seconds(windows), carbon.get("embodied", {}))
    intensity = _run_intensity(header, windows, energy_over)
    return carbon_section(energy, carbon, tokens, model_flops, intensity=intensity, hardware=made)


def carbon_section(
    energy: Quantity,
    header: Mapping[str, Any],
    tokens: int,
    model_flops: float | None,
    *,
    intensity: Quantity | None = None,
    hardware: Quantity = _NO_HARDWARE,
) -> Carbon:
    """CO2e of some energy in g.

    Args:
        energy: in J.
        header: the journal header's `carbon` entry.
        tokens: tokens trained.
        model_flops: FLOP of all steps by the model's convention, or None where they were not counted.
        intensity: location-based, g/kWh; the header's if not given.
        hardware: embodied CO2e in g.
    """
    grid = intensity or _quantity(header["intensity"], "g/kWh")
    here = operational(energy, header, grid)
    whole = _with_embodied(here, hardware)
    market, wue = _optional(header, "market_intensity", "g/kWh"), _optional(header, "wue", "L/kWh")
    return Carbon(
        location=header["location"],
        country=header.get("country"),
        region=header.get("region"),
        intensity=grid,
        pue=_quantity(header["pue"], "1"),
        operational=here,
        embodied=hardware,
        total=whole,
        per_token=_per(whole, tokens, "token", "no token was trained"),
        per_exaflop=_per(whole, (model_flops or 0) / 1e18, "EFLOP", "no model FLOPs were counted"),
        regions=[_elsewhere(energy, header, place, hardware) for place in header["regions"]],
        market=None if market is None else operational(energy, header, market, basis=MARKET_BASED),
        market_intensity=market,
        water=None if wue is None else _water(energy, wue),
        wue=wue,
        equivalents=equivalents(whole),
    )


def facility_energy(energy: Quantity, header: Mapping[str, Any]) -> Quantity:
    """Energy × PUE in kWh: what the site draws for the machine."""
    pue = _quantity(header["pue"], "1")
    boundary = f"{pue.source}; energy: {energy.boundary}"
    return product([scaled(energy, 1 / JOULES_PER_KWH, "kWh"), pue], "kWh", boundary=boundary)


def operational(
    energy: Quantity, header: Mapping[str, Any], intensity: Quantity | None = None, *, basis: str = LOCATION_BASED
) -> Quantity:
    """Energy × PUE × intensity in g; a lower bound where the energy is one.

    Args:
        energy: in J.
        header: the journal header's `carbon` entry.
        intensity: g/kWh; the header's if not given.
        basis: what kind of intensity that is, for the boundary.
    """
    site = facility_energy(energy, header)
    grid = intensity or _quantity(header["intensity"], "g/kWh")
    return product([site, grid], "g", boundary=f"{basis}; {site.boundary}")


def _run_intensity(
    header: Mapping[str, Any], windows: Sequence[Window], energy_over: Callable[[Sequence[Window]], Quantity]
) -> Quantity:
    """Location-based intensity in g/kWh of a run's own hours where a profile was given, else the yearly average."""
    carbon = header["carbon"]
    if carbon.get("profile") is None:
        return _quantity(carbon["intensity"], "g/kWh")
    return intensity_over(carbon["profile"], header.get("clock", {}), windows, energy_over)


def _place(country: str | None, region: str | None) -> tuple[str, Quantity]:
    if country is None:
        return WORLD, world()
    code = country.upper()
    figure = country_intensity(code)
    if region is None:
        return known_countries()[code], figure
    return f"{known_countries()[code]}, {region}", region_intensity(code, region)


def _hourly(path: Path, now: float, country: str | None) -> dict[str, Any]:
    """What a profile of intensities puts in place of the yearly average."""
    profile = covering(read_profile(path), now)
    mean = Quantity(value=profile.mean(), unit="g/kWh", method="assumed", source=f"mean of {profile.source}")
    place = {} if country else {"location": f"grid of {path.name}"}
    return {**place, "intensity": _plain(mean), "profile": profile.plain(now)}


def _embodied_settings(lifetime_years: float | None, utilization: float | None) -> dict[str, float]:
    lifetime = DEFAULT_LIFETIME_YEARS if lifetime_years is None else lifetime_years
    share = DEFAULT_UTILIZATION if utilization is None else utilization
    if not (math.isfinite(lifetime) and lifetime > 0):
        raise CarbonError(f"--lifetime-years {lifetime:g}: expected years above 0, for example 4")
    if not 0 < share <= 1:
        raise CarbonError(f"--utilization {share:g}: expected a share above 0 and up to 1, for example 0.85")
    return {"lifetime_years": lifetime, "utilization": share}


def _number(option: str, value: float, unit: str, form: str, *, least: float = 0.0) -> Quantity:
    if not (math.isfinite(value) and value >= least):
        raise CarbonError(f"{option} {value:g}: expected {form}")
    return exact(value, unit, source=f"given by {option}", method="assumed")


def _pue(value: float | None) -> Quantity:
    if value is None:
        source = "no PUE given: energy at the machine's own supply, facility overhead not counted"
        return exact(1.0, "1", source=source, method="assumed")
    if not (math.isfinite(value) and value >= 1):
        raise CarbonError(f"--pue {value:g}: expected a ratio of at least 1, for example 1.2")
    return exact(value, "1", source="PUE given by --pue", method="assumed")


def _elsewhere(
    energy: Quantity, header: Mapping[str, Any], place: Mapping[str, Any], hardware: Quantity
) -> RegionCarbon:
    intensity = _quantity(place["intensity"], "g/kWh")
    moved = operational(energy, header, intensity)
    return RegionCarbon(location=place["location"], intensity=intensity, total=_with_embodied(moved, hardware))


def _with_embodied(part: Quantity, hardware: Quantity) -> Quantity:
    beside = hardware.boundary if hardware.present else "embodied carbon not counted"
    source = "operational and embodied, each with its own source" if part.present else ""
    return total([part, hardware], boundary=f"{part.boundary}; {beside}", source=source)


def _per(whole: Quantity, count: float, what: str, why: str) -> Quantity:
    """SCI's (E × I + M) / R."""
    unit = f"g/{what}"
    if not count:
        return missing(unit, source=why, boundary=whole.boundary)
    source = f"SCI (ISO/IEC 21031:2024), (E × I + M) / R with R = {what}: {whole.source}"
    return scaled(whole, 1 / count, unit, source=source)


def _water(energy: Quantity, wue: Quantity) -> Quantity:
    """The Green Grid's WUE relates a site's water to the energy of its machines, before PUE."""
    boundary = "water used at the site; not where the electricity or the hardware is made"
    return product([scaled(energy, 1 / JOULES_PER_KWH, "kWh"), wue], "L", boundary=boundary)


def _plain(quantity: Quantity) -> dict[str, Any]:
    """A quantity as the header keeps it, without what is empty."""
    return {name: value for name, value in asdict(quantity).items() if value is not None and value != ""}


def _quantity(plain: Mapping[str, Any], unit: str) -> Quantity:
    return Quantity(**{"unit": unit, **plain})


def _optional(header: Mapping[str, Any], name: str, unit: str) -> Quantity | None:
    return _quantity(header[name], unit) if header.get(name) else None
