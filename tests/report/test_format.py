"""Written figures against what a person would write, and laws that hold for any figure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.record.quantities import Quantity, estimate, exact, missing
from efftrain.record.schema import Ratio
from efftrain.report.format import change, figure, number, percent, span, times, times_span

UNITS = ("J", "J/token", "W", "s", "B", "FLOP", "FLOP/s", "g", "g/token", "g/kWh", "token/s", "nat/token", "1")


def _assumed(value: float, unit: str, low: float, high: float, *, bound: bool = False) -> Quantity:
    return estimate(value, unit, method="assumed", source="x", limits=(low, high), lower_bound=bound)


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        (_assumed(1.23e-3, "J/token", 0.6e-3, 3.1e-3), "1.23 mJ/token [0.600, 3.10] assumed"),
        (_assumed(6.51e-4, "J/token", 3.2e-4, 1.6e-3, bound=True), "≥ 651 µJ/token [320, ∞) assumed"),
        (exact(276 * 2**20, "B", source="x"), "276 MiB measured"),
        (exact(1536, "B", source="x"), "1.50 KiB measured"),
        (exact(-5 * 2**20, "B", source="x"), "−5.00 MiB measured"),
        (exact(0, "B", source="x"), "0 B measured"),
        (exact(12345.6, "token/s", source="x"), "12,346 token/s measured"),
        (exact(0.042, "s", source="x"), "42.0 ms measured"),
        (exact(12_000, "s", source="x"), "12,000 s measured"),
        (exact(0.0267, "g", source="x"), "26.7 mg measured"),
        (exact(26_700, "g", source="x"), "26.7 kg measured"),
        (exact(5.52e8, "g", source="x"), "552 t measured"),
        (exact(9.89e14, "FLOP/s", source="x"), "989 TFLOP/s measured"),
        (exact(481.2, "g/kWh", source="x"), "481 g/kWh measured"),
        (exact(1.58, "1", source="x"), "1.58 measured"),
        (missing("J", source="x"), "missing"),
    ],
)
def test_figures_read_as_a_person_would_write_them(quantity: Quantity, text: str) -> None:
    assert figure(quantity, tag=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.996, "10.0"), (0.9996, "1.00"), (99.96, "100"), (123456, "123,456"), (0.00012, "0.000120"), (-0.5, "−0.500")],
)
def test_numbers_have_three_digits_also_where_they_round_up(value: float, text: str) -> None:
    assert number(value) == text


def test_numbers_that_are_not_finite_say_so() -> None:
    assert number(float("nan")) == number(float("inf")) == "not finite"


@given(st.floats(1e-30, 1e30))
def test_a_written_number_is_within_half_a_digit(value: float) -> None:
    read = float(number(value).replace(",", "").replace("−", "-"))
    assert read == pytest.approx(value, rel=0.00501)


@given(st.sampled_from(UNITS))
def test_a_missing_figure_is_a_word_in_every_unit(unit: str) -> None:
    quantity = missing(unit, source="x")
    assert figure(quantity) == percent(quantity) == "missing"
    assert span(quantity) == ""


@given(st.sampled_from(UNITS), st.floats(1e-9, 1e15), st.floats(0.1, 0.9), st.floats(1.1, 9.0))
def test_lower_bounds_begin_with_their_sign_and_claim_no_end(unit: str, value: float, down: float, up: float) -> None:
    bound = figure(_assumed(value, unit, value * down, value * up, bound=True))
    assert bound.startswith("≥ ")
    assert bound.endswith("∞)")
    assert "≥" not in figure(_assumed(value, unit, value * down, value * up))


def test_shares_are_percentages() -> None:
    assert percent(exact(0.3124, "1", source="x")) == "31.2 %"
    assert percent(_assumed(0.31, "1", 0.3, 0.33), interval=True) == "31.0 % [30.0, 33.0]"


def _ratio(ratio: float | None, low: float | None = None, high: float | None = None, censored: int = 0) -> Ratio:
    return Ratio(ratio=ratio, low=low, high=high, pairs=6, p_value=0.03, verdict="inconclusive", censored=censored)


def test_ratios() -> None:
    assert (times(_ratio(0.868)), times_span(_ratio(0.868, 0.801, 0.941))) == ("×0.868", "[0.801, 0.941]")
    assert (times(_ratio(1.15, censored=2)), times_span(_ratio(1.15, 1.1, None, 2))) == ("≥ ×1.150", "[1.100, ∞)")
    assert (times(_ratio(None)), times_span(_ratio(None)), change(_ratio(None))) == ("missing", "", "missing")
    assert (times(_ratio(25.0)), times(_ratio(0.0001))) == ("×25.0", "×0.000100")


@pytest.mark.parametrize(("ratio", "text"), [(0.87, "−13 %"), (1.042, "+4.2 %"), (2.0, "+100 %"), (1.001, "+0.10 %")])
def test_changes(ratio: float, text: str) -> None:
    assert change(_ratio(ratio)) == text


def test_figures_of_a_column_share_a_prefix() -> None:
    two = Quantity(value=1.11e-3, unit="J/token", low=0.555e-3, high=2.22e-3, method="measured", source="s")
    assert figure(two) == "1.11 mJ/token [0.555, 2.22]"
    assert figure(two, like=793e-6) == "1,110 µJ/token [555, 2,220]"
    assert span(two, like=793e-6) == "[555, 2,220]"
