"""The page: nothing from outside, nothing unescaped, charts that hold the records' figures and that Vega-Lite draws."""

import json
import re
from html.parser import HTMLParser

import pytest
import vl_convert

from efftrain.record.schema import Run, Study
from efftrain.report.figures import FIGURES
from efftrain.report.html import html

Case = tuple[Study, list[Run]]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class _Page(HTMLParser):
    """Collects visible text, attributes and unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(params=["small", "large", "damaged", "empty"])
def page(request: pytest.FixtureRequest) -> str:
    return html(*request.getfixturevalue(request.param))


def _specs(page: str) -> dict[str, dict]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_tags_are_balanced(page: str) -> None:
    parsed = _Page(page)
    assert parsed.unbalanced == []
    assert parsed.open == []


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    loading = {"src", "href", "data", "action", "srcset"}
    outside = [value for name, value in _Page(page).attributes if name in loading and not (value or "").startswith("#")]
    assert outside == []
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_text_of_records_is_escaped(damaged: Case) -> None:
    page = html(*damaged)
    assert "<killed>" not in page
    assert "&lt;killed&gt;" in page
    assert "<all>" not in page
    assert "<killed> [red]" in _Page(page).text


def test_checks_come_first(damaged: Case) -> None:
    text = _Page(html(*damaged)).text
    order = [
        "unfinished",
        "check failed: not the same data",
        "warning: a sensor was lost",
        "Comparison",
        "Loss against energy",
    ]
    places = [text.index(re.sub(" +", " ", words)) for words in order]
    assert places == sorted(places)


def test_charts_hold_every_finite_evaluation(damaged: Case) -> None:
    rows = _specs(html(*damaged))["loss"]["data"]["values"]
    expected = {(r.run_id, v.energy_j, v.loss) for r in damaged[1] for v in r.loss.validation if v.loss is not None}
    assert {(row["run"], row["energy"], row["loss"]) for row in rows} == expected
    assert not any(row["run"] == "bf16-s0" and row["step"] == 300 for row in rows)  # the NaN that ended it


def test_bars_hold_means_of_what_was_read(large: Case) -> None:
    rows = _specs(html(*large))["components"]["data"]["values"]
    parts = [r.energy.components["gpu"].value for r in large[1] if r.variant == "bf16"]
    bar = next(row for row in rows if (row["variant"], row["part"]) == ("bf16", "gpu"))
    assert bar["value"] == pytest.approx(sum(p for p in parts if p) / 8)
    assert {row["part"] for row in rows} == {"gpu", "cpu"}  # dram and rest_of_node were not read
    assert "dram: missing: RAPL dram: permission denied" in _Page(html(*large)).text


def test_phases_add_up_to_the_step(large: Case) -> None:
    rows = _specs(html(*large))["phases"]["data"]["values"]
    steps = [r.time.step.value for r in large[1] if r.variant == "baseline"]
    mean = sum(s for s in steps if s) / 8
    assert sum(row["value"] for row in rows if row["variant"] == "baseline") == pytest.approx(1000 * mean)


def test_vega_lite_draws_every_chart(small: Case) -> None:
    specs = _specs(html(*small))
    assert set(specs) == {"loss", "components", "phases"}
    for spec in specs.values():
        drawn = vl_convert.vegalite_to_svg({**spec, "width": 400})
        assert "baseline" in drawn


def test_a_study_without_runs_has_words_for_charts(empty: Case) -> None:
    page = html(*empty)
    assert _Page(page).text.count("missing: no run has the figures for this chart") == 3
    assert len(page) < 20_000  # no library where nothing is drawn


def test_missing_figures_are_the_word(damaged: Case) -> None:
    page = html(*damaged)
    card = page[page.index('id="recompute"') :]
    table = card[: card.index("</table>")]
    cells = re.findall(r'<td class="r">[^<]*</td><td class="r">([^<]*)</td>', table)
    assert len(cells) == len(FIGURES)
    assert set(cells) == {"missing"}
