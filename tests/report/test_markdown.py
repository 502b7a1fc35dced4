"""The Markdown report: whole tables, harmless text."""

import re

import pytest

from efftrain.record.schema import Run, Study
from efftrain.report.markdown import markdown

Case = tuple[Study, list[Run]]


@pytest.fixture(params=["small", "large", "damaged", "empty"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def test_every_row_has_its_tables_columns(case: Case) -> None:
    width = 0
    for line in markdown(*case).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not width or not cells or cells == width
        width = cells


def test_it_fits_into_a_comment_and_leaves_no_markup_open(case: Case) -> None:
    text = markdown(*case)
    assert len(text) < 65_000
    assert "{{" not in text
    assert not re.search(r"(?<!\\)<", text)
    assert "\n\n\n\n" not in text


def test_checks_come_before_the_table(damaged: Case) -> None:
    text = markdown(*damaged)
    assert (
        text.index("**unfinished** baseline-s1")
        < text.index("**check failed:** not the same data")
        < text.index("## Comparison")
    )
    assert "**not run** distilled" in text


def test_missing_figures_are_the_word(damaged: Case) -> None:
    row = next(line for line in markdown(*damaged).splitlines() if line.startswith("| recompute"))
    assert row.count("missing") == 9


def test_text_of_records_cannot_end_a_cell(small: Case) -> None:
    assert r"--variants \<all\> --data 'a\|b'" in markdown(*small)
