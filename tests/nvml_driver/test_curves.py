"""The truth that all else is compared with, against numeric integration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvml_driver import Curve, Segment, bursts, constant, piecewise, ramp, square

CURVES = {
    "constant": constant(250),
    "square": square(0.37, 90, 410, duty=0.3, phase_s=0.11),
    "ramp": ramp(100, 400, 5),
    "sawtooth": ramp(100, 400, 1.7, repeat=True),
    "bursts": bursts(80, 600, [(0.5, 0.7), (2.0, 2.05), (3.1, 3.9)], 4.0),
    "steps": piecewise([(1, 50), (2, 300), (0.5, 120)]),
}


def integral(curve: Curve, start: float, end: float, pieces: int = 400_000) -> float:
    """The midpoint rule, which knows nothing of segments."""
    width = (end - start) / pieces
    return math.fsum(curve.power(t) for t in start + width * (np.arange(pieces) + 0.5)) * width


@pytest.mark.parametrize("name", CURVES)
def test_energy_is_the_integral_of_power(name):
    # the rule errs by at most half a step of width × 520 W at each of the 110 jumps or fewer
    assert CURVES[name].energy(-1.3, 9.2) == pytest.approx(integral(CURVES[name], -1.3, 9.2, 100_000), abs=1.0)


def test_known_integrals():
    assert constant(250).energy(2, 6) == 1000
    assert square(0.4, 100, 400).energy(0, 4) == pytest.approx(1000)
    assert square(0.4, 100, 400, duty=0.25).energy(0, 0.1) == pytest.approx(40)
    assert ramp(100, 400, 5).energy(0, 5) == pytest.approx(1250)
    assert ramp(100, 400, 5).energy(-1, 6) == pytest.approx(100 + 1250 + 400)
    assert bursts(100, 500, [(1, 2)], 10).energy(0, 20) == pytest.approx(2 * (900 + 500))


@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 700), st.floats(0, 700)), min_size=1, max_size=6),
    st.booleans(), st.floats(0, 5), st.lists(st.floats(-5, 30), min_size=3, max_size=3),
)  # fmt: skip
def test_energies_add_and_lie_between_the_extremes(pieces, repeat, phase_s, times):
    curve = Curve(tuple(Segment(*piece) for piece in pieces), repeat, phase_s)
    a, b, c = sorted(times)
    assert curve.energy(a, b) + curve.energy(b, c) == pytest.approx(curve.energy(a, c), abs=1e-7)
    powers = [watts for piece in pieces for watts in piece[1:]]
    slack = 1e-7
    assert min(powers) * (c - a) - slack <= curve.energy(a, c) <= max(powers) * (c - a) + slack
