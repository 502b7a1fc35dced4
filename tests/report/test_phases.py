"""Joules by phase in the reports: shares with intervals, reasons where there are none, nothing unescaped."""

import io
from typing import Any

import pytest
from rich.console import Console

from efftrain.record.quantities import estimate, exact, missing, scaled
from efftrain.record.schema import EnergyModel, EnergyRow, Run
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.overview import overview
from efftrain.report.phases import phase_views
from efftrain.report.terminal import render

JOULES = {"data+forward": 30.0, "backward": 50.0, "optimizer": 15.0, "evaluate": 5.0, "other": 0.01}


def _known(run: Run, joules: dict[str, float] = JOULES, how: str = "least squares on 300 steps <b>") -> Run:
    phases = {
        name: estimate(j, "J", method="measured", source="s", u_random=j / 100, u_systematic=j / 20)
        for name, j in joules.items()
    }
    rows = [EnergyRow(name=name, energy=phases["backward"]) for name in ("", "blocks.0.mlp|x")]
    price = exact(2e-11, "J/FLOP", source="prices", method="modelled")
    model = EnergyModel(flop_j=price, byte_j=price, base_w=price, residual=missing("1", source="nothing left over"))
    changed = {
        "phases": phases, "phase_power": {name: scaled(q, 0.1, "W") for name, q in phases.items()},
        "closure": exact(0.998, "1", source="sum over total"), "attribution": how, "modules": rows, "ops": rows,
        "model": model,
    }  # fmt: skip
    return run.model_copy(update={"energy": run.energy.model_copy(update=changed)})


def _refused(run: Run) -> Run:
    energy = run.energy.model_copy(update={"attribution": "phases were not told apart: steps too short"})
    return run.model_copy(update={"energy": energy})


@pytest.fixture
def case(small: Any) -> Any:
    study, runs = small
    return study, [_known(run) if run.variant == "baseline" else _refused(run) for run in runs]


def _terminal(case: Any) -> str:
    out = io.StringIO()
    render(*case, Console(file=out, width=160))
    return out.getvalue()


def test_shares_are_those_of_the_joules_and_their_gain_cancels(case: Any) -> None:
    views = {view.variant: view for view in phase_views(overview(*case).variants)}
    rows = {row.name: row for row in views["baseline"].rows}
    assert list(rows) == ["data+forward", "backward", "optimizer", "evaluate"]  # `other` is too small to show
    assert rows["backward"].share.value == pytest.approx(50 / 100.01)
    assert rows["backward"].share.low == pytest.approx(50 / 100.01 * (1 - 0.0196), rel=1e-3)
    assert rows["backward"].energy.low == pytest.approx(50 * (1 - 1.96 * 0.051), rel=1e-2)
    assert rows["backward"].width == 50.0


def test_the_terminal_shows_shares_and_reasons(case: Any) -> None:
    text = _terminal(case)
    assert "Joules by phase" in text
    assert "backward 50.0 % [49.0, 51.0]" in text
    assert "phases were not told apart: steps too short" in text
    assert text.count("steps too short") == 1


def test_markdown_and_html_show_parts_modules_and_ops(case: Any) -> None:
    page, text = html(*case), markdown(*case)
    for report in (page, text):
        assert "data+forward" in report
        assert "outside of any module" in report
        assert "20.0 pJ/FLOP" in report
        assert "nothing left over" in report
        assert "99.8 %" in report
    assert "300 steps &lt;b&gt;" in page
    assert "300 steps \\<b\\>" in text
    assert "blocks.0.mlp\\|x" in text
    assert 'style="width:50.0%' in page


def test_runs_that_were_divided_differently_are_not_averaged(small: Any) -> None:
    study, runs = small
    own = [run for run in runs if run.variant == "baseline"]
    joined = {"data+forward": 30.0, "backward+optimizer": 65.0, "backward": 1.0}
    other = _known(own[1], joined, "the other way")
    case = study, [_known(own[0]), other, *(run for run in runs if run.variant != "baseline")]
    (view,) = (v for v in phase_views(overview(*case).variants) if v.variant == "baseline")
    assert [row.name for row in view.rows][:2] == ["data+forward", "backward"]
    assert view.how.startswith("1 of 2 runs; the first: least squares")


def test_records_without_attribution_have_no_section(small: Any) -> None:
    assert "Joules by phase" not in _terminal(small)
    assert "Joules by phase" not in markdown(*small)
    assert "Joules by phase" not in html(*small)
