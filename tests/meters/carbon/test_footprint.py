import csv
import json
import math
from pathlib import Path

import pytest

from efftrain.meters.assemble import assemble
from efftrain.meters.carbon.embodied import embodied
from efftrain.meters.carbon.footprint import CarbonError, carbon_section, facility_energy, resolve
from efftrain.record.quantities import estimate, exact, missing

PUBLISHED = list(csv.DictReader((Path(__file__).parent / "data" / "published_runs.csv").read_text().splitlines()))
GRAMS_PER_TONNE = 1e6
KWH = exact(3.6e6, "J", source="x")
SETTINGS = {"lifetime_years": 4.0, "utilization": 0.85}
GPU = {"device": "cuda", "devices": [{"name": "NVIDIA H100 80GB HBM3"}], "cpu": {"cores": 64, "threads": 128}}


def published_joules(row):
    """Energy at the machines: hours × watts, or the printed MWh where the row has no watts."""
    if row["accel_hours"] and row["W"]:
        return float(row["accel_hours"]) * 3600 * float(row["W"])
    return float(row["printed_MWh"]) * 3.6e9


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["id"])
def test_published_grams(row):
    """Every row within 2 % of what is printed, through the market's intensity, which may be 0 as LUMI's is."""
    given = resolve(market_intensity=1000 * float(row["CI_kg_per_kWh"]), pue=float(row["PUE"]))
    carbon = carbon_section(exact(published_joules(row), "J", source="published"), given, 0, None)
    assert carbon.market.value == pytest.approx(float(row["printed_tCO2e"]) * GRAMS_PER_TONNE, rel=0.02)


@pytest.mark.parametrize("row", [r for r in PUBLISHED if float(r["CI_kg_per_kWh"])], ids=lambda row: row["id"])
def test_published_grams_by_location(row):
    given = resolve(intensity=1000 * float(row["CI_kg_per_kWh"]), pue=float(row["PUE"]))
    carbon = carbon_section(exact(published_joules(row), "J", source="published"), given, 0, None)
    assert carbon.operational.value == pytest.approx(float(row["printed_tCO2e"]) * GRAMS_PER_TONNE, rel=0.02)


@pytest.mark.parametrize("row", [r for r in PUBLISHED if r["printed_MWh"] and r["W"]], ids=lambda row: row["id"])
def test_published_energy(row):
    """What is printed is the site's energy, PUE included."""
    site = facility_energy(exact(published_joules(row), "J", source="published"), resolve(pue=float(row["PUE"])))
    assert site.value == pytest.approx(1000 * float(row["printed_MWh"]), rel=0.02)


def test_rows_whose_watts_were_assumed_are_the_board_s_limit():
    """They check arithmetic and nothing else; rows with measured watts lie below the limit of their board."""
    assert len(PUBLISHED) == 25
    limit = {"A100-80": 400.0, "384xA100-80": 400.0, "H100": 700.0}
    constructed = [r for r in PUBLISHED if r["kind"].startswith("constructed") and r["hardware"] in limit]
    assert len(constructed) == 11
    assert all(float(r["W"]) == limit[r["hardware"]] for r in constructed)
    assert len([r for r in PUBLISHED if r["kind"].startswith(("measured", "W measured"))]) == 11


def test_bloom_under_the_french_and_the_us_grid():
    """One run, printed as 24.7 t by its makers and as 183 t under another grid by Touvron et al.; ours both."""
    energy = exact(1_082_990 * 400 * 3600, "J", source="published")
    own = carbon_section(energy, resolve("FRA", intensity=57.0), 0, None)
    assert own.operational.value == pytest.approx(24.69 * GRAMS_PER_TONNE, rel=1e-3)
    other = carbon_section(energy, resolve("USA", intensity=385.0, pue=1.1), 0, None)
    assert other.operational.value == pytest.approx(183 * GRAMS_PER_TONNE, rel=0.01)
    # By today's tables: the French grid is as clean as then, the American one cleaner.
    rows = {r.location: r.total.value for r in own.regions}
    assert rows["France"] == pytest.approx(24.69 * GRAMS_PER_TONNE, rel=0.03)
    assert 6 < rows["United States"] / rows["France"] < 7


def test_the_total_adds_what_is_embodied():
    hardware = embodied(GPU, 3600.0, SETTINGS)
    carbon = carbon_section(KWH, resolve("FRA"), 1000, 2e18, hardware=hardware)
    whole = 56.039 + hardware.value
    assert carbon.embodied == hardware
    assert carbon.total.value == pytest.approx(whole)
    assert not carbon.total.lower_bound
    assert carbon.per_token.value == pytest.approx(whole / 1000)
    assert carbon.per_exaflop.value == pytest.approx(whole / 2)
    assert "ISO/IEC 21031" in carbon.per_token.source
    assert {r.location: r.total.value for r in carbon.regions}["Sweden"] == pytest.approx(40.695 + hardware.value)


