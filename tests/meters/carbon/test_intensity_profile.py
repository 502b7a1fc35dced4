"""Hourly intensities: files as they come, runs with a known answer, and the greenest start against brute force."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.meters.assemble import assemble
from efftrain.meters.carbon.footprint import CarbonError, resolve
from efftrain.meters.carbon.intensity_profile import Profile, Stretch, greenest, read_profile
from efftrain.meters.live import LiveMeter

S = 1_000_000_000
HOUR = 3600.0
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def hourly(path: Path, values, start=NOON, column="g/kWh") -> Path:
    rows = [f"{datetime.fromtimestamp(start + i * HOUR, UTC).isoformat()},{v}" for i, v in enumerate(values)]
    return write(path, "\n".join([f"time,{column}", *rows]) + "\n")


def test_electricity_maps(tmp_path):
    path = write(
        tmp_path / "FR_2026_hourly.csv",
        "\ufeffDatetime (UTC),Country,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
        "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),Data source,Data estimated\n"
        "2026-01-31 12:00:00,France,FR,20.5,41.25,95,rte,false\n"
        "2026-01-31 13:00:00,France,FR,30.5,51.25,94,rte,false\n",
    )
    profile = read_profile(path)
    assert profile.stretches == (Stretch(NOON, NOON + HOUR, 41.25), Stretch(NOON + HOUR, NOON + 2 * HOUR, 51.25))
    assert "(lifecycle)" in profile.source
    assert "taken as UTC" not in profile.source


def test_zones_and_order(tmp_path):
    path = write(tmp_path / "p.csv", "intensity,timestamp\n7,2026-01-31T14:00:00+01:00\n5,2026-01-31T12:00:00Z\n")
    assert [(s.start - NOON, s.intensity) for s in read_profile(path).stretches] == [(0.0, 5.0), (HOUR, 7.0)]


def test_a_time_without_zone_is_utc_and_says_so(tmp_path):
    profile = read_profile(write(tmp_path / "p.csv", "time,intensity\n2026-01-31T12:00,5\n2026-01-31T13:00,7\n"))
    assert profile.stretches[0].start == NOON
    assert "times taken as UTC" in profile.source


def test_missing_rows_are_gaps(tmp_path):
    path = hourly(tmp_path / "p.csv", [1, 2, "", 4, 5])
    assert [s.end - s.start for s in read_profile(path).stretches] == [HOUR] * 4
    lines = path.read_text().splitlines()
    write(path, "\n".join([*lines[:3], *lines[4:]]))  # the same without the row
    assert [s.intensity for s in read_profile(path).stretches] == [1, 2, 4, 5]
    assert read_profile(path).stretches[1].end == NOON + 2 * HOUR


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a header line"),
        ("a,b\n1,2\n", "needs a header line with a column of times (datetime) and one of intensities (intensity in"),
        ("time,intensity\nyesterday,5\n", "line 2: 'yesterday' is no ISO 8601 time"),
        ("time,intensity\n2026-01-31T12:00Z,much\n", "line 2: 'much' is no intensity; 0 to 5000 g/kWh"),
        ("time,intensity\n2026-01-31T12:00Z,-1\n", "line 2: '-1' is no intensity"),
        ("time,intensity\n2026-01-31T12:00Z,nan\n", "line 2: 'nan' is no intensity"),
        ("time,intensity\n2026-01-31T12:00Z,41250\n", "line 2: '41250' is no intensity"),
        ("time,intensity\n2026-01-31T12:00Z,5\n2026-01-31T13:00+01:00,6\n", "line 3: a second row for 2026-01-31T12"),
        ("time,intensity\n2026-01-31T12:00Z,5\n", "at least two rows"),
        ("time,intensity\n2026-01-31T12:00Z,\n2026-01-31T13:00Z,\n", "at least two rows and an intensity"),
        ("time,intensity\n2026-01-31T12:00Z\n\n", "at least two rows and an intensity"),
    ],
)
def test_bad_files_are_one_line_that_names_option_and_file(tmp_path, text, said):
    path = write(tmp_path / "p.csv", text)
    with pytest.raises(CarbonError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"--intensity-profile {path}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "binary.csv", "not UTF-8")):
        with pytest.raises(CarbonError, match=why):
            read_profile(path)


@pytest.mark.parametrize("now", [NOON - 1, NOON + 3 * HOUR])
def test_a_profile_of_another_time_is_refused_before_the_run(tmp_path, now):
    path = hourly(tmp_path / "p.csv", [1, 2, 3])
    with pytest.raises(CarbonError, match=r"covers 2026-01-31T12:00:00Z to 2026-01-31T15:00:00Z, but it is 2026"):
        resolve(profile=path, now=now)


def test_the_header_keeps_the_rows_from_now_on(tmp_path):
    path = hourly(tmp_path / "p.csv", range(1, 2001))
    kept = resolve("FRA", profile=path, now=NOON + 1.5 * HOUR)["profile"]
    assert kept["rows"][0] == [NOON + HOUR, NOON + 2 * HOUR, 2.0]
    assert len(kept["rows"]) == 1000
    assert kept["mean"] == pytest.approx(1000.5)
    assert str(tmp_path) not in json.dumps(kept)  # the file's name, not where it lies
    assert resolve(profile=path, now=NOON)["location"] == "grid of p.csv"
    assert resolve("FRA", profile=path, now=NOON)["location"] == "France"


def carbon_of(journal, run_lines, path, start):
    """The run of `run_lines`, with its monotonic 0 at `start` of the wall clock."""
    carbon = resolve("FRA", profile=path, now=start)
    clock = {"monotonic_ns": 0, "unix_s": start}
    return assemble(journal(run_lines, carbon=carbon, clock=clock, absent=[])).carbon


def test_a_run_across_the_hour_is_billed_by_both(journal, run_lines, tmp_path):
    """Billed from 1 s to 3 s and from 5 s to 17 s at 208 W; the hour turns at 10 s: 7 s at 100 and 7 s at 300 g/kWh."""
    path = hourly(tmp_path / "p.csv", [100, 300])
    carbon = carbon_of(journal, run_lines, path, NOON + HOUR - 10)
    assert carbon.intensity.value == pytest.approx(200, rel=1e-6)
    assert carbon.intensity.method == "modelled"
    assert carbon.operational.value == pytest.approx(208 * 7 / 3.6e6 * (100 + 300), rel=1e-6)
    assert carbon.regions[0].location == "world average"


def test_energy_and_not_time_is_the_weight(journal, run_lines, tmp_path):
    """From 10 s on the GPU draws 400 W instead of 200: 7 s at 208 W, then 7 s at 408 W."""
    lines = [
        line | {"value": line["value"] + 200 * max(0, line["t"] / S - 10)} if line.get("sensor") == "gpu0" else line
        for line in run_lines
    ]
    carbon = carbon_of(journal, lines, hourly(tmp_path / "p.csv", [100, 300]), NOON + HOUR - 10)
    assert carbon.operational.value == pytest.approx(7 / 3.6e6 * (208 * 100 + 408 * 300), rel=1e-6)


def test_beyond_the_profile_its_mean_is_assumed_and_said(journal, run_lines, tmp_path):
    path = hourly(tmp_path / "p.csv", [100, 300])
    carbon = carbon_of(journal, run_lines, path, NOON + 2 * HOUR - 10)
    assert carbon.intensity.value == pytest.approx((300 + 200) / 2)
    assert carbon.intensity.method == "assumed"
    assert "50 % of the run lies outside" in carbon.intensity.source
    assert carbon.operational.method == "assumed"


def test_a_run_that_never_began_has_the_mean(journal, tmp_path):
    carbon = resolve("FRA", profile=hourly(tmp_path / "p.csv", [100, 300]), now=NOON)
    found = assemble(journal([], carbon=carbon, clock={})).carbon
    assert (found.intensity.value, found.intensity.method) == (200, "assumed")
    assert found.operational.value is None


def test_without_any_energy_hours_are_weighted_by_time(journal, run_lines, tmp_path):
    carbon = resolve("FRA", profile=hourly(tmp_path / "p.csv", [100, 300]), now=NOON)
    clock = {"monotonic_ns": 0, "unix_s": NOON + HOUR - 10}
    run = assemble(journal([x for x in run_lines if x["kind"] != "tick"], carbon=carbon, clock=clock))
    assert run.carbon.intensity.value == pytest.approx(200)
    assert "weighted by time" in run.carbon.intensity.source


def test_the_live_line_agrees_with_the_record(journal, run_lines, header, tmp_path):
    path = hourly(tmp_path / "p.csv", [100, 300, 800])
    carbon = resolve("FRA", profile=path, now=NOON)
    changed = {"carbon": carbon, "clock": {"monotonic_ns": 0, "unix_s": NOON + HOUR - 10}, "absent": []}
    meter = LiveMeter(header(**changed))
    for line in run_lines:
        meter.feed(line)
    whole = assemble(journal(run_lines, **changed)).carbon.total.value
    assert meter.figures().grams_co2e == pytest.approx(whole, rel=0.01)


def profile_of(values, gaps=()):
    rows = [Stretch(i * HOUR, (i + 1) * HOUR, v) for i, v in enumerate(values) if i not in gaps]
    return Profile(tuple(rows), "p")


def mean_from(values, start, length):
    """Exact mean of hourly values over [start, start + length] hours."""
    parts = [(min(i + 1, start + length) - max(i, start)) * v for i, v in enumerate(values)
             if i + 1 > start and i < start + length]  # fmt: skip
    return math.fsum(parts) / length


def test_the_greenest_start_lies_between_rows():
    """1.5 hours that end with the two cleanest: half of the hour of 4 before, not half of the hour of 9 behind."""
    choice = greenest(profile_of([8, 4, 1, 9]), 1.5 * HOUR)
    assert choice.best == (1.5 * HOUR, pytest.approx((0.5 * 4 + 1) / 1.5))
    assert choice.first == (0.0, pytest.approx((8 + 0.5 * 4) / 1.5))
    assert choice.worst == (0.0, pytest.approx((8 + 0.5 * 4) / 1.5))


def test_equals_are_broken_by_the_earliest():
    assert greenest(profile_of([5, 5, 5]), HOUR).best.time == 0


def test_no_start_crosses_a_gap():
    values = [9, 1, 1, 1, 9]
    choice = greenest(profile_of(values, gaps={2}), 2 * HOUR)
    assert choice.best == (0.0, pytest.approx(5))
    with pytest.raises(CarbonError, match=r"^--hours 3: longer than the 2 hours that the profile covers without a gap"):
        greenest(profile_of(values, gaps={2}), 3 * HOUR)


@given(values=st.lists(st.integers(0, 900), min_size=2, max_size=12), length=st.floats(0.1, 12))
def test_no_start_on_a_fine_grid_is_greener_or_worse(values, length):
    profile = profile_of(values)
    if length > len(values):
        with pytest.raises(CarbonError, match="--hours"):
            greenest(profile, length * HOUR)
        return
    choice = greenest(profile, length * HOUR)
    grid = [i / 50 for i in range(int((len(values) - length) * 50) + 1)]
    means = [mean_from(values, start, length) for start in grid]
    assert choice.best.intensity <= min(means) + 1e-6
    assert choice.worst.intensity >= max(means) - 1e-6
    for start in choice:
        assert start.intensity == pytest.approx(mean_from(values, start.time / HOUR, length), abs=1e-6)
    assert choice.first.time == 0
