"""What reports say about carbon, of runs whose carbon the meters have made."""

import pytest

from efftrain.meters.carbon.embodied import embodied
from efftrain.meters.carbon.footprint import carbon_section, resolve
from efftrain.record.schema import Run, Study
from efftrain.report.carbon_view import carbon_legend, carbon_rows
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.overview import overview

Case = tuple[Study, list[Run]]
OPTIONS = {"country": "FRA", "pue": 1.5, "market_intensity": 12.0, "wue": 1.8}


def with_carbon(case: Case, **options: float | str) -> Case:
    study, runs = case
    header = resolve(**options)  # pyright: ignore[reportArgumentType]
    made = embodied({"device": "cpu", "devices": [], "cpu": {"cores": 2, "threads": 2, "guest": True}}, 25.2, {})
    return study, [
        run.model_copy(
            update={"carbon": carbon_section(run.energy.total, header, run.tokens, 1e15, hardware=made)}
        )
        for run in runs
    ]  # fmt: skip


def test_every_part_has_its_row(small: Case) -> None:
    _, runs = with_carbon(small, **OPTIONS)
    rows = {row.what: row for row in carbon_rows(runs[0]) if row.what != "as much as"}
    assert list(rows) == [
        "of the energy, location-based", "of the energy, market-based", "embodied in the hardware", "together",
        "for a token", "for an exaFLOP", "water of the site",
    ]  # fmt: skip
    kwh = runs[0].energy.total.value / 3.6e6
    assert rows["of the energy, location-based"].text.startswith(f"≥ {kwh * 1.5 * 56.039 * 1000:.2f} mg")
    assert "France, 56.0 g/kWh" in rows["of the energy, location-based"].source
    assert rows["of the energy, market-based"].text.startswith(f"≥ {kwh * 1.5 * 12 * 1000:.2f} mg")
    assert "in no total" in rows["of the energy, market-based"].source
    assert "virtual machine" in rows["embodied in the hardware"].source
    assert "ISO/IEC 21031" in rows["for a token"].source
    assert rows["water of the site"].text.startswith(f"≥ {kwh * 1.8 * 1e6:.0f} µL")


def test_what_was_not_given_has_no_row(small: Case) -> None:
    _, runs = with_carbon(small)
    said = " ".join(row.what for row in carbon_rows(runs[0]))
    assert "market" not in said
    assert "water" not in said
    assert carbon_rows(None) == []


def test_equivalents_name_their_source(small: Case) -> None:
    _, runs = with_carbon(small)
    rows = [row for row in carbon_rows(runs[0]) if row.what == "as much as"]
    assert len(rows) == 3
    assert "EPA" in rows[0].source
    assert "IEA" in rows[2].source


def test_what_is_missing_says_why_in_its_row(damaged: Case) -> None:
    embodied_row = next(row for row in carbon_rows(damaged[1][0]) if row.what == "embodied in the hardware")
    assert (embodied_row.text, embodied_row.method) == ("missing", "missing")
    assert "embodied carbon is not counted yet" in embodied_row.source


def test_the_legend_says_what_is_embodied_and_no_longer_that_it_is_not_read(small: Case) -> None:
    text = "\n".join(overview(*with_carbon(small, **OPTIONS)).legend)
    assert "Embodied in the hardware: " in text
    assert "embodied carbon" not in text
    assert "Market-based, beside it and in no total: " in text
    assert "not read here: rest of node, embodied carbon" in "\n".join(overview(*small).legend)
    assert len(carbon_legend(small[1][0])) == 1


@pytest.mark.parametrize("render", [markdown, html])
def test_reports_show_them(small: Case, render) -> None:
    text = render(*with_carbon(small, **OPTIONS))
    for words in ("CO₂e of baseline-s0", "market-based", "water of the site", "smartphones charged", "exaFLOP"):
        assert words in text


def test_a_study_without_its_baseline_shows_another_run(small: Case) -> None:
    study, runs = small
    rest = [run for run in runs if run.variant != "baseline"]
    view = overview(study, rest)
    assert view.carbon_of == min((r for r in rest), key=lambda r: r.seed).run_id
    assert view.regions