def test_the_market_stands_beside_and_enters_no_total():
    hardware = embodied(GPU, 3600.0, SETTINGS)
    carbon = carbon_section(KWH, resolve("POL", pue=1.5, market_intensity=10.0), 1, 1.0, hardware=hardware)
    plain = carbon_section(KWH, resolve("POL", pue=1.5), 1, 1.0, hardware=hardware)
    assert carbon.market.value == pytest.approx(15.0)
    assert "market-based" in carbon.market.boundary
    assert carbon.market_intensity.source == "given by --market-intensity"
    assert (carbon.total, carbon.per_token) == (plain.total, plain.per_token)
    assert (plain.market, plain.market_intensity) == (None, None)


def test_water_is_of_the_machines_before_pue():
    carbon = carbon_section(KWH, resolve(pue=2.0, wue=1.8), 1, 1.0)
    assert (carbon.water.value, carbon.water.unit) == (pytest.approx(1.8), "L")
    assert carbon_section(KWH, resolve(pue=2.0), 1, 1.0).water is None


def test_equivalents():
    """By hand: 249 g a km at 400 g a mile in round figures; 12.4 g a charge; 36 g an hour of video."""
    carbon = carbon_section(exact(3.6e9, "J", source="x"), resolve(intensity=10.0), 1, 1.0)  # 10 kg
    car, phone, video = carbon.equivalents
    assert (car.what, car.amount) == ("km driven in an average petrol car", pytest.approx(10_000 / 249, rel=0.025))
    assert (phone.what, phone.amount) == ("smartphones charged", pytest.approx(806, abs=1))
    assert (video.what, video.amount) == ("hours of video streamed", pytest.approx(278, abs=1))
    assert all("20" in e.source for e in carbon.equivalents)  # a year
    small = carbon_section(exact(3.6e3, "J", source="x"), resolve(intensity=10.0), 1, 1.0).equivalents  # 10 mg
    assert (small[0].what, small[0].amount) == ("m driven in an average petrol car", pytest.approx(0.041, abs=1e-3))
    assert (small[2].what, small[2].amount) == ("seconds of video streamed", pytest.approx(1.0))
    assert carbon_section(missing("J", source="no"), resolve(), 1, 1.0).equivalents == []


def test_the_location_is_in_the_record():
    carbon = carbon_section(KWH, resolve("usa", "texas"), 1, 1.0)
    assert (carbon.country, carbon.region) == ("USA", "texas")
    assert "direct" in carbon.intensity.source


def test_a_header_of_before_is_still_read(journal, run_lines):
    old = {name: resolve("FRA")[name] for name in ("location", "intensity", "pue", "regions")}
    environment = {"device": "cpu", "devices": [], "cpu": {"cores": 2, "threads": 2, "guest": True}}
    run = assemble(journal(run_lines, carbon=old, environment=environment))
    assert (run.carbon.market, run.carbon.water, run.carbon.country) == (None, None, None)
    assert run.carbon.operational.value == pytest.approx(2912 / 3.6e6 * 56.039)
    # 14 billed seconds of 2 of 128 threads of 2500 kg
    share = 14 / 3600 / (4 * 8760 * 0.85) / 64
    assert run.carbon.embodied.value == pytest.approx(2500e3 * share)
    assert run.carbon.total.value == pytest.approx(run.carbon.operational.value + 2500e3 * share)


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


def test_what_is_embodied_is_missing_where_nothing_is_known_of_the_machine():
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
    assert plain["location"] == "Germany, given intensity"
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
        ({"market_intensity": -1.0}, "--market-intensity -1: expected"),
        ({"market_intensity": math.nan}, "--market-intensity nan: expected"),
        ({"wue": -0.5}, "--wue -0.5: expected"),
        ({"wue": math.inf}, "--wue inf: expected"),
        ({"lifetime_years": 0.0}, "--lifetime-years 0: expected"),
        ({"lifetime_years": math.nan}, "--lifetime-years nan: expected"),
        ({"utilization": 0.0}, "--utilization 0: expected"),
        ({"utilization": 1.1}, "--utilization 1.1: expected"),
        ({"utilization": math.nan}, "--utilization nan: expected"),
        ({"profile": Path("absent.csv")}, "--intensity-profile absent.csv: cannot be read: No such file"),
        ({"profile": Path("absent.csv"), "intensity": 5.0}, "--intensity-profile and --intensity say the same"),
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
