"""Figures as codecarbon 3.3.2 itself answers for these places, in g/kWh."""

import subprocess
import sys

import pytest

from efftrain.meters.carbon.grids import (
    CarbonError,
    country_intensity,
    known_countries,
    known_regions,
    region_intensity,
    world,
)


@pytest.mark.parametrize(("code", "intensity"), [("FRA", 56.039), ("SWE", 40.695), ("USA", 369.47), ("IND", 713.441)])
def test_countries(code, intensity):
    q = country_intensity(code)
    assert q.value == pytest.approx(intensity, abs=5e-3)
    assert (q.method, q.low, q.high) == ("modelled", None, None)
    assert "lifecycle" in q.source
    assert "202" in q.source


@pytest.mark.parametrize(
    ("country", "region", "intensity", "scope"),
    [
        ("USA", "Texas", 349.8, "direct"),
        ("USA", "california", 179.1, "direct"),
        ("CAN", "quebec", 3.94, "direct"),
        ("SWE", "SE1", 25.9, "lifecycle"),
        ("CHN", "Sichuan", 156.4, "direct"),
    ],
)
def test_regions(country, region, intensity, scope):
    q = region_intensity(country, region)
    assert q.value == pytest.approx(intensity, rel=2e-3)
    assert scope in q.source


def test_world_average():
    q = world()
    assert q.value == pytest.approx(481, abs=1)
    assert q.method == "assumed"
    # 5 % of the world's electricity is cleaner than about Finland's or Brazil's, 95 % than India's.
    assert 60 < q.low < 130
    assert q.high == pytest.approx(country_intensity("IND").value)


def test_known_names():
    assert known_countries()["FRA"] == "France"
    assert len(known_countries()) > 200
    assert "texas" in known_regions("USA")
    assert "usa" not in known_regions("USA")
    assert known_regions("NOR") == ["NO1", "NO2", "NO3", "NO4", "NO5"]
    assert known_regions("FRA") == []


def test_no_region_and_no_country_is_carbon_free():
    """An intensity of 0 is a hole in a table."""
    assert all(country_intensity(code).value for code in known_countries())
    places = [(c, r) for c in ("USA", "CAN", "CHN", "SWE", "NOR", "FIN") for r in known_regions(c)]
    assert all(region_intensity(*place).value for place in places)


@pytest.mark.parametrize("code", ["FRX", "CAF", ""])
def test_unknown_country(code):
    with pytest.raises(CarbonError, match=rf"^--country {code}: no grid is known by this code; .* for example FRA$"):
        country_intensity(code)


def test_unknown_region():
    with pytest.raises(CarbonError, match=r"^--region bavaria: no region of USA is known by this name; known are ala"):
        region_intensity("USA", "bavaria")
    with pytest.raises(CarbonError, match=r"^--region bavaria: DEU has no regions in the tables"):
        region_intensity("DEU", "bavaria")


def test_the_tables_are_read_without_the_package():
    code = "import sys; from efftrain.meters.carbon import grids; grids.world(); print('codecarbon' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
