import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.record.quantities import Quantity, estimate, exact, missing, product, scaled, total, weakest

positive = st.floats(min_value=1e-6, max_value=1e9)
shares = st.floats(min_value=0.0, max_value=0.4)


def measured(value: float, u_random: float = 0.0, u_systematic: float = 0.0) -> Quantity:
    return estimate(value, "J", method="measured", source="a test", u_random=u_random, u_systematic=u_systematic)


def test_missing_has_no_value_and_is_never_zero():
    nothing = missing("J", source="no sensor")
    assert nothing.value is None
    assert not nothing.present
    with pytest.raises(ValueError, match="missing means no value"):
        Quantity(value=0.0, unit="J", method="missing", source="no sensor")
    with pytest.raises(ValueError, match="missing means no value"):
        Quantity(value=None, unit="J", method="measured", source="a counter")


def test_a_source_is_required_and_numbers_are_finite():
    with pytest.raises(ValueError, match="needs a source"):
        exact(1.0, "J", source="")
    with pytest.raises(ValueError, match="must be finite"):
        exact(math.nan, "J", source="x")
    with pytest.raises(ValueError, match="outside its interval"):
        Quantity(value=3.0, unit="J", low=4.0, high=5.0, method="measured", source="x")


def test_interval_is_196_combined_standard_uncertainties():
    figure = measured(100.0, u_random=3.0, u_systematic=4.0)
    assert figure.low == pytest.approx(100 - 1.96 * 5)
    assert figure.high == pytest.approx(100 + 1.96 * 5)


def test_asymmetric_limits_hold_without_random_part():
    figure = estimate(4.0, "W", method="assumed", source="per thread", limits=(2.0, 10.0))
    assert (figure.low, figure.high) == (2.0, 10.0)


def test_total_of_two_independent_parts():
    both = total([measured(100.0, u_random=3.0), measured(50.0, u_random=4.0)], boundary="two boards")
    assert both.value == 150.0
    assert both.u_random == pytest.approx(5.0)
    assert both.high == pytest.approx(150 + 1.96 * 5)
    assert both.method == "measured"
    assert not both.lower_bound


def test_total_with_a_missing_part_is_a_lower_bound():
    partial = total([measured(100.0), missing("J", source="no DRAM counter")], boundary="node")
    assert partial.value == 100.0
    assert partial.lower_bound
    assert partial.high is None
    assert partial.low == 100.0


def test_total_of_missing_parts_is_missing():
    assert total([missing("J", source="a"), missing("J", source="b")], boundary="node").value is None


def test_total_takes_the_weakest_method_and_refuses_mixed_units():
    assumed = estimate(1.0, "J", method="assumed", source="x")
    assert total([measured(1.0), assumed], boundary="").method == "assumed"
    with pytest.raises(ValueError, match="one unit"):
        total([measured(1.0), exact(1.0, "s", source="clock")], boundary="")


def test_weakest():
    assert weakest(["measured", "missing", "modelled"]) == "modelled"
    assert weakest(["missing"]) == "missing"


@given(value=positive, share=shares, factor=positive)
def test_scaling_keeps_relative_uncertainty(value: float, share: float, factor: float):
    figure = measured(value, u_systematic=share * value)
    there = scaled(figure, factor, "J/token")
    assert there.u_systematic == pytest.approx(share * value * factor)
    back = scaled(there, 1 / factor, "J")
    assert back.value == pytest.approx(value)


@given(a=positive, b=positive, u=shares, v=shares)
def test_product_adds_relative_uncertainties_in_quadrature(a: float, b: float, u: float, v: float):
    result = product([measured(a, u_systematic=u * a), measured(b, u_systematic=v * b)], "J")
    assert result.value == pytest.approx(a * b)
    assert result.u_systematic == pytest.approx(a * b * math.hypot(u, v), rel=1e-6, abs=1e-9 * a * b)


def test_product_with_exact_factor_is_scaling():
    figure = measured(10.0, u_random=1.0)
    assert product([figure, exact(3.0, "1", source="PUE")], "J").high == pytest.approx(3 * (figure.high or 0))


def test_product_with_missing_or_bounded_factor():
    assert product([measured(1.0), missing("g/kWh", source="no grid")], "g").value is None
    bounded = total([measured(2.0), missing("J", source="no")], boundary="")
    assert product([bounded, exact(2.0, "1", source="PUE")], "J").lower_bound
    assert product([bounded, exact(2.0, "1", source="PUE")], "J").high is None


def test_product_with_zero_is_zero():
    assert product([exact(0.0, "J", source="x"), exact(2.0, "1", source="y")], "J").value == 0.0


def test_a_sum_names_each_source_once():
    one, other = (exact(1.0, "J", source=source) for source in ("counter", "model"))
    assert total([one, one, one], boundary="b").source == "sum of 3: counter"
    assert total([one, other, one], boundary="b").source == "sum of: counter; model"
