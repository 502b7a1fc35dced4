import csv
import json
import math
from pathlib import Path

import pytest

from efftrain.meters.carbon import CarbonError, carbon_section, resolve
from efftrain.record.quantities import estimate, exact, missing

PUBLISHED = list(csv.DictReader((Path(__file__).parent / "data" / "published_runs.csv").read_text().splitlines()))
GRAMS_PER_TONNE = 1e6


def published_joules(row):
    """Energy at the machines: hours × watts, or the printed MWh where the row has no watts."""
    if row["accel_hours"] and row["W"]:
        return float(row["accel_hours"]) * 3600 * float(row["W"])
    return float(row["printed_MWh"]) * 3.6e9


@pytest.mark.parametrize("row", [r for r in PUBLISHED if float(r["CI_kg_per_kWh"])], ids=lambda row: row["id"])
def test_published_arithmetic(row):
    """Rows whose grid is not printed as carbon-free; some round their printed figure to two digits."""
    given = resolve(intensity=1000 * float(row["CI_kg_per_kWh"]), pue=float(row["PUE"]))
    carbon = carbon_section(exact(published_joules(row), "J", source="published"), given, 0, None)
    assert carbon.operational.value == pytest.approx(float(row["printed_tCO2e"]) * GRAMS_PER_TONNE, rel=0.02)


def test_there_are_published_rows():
    assert len(PUBLISHED) >= 20


def test_country():
    carbon = carbon_section(exact(3.6e6, "J", source="x"), resolve("FRA", pue=1.5), 100, 2e18)
    assert carbon.location == "France"
    assert carbon.intensity.value == pytest.approx(56.039)
    assert carbon.operational.value == pytest.approx(1.5 * 56.039)
    assert carbon.per_token.value == pytest.approx(1.5 * 56.039 / 100)
    assert carbon.per_exaflop.value == pytest.approx(1.5 * 56.039 / 2)
    assert carbon.operational.low is None  # a yearly average claims no interval for an hour
    totals = {r.location: r.total.value for r in carbon.regions}
    assert len(totals) == 8
    for place, intensity in {"France": 56.039, "Sweden": 40.695, "United States": 369.47, "India": 713.441}.items():
        assert totals[place] == pytest.approx(1.5 * intensity, rel=1e-4)
    assert totals["world average"] == pytest.approx(1.5 * 481, rel=2e-3)


def test_region_in_a_country_is_in_the_location():
    assert resolve("usa", "Texas")["location"] == "United States, Texas"


def test_world_is_assumed_and_its_interval_holds_the_energy_s():
    energy = estimate(3.6e6, "J", method="measured", source="x", u_systematic=0.0255 * 3.6e6)
    plain = resolve()
    carbon = carbon_section(energy, plain, 1, 1.0)
    assert carbon.operational.method == "assumed"
    assert carbon.operational.value == pytest.approx(481, abs=1)
    below = (plain["intensity"]["value"] - plain["intensity"]["low"]) / plain["intensity"]["value"]
    assert carbon.operational.low == pytest.approx(carbon.operational.value * (1 - math.hypot(below, 0.05)), rel=1e-3)
    assert "facility overhead not counted" in carbon.operational.boundary


def test_embodied_is_missing_and_the_total_a_lower_bound():
    carbon = carbon_section(exact(3.6e6, "J", source="x"), resolve("FRA"), 1, 1.0)
    assert carbon.embodied.value is None
    assert (carbon.total.value, carbon.total.lower_bound) == (carbon.operational.value, True)
    assert carbon.total.high is None
    assert not carbon.operational.lower_bound


def test_a_lower_bound_of_energy_is_one_of_carbon():
    energy = estimate(3.6e6, "J", method="measured", source="x", lower_bound=True)
    carbon = carbon_section(energy, resolve(), 1, 1.0)
    assert carbon.operational.lower_bound
    assert carbon.operational.high is None


def test_missing_energy_is_missing_carbon():
    carbon = carbon_section(missing("J", source="no sensor"), resolve("FRA"), 10, 1e18)
    figures = [carbon.operational, carbon.total, carbon.per_token, carbon.per_exaflop]
    assert [q.value for q in figures + [r.total for r in carbon.regions]] == [None] * (4 + 8)
    assert "no sensor" in carbon.operational.source


def test_no_tokens_and_no_flops_are_missing():
    carbon = carbon_section(exact(1.0, "J", source="x"), resolve(), 0, None)
    assert (carbon.per_token.value, carbon.per_exaflop.value) == (None, None)


def test_the_header_entry_survives_json():
    assert json.loads(json.dumps(resolve("FRA"), allow_nan=False)) == resolve("FRA")


def test_given_figures_replace_the_tables():
    plain = resolve("DEU", intensity=20.0, pue=1.25)
    assert plain["location"] == "Germany"
    assert (plain["intensity"]["value"], plain["intensity"]["source"]) == (20.0, "given by --intensity")
    assert (plain["pue"]["value"], plain["pue"]["method"]) == (1.25, "assumed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"country": "FRX"}, "--country FRX: no grid is known by this code; codes are ISO 3166-1 alpha-3, for ex"),
        ({"region": "texas"}, "--region texas: needs the country"),
        ({"country": "USA", "region": "bavaria"}, "--region bavaria: no region of USA"),
        ({"country": "FRX", "intensity": 5.0}, "--country FRX"),
        ({"intensity": 0.0}, "--intensity 0: expected"),
        ({"intensity": -1.0}, "--intensity -1: expected"),
        ({"intensity": math.nan}, "--intensity nan: expected"),
        ({"intensity": math.inf}, "--intensity inf: expected"),
        ({"pue": 0.5}, "--pue 0.5: expected a ratio of at least 1"),
        ({"pue": math.nan}, "--pue nan: expected"),
        ({"pue": math.inf}, "--pue inf: expected"),
    ],
)
def test_bad_options_are_named_in_one_line(options, message):
    with pytest.raises(CarbonError) as caught:
        resolve(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
