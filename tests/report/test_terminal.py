"""The table as a reader sees it, at the widths that terminals have."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from efftrain.record.schema import Run, Study
from efftrain.report.terminal import COLUMNS, render

Case = tuple[Study, list[Run]]


def _print(case: Case, width: int) -> str:
    out = io.StringIO()
    render(*case, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture(params=["small", "large", "damaged", "empty"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(case: Case, width: int) -> None:
    text = _print(case, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\x1b" not in text  # piped: no colours


def test_one_table_where_it_fits_two_where_not(small: Case) -> None:
    wide, narrow = _print(small, 120), _print(small, 80)
    assert sum(line.startswith("distilled") for line in wide.splitlines()) == 1
    assert sum(line.startswith("distilled") for line in narrow.splitlines()) == 2
    for text in (wide, narrow):
        for name in COLUMNS:
            assert name.split("\n")[-1] in text


def test_a_row_holds_the_figures_of_its_records(small: Case) -> None:
    row = next(line for line in _print(small, 120).splitlines() if line.startswith("recompute"))
    runs = [r for r in small[1] if r.variant == "recompute"]
    microjoules = sum(r.energy.per_token.value or 0 for r in runs) / 2 * 1e6
    assert f"≥ {microjoules:.0f} µJ/token" in row
    assert f"{512 / 0.053:,.0f}" in row
    assert "160 MiB" in row
    assert "4.430" in row
    assert "31.0 %" in row
    assert "2/2" in row


def test_verdicts_are_shown_where_there_are_pairs_enough(small: Case, large: Case) -> None:
    assert "inconclusive" not in _print(small, 120)
    assert "No verdicts yet" in _print(small, 120)
    assert {"better", "worse", "inconclusive"} <= set(_print(large, 120).split())


def test_failed_checks_come_before_the_table_and_warnings_after(damaged: Case) -> None:
    text = _print(damaged, 120)
    assert (
        text.index("unfinished")
        < text.index("check failed: not the same data (study): runs were trained on different data: text: ")
        < text.index("energy/token")
    )
    assert text.index("warning: a sensor was lost (baseline-s1): ") > text.index("energy/token")


def test_missing_figures_are_the_word(damaged: Case) -> None:
    row = next(line for line in _print(damaged, 120).splitlines() if line.startswith("recompute "))
    assert row.split() == ["recompute", *["missing"] * 8, "0/1"]


def test_a_reason_is_printed_as_it_is(damaged: Case) -> None:
    assert "not run distilled: the baseline with seed 1 did not finish: <killed> [red]" in _print(damaged, 120)


def test_different_methods_stand_in_their_rows(run_record: Callable[..., Run], large: Case) -> None:
    study, runs = large
    mixed = [run_record(variant="bf16", seed=r.seed) if r.variant == "bf16" else r for r in runs]
    text = _print((study, mixed), 120)
    assert "(modelled)" not in text
    assert "modelled" in text
    assert "assumed" in text
