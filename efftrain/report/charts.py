"""The charts of the HTML report as Vega-Lite specifications: data in, dictionaries out.

A chart that has nothing to show is None, and the report says so in words; a component that was not read is never a bar
of height 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

from efftrain.comparison.verdicts import COUNTED
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run
from efftrain.report.overview import VariantView

Spec = dict[str, Any]

GREY = "#8a8f98"
"""Readable on a light and on a dark page alike."""

PALETTE = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#999933"]
"""P. Tol, Colour schemes, SRON/EPS/TN/09-002, 2021: bright, told apart with any colour vision."""


def loss_against_energy(runs: Sequence[Run], names: Sequence[str]) -> Spec | None:
    """Validation loss of each run against the energy that it had used; one line a run, one colour a variant."""
    rows = [
        {"variant": r.variant, "run": r.run_id, "energy": v.energy_j, "loss": v.loss, "step": v.step}
        for r in runs
        for v in r.loss.validation
        if v.energy_j is not None and v.loss is not None
    ]
    if not rows:
        return None
    import altair as alt

    unit = next(r.loss.final_validation.unit for r in runs)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=16), strokeWidth=1.3, opacity=0.8)
        .encode(
            x=alt.X("energy:Q", title="energy used (J)", axis=alt.Axis(format="~s"), scale=alt.Scale(zero=False)),
            y=alt.Y("loss:Q", title=f"validation loss ({unit})", scale=alt.Scale(zero=False)),
            color=_by_variant(names),
            detail="run:N",
            order="step:Q",
            tooltip=["run:N", "step:Q", alt.Tooltip("energy:Q", format=".4s"), alt.Tooltip("loss:Q", format=".4f")],
        )
        .properties(width="container", height=320)
    )
    return _styled(chart)


def energy_by_component(variants: Sequence[VariantView]) -> Spec | None:
    """Mean joules of a run by component, stacked, one bar a variant; missing components are left out."""
    rows = [row for v in variants for row in _means(v, lambda r: r.energy.components, 1.0)]
    return _stacked(rows, title="energy of a run (J)", legend="component", order=[v.name for v in variants])


def time_by_phase(variants: Sequence[VariantView]) -> Spec | None:
    """Mean milliseconds of a step by phase, stacked, one bar a variant."""
    rows = [row for v in variants for row in _means(v, lambda r: r.time.phases, 1000.0)]
    return _stacked(rows, title="time of a step (ms)", legend="phase", order=[v.name for v in variants])


def _means(view: VariantView, choose: Callable[[Run], dict[str, Quantity]], factor: float) -> list[dict[str, Any]]:
    """Each part's mean over the finished runs in which it was read."""
    read: dict[str, list[float]] = {}
    for run in view.runs:
        for name, quantity in choose(run).items():
            if run.status in COUNTED and quantity.value is not None:
                read.setdefault(name, []).append(factor * quantity.value)
    return [{"variant": view.name, "part": name, "value": sum(v) / len(v)} for name, v in read.items()]


def _stacked(rows: list[dict[str, Any]], *, title: str, legend: str, order: list[str]) -> Spec | None:
    if not rows:
        return None
    import altair as alt

    parts = list(dict.fromkeys(row["part"] for row in rows))
    numbered = [{**row, "place": parts.index(row["part"])} for row in rows]
    chart = (
        alt.Chart(alt.Data(values=numbered))
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title=title, stack="zero"),
            y=alt.Y("variant:N", title=None, sort=order),
            color=alt.Color("part:N", title=legend, sort=parts, scale=alt.Scale(domain=parts, range=PALETTE)),
            order="place:Q",
            tooltip=["variant:N", "part:N", alt.Tooltip("value:Q", format=".4s", title=title)],
        )
        .properties(width="container", height={"step": 30})
    )
    return _styled(chart)


def _by_variant(names: Sequence[str]) -> Any:
    import altair as alt

    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    return alt.Color("variant:N", title="variant", scale=alt.Scale(domain=list(names), range=colours))


def _styled(chart: Any) -> Spec:
    """Transparent, with lines in a grey for both modes; the page's style sheet colours the text."""
    styled = (
        chart.configure(background="transparent", font="system-ui, sans-serif")
        .configure_view(strokeWidth=0)
        .configure_axis(gridColor=GREY, gridOpacity=0.25, domainColor=GREY, tickColor=GREY, labelFontSize=12)
        .configure_legend(orient="top", labelFontSize=12, symbolOpacity=1)
    )
    return styled.to_dict()
