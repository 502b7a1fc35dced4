"""Carbon on the command line: the greenest start, and one line for every option that cannot be used."""

import json
import sys
from pathlib import Path

import pytest

from efftrain.cli import main

ROWS = [("00", 300), ("01", 100), ("02", 200), ("03", 500)]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Call the command in this process, in a folder with a profile; its exit status, output and errors."""
    rows = [f"2026-01-31T{hour}:00:00Z,{value}" for hour, value in ROWS]
    (tmp_path / "grid.csv").write_text("\n".join(["datetime,carbon_intensity", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["efftrain", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


WINDOW = ("carbon", "window", "--intensity-profile", "grid.csv")


def test_the_greenest_start(command):
    """1.5 hours from 01:00: (100 + 200/2)/1.5 g/kWh; from 00:00: (300 + 50)/1.5; to the end: (100 + 500)/1.5."""
    status, said, errors = command(*WINDOW, "--hours", "1.5", "--power-w", "2000")
    assert (status, errors) == (0, "")
    assert said.splitlines() == [
        "start at 2026-01-31T01:00:00Z, end at 2026-01-31T02:30:00Z",
        "133 g/kWh on average, 400 g of CO2e for 3.00 kWh",
        "300 g (42.9 %) less than the first start, 2026-01-31T00:00:00Z",
        "800 g (66.7 %) less than the worst start, 2026-01-31T02:30:00Z",
    ]


def test_without_a_power_shares_and_intensities(command):
    said = command(*WINDOW, "--hours", "1")[1]
    assert "100 g/kWh on average\n" in said
    assert "200 g/kWh (66.7 %) less than the first start" in said
    assert "CO2e" not in said


def test_json(command):
    status, said, _ = command(*WINDOW, "--hours", "1.5", "--power-w", "2000", "--json")
    found = json.loads(said)
    assert (status, found["hours"], found["energy_kwh"]) == (0, 1.5, 3.0)
    assert found["best"] == {
        "start": "2026-01-31T01:00:00Z", "end": "2026-01-31T02:30:00Z",
        "intensity_g_per_kwh": pytest.approx(400 / 3), "grams": pytest.approx(400),
    }  # fmt: skip
    assert found["saved_against_first"]["grams"] == pytest.approx(300)
    assert found["saved_against_worst"]["share"] == pytest.approx(2 / 3)
    assert json.loads(command(*WINDOW, "--hours", "1", "--json")[1])["best"]["grams"] is None


BAD = [
    (("--hours", "0"), ["--hours 0", "above 0"]),
    (("--hours", "nan"), ["--hours nan"]),
    (("--hours", "5"), ["--hours 5", "longer than the 4 hours"]),
    (("--hours", "1", "--power-w", "-3"), ["--power-w -3", "above 0"]),
    (("--hours", "soon"), ["--hours", "valid number"]),
    ((), ["--hours"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_windows(command, arguments, words):
    status, said, errors = command(*WINDOW, *arguments)
    assert (status, said) == (2, "")
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors


BAD_STUDY = [
    (("--market-intensity", "-1"), ["--market-intensity -1", "at least 0"]),
    (("--wue", "nan"), ["--wue nan", "L/kWh"]),
    (("--lifetime-years", "0"), ["--lifetime-years 0", "above 0"]),
    (("--utilization", "1.5"), ["--utilization 1.5", "up to 1"]),
    (("--intensity-profile", "absent.csv"), ["--intensity-profile absent.csv", "No such file"]),
    (("--intensity-profile", "grid.csv"), ["--intensity-profile: covers 2026-01-31", "now"]),
    (("--intensity-profile", "grid.csv", "--intensity", "5"), ["--intensity-profile and --intensity"]),
]


@pytest.mark.parametrize("kind", ["bench", "train"])
@pytest.mark.parametrize(("arguments", "words"), BAD_STUDY)
def test_bad_options_of_a_study_write_nothing(command, kind, arguments, words, tmp_path):
    status, _, errors = command(kind, "--device", "cpu", "--out", "study", *arguments)
    assert status == 2
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not (tmp_path / "study").exists()
