"""The simulated sensors against closed forms: their truth must not be wrong, since others are judged by it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.sensors.protocol import SensorError
from efftrain.sensors.simulated import Habits, PowerCurve, SimulatedCounter, SimulatedPower, constant, piecewise

MS = 1_000_000


class Clock:
    def __init__(self, now: int = 7_000_000_123) -> None:
        self.start = self.now = now

    def __call__(self) -> int:
        return self.now

    def at(self, seconds: float) -> None:
        self.now = self.start + round(seconds * 1e9)


def test_counter_changes_only_at_ticks():
    clock = Clock()
    counter = SimulatedCounter(constant(100.0), clock=clock)
    shown = []
    for ms in (0, 99, 100, 101, 199, 200, 1050):
        clock.at(ms / 1000)
        shown.append(counter.read())
    assert shown == pytest.approx([0, 0, 10, 10, 10, 20, 100])


def test_gain_scales_the_reading_and_not_the_truth():
    clock = Clock()
    counter = SimulatedCounter(constant(100.0), clock=clock, habits=Habits(gain=1.05))
    clock.at(2.0)
    assert counter.read() == pytest.approx(210.0)
    assert counter.true_energy(clock.start, clock.now) == pytest.approx(200.0)


def test_counter_wraps():
    clock = Clock()
    counter = SimulatedCounter(constant(100.0), clock=clock, habits=Habits(wrap_at=64.0))
    assert counter.info.wrap_at == 64.0
    clock.at(1.5)
    assert counter.read() == pytest.approx(150.0 - 2 * 64.0)


def test_counter_starts_again_at_a_reset():
    clock = Clock()
    counter = SimulatedCounter(constant(50.0), clock=clock, habits=Habits(reset_s=(1.0, 3.0)))
    values = []
    for t in (0.9, 1.0, 2.0, 3.5):
        clock.at(t)
        values.append(counter.read())
    assert values == pytest.approx([45.0, 0.0, 50.0, 25.0])


def test_drop_out_raises_inside_its_window_only():
    clock = Clock()
    counter = SimulatedCounter(constant(1.0), clock=clock, habits=Habits(drop_outs_s=((1.0, 2.0),)))
    for t, lost in ((0.99, False), (1.0, True), (1.99, True), (2.0, False)):
        clock.at(t)
        if lost:
            with pytest.raises(SensorError, match="drop-out"):
                counter.read()
        else:
            assert counter.read() >= 0


def test_power_is_the_mean_over_its_window():
    clock = Clock()
    curve = piecewise([(1.0, 100.0), (1.0, 300.0)])
    power = SimulatedPower(curve, clock=clock, habits=Habits(window_s=1.0, gain=2.0))
    instant = SimulatedPower(curve, clock=clock, name="instant")
    clock.at(1.25)
    assert power.read() == pytest.approx(2 * (0.8 * 100 + 0.2 * 300))  # the tick before 1.25 s is at 1.2 s
    assert instant.read() == 300.0
    assert (power.info.unit, power.info.kind) == ("W", "power")


def test_true_energy_of_a_curve_with_a_known_integral():
    clock = Clock()
    curve = PowerCurve(lambda t: 100 + 50 * math.sin(t), lambda t: 100 * t - 50 * (math.cos(t) - 1))
    counter = SimulatedCounter(curve, clock=clock)
    n = 20_000
    start, end = 0.3, 4.7
    simpson = sum(
        curve.power(start + (end - start) * i / n) * (1 if i in (0, n) else 4 if i % 2 else 2) for i in range(n + 1)
    )
    truth = counter.true_energy(clock.start + round(start * 1e9), clock.start + round(end * 1e9))
    assert truth == pytest.approx(simpson * (end - start) / (3 * n), rel=1e-9)


segments = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1000)), min_size=1, max_size=6)


@given(segments, st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 20_000))
def test_true_energy_adds_up_over_windows(parts, a, b, c):
    clock = Clock()
    counter = SimulatedCounter(piecewise(parts), clock=clock)
    a, b, c = (clock.start + ms * MS for ms in sorted((a, b, c)))
    whole = counter.true_energy(a, c)
    assert counter.true_energy(a, b) + counter.true_energy(b, c) == pytest.approx(whole, abs=1e-6)
    assert whole >= -1e-9


@given(segments)
def test_piecewise_integral_is_the_sum_of_its_segments(parts):
    curve = piecewise(parts)
    end = sum(duration for duration, _ in parts)
    assert curve.energy(end) == pytest.approx(sum(d * w for d, w in parts), rel=1e-9, abs=1e-9)
    assert curve.energy(end + 2) - curve.energy(end) == pytest.approx(2 * parts[-1][1], abs=1e-6)
