"""Windows cut anywhere in curves of known energy, with a power reading beside the counter and without."""

import math
import random

import pytest

from efftrain.meters.energy.power import PowerReadings
from efftrain.meters.energy.series import Series
from efftrain.sensors.simulated import constant, piecewise

S = 1_000_000_000
TICK = 0.1


def square(low, high, period_s, seconds):
    return piecewise([(period_s / 2, w) for _ in range(math.ceil(seconds / period_s) + 1) for w in (low, high)])


def watched(info, curve, *, seconds, window_s=0.025, counter_window_s=None, reset_s=math.inf, witness=True):
    """A counter and the power beside it, both updated every 100 ms and polled every 20.9 ms."""
    readings = PowerReadings(info("gpu0:power", "power", period_s=0.0209)) if witness else None
    series = Series(info(u_relative=0.0, period_s=0.0209), witness=readings)
    part, seen, counted = counter_window_s or TICK, None, {0: 0.0}

    def energy(k):
        if k not in counted:
            tick = k * TICK
            counted[k] = energy(k - 1) + TICK / part * (curve.energy(tick) - curve.energy(tick - part))
        return counted[k]

    for i in range(1, round(seconds / 0.0209)):
        t = i * 0.0209
        k = math.floor(t / TICK)
        joules = energy(k) - (energy(math.ceil(reset_s / TICK)) if k * TICK >= reset_s else 0.0)
        if seen is None or joules != seen[1]:
            series.add(round(t * S), joules, None if seen is None else seen[0])
        seen = (round(t * S), joules)
        if readings is not None:
            start = max(0.0, k * TICK - window_s)
            readings.add(
                round(t * S), (curve.energy(k * TICK) - curve.energy(start)) / (k * TICK - start) if k else 0.0
            )
    return series


def coverage(series, curve, *, seconds, count=200, lengths=(0.5, 10.0)):
    """Share of random windows whose truth lies within the interval, and the mean relative error."""
    draw, inside, errors = random.Random(3), 0, []
    for _ in range(count):
        length = draw.uniform(*lengths)
        start = draw.uniform(1, seconds - 1 - length)
        q = series.energy_between(round(start * S), round((start + length) * S))
        truth = curve.energy(start + length) - curve.energy(start)
        inside += q.low <= truth <= q.high
        errors.append(abs(q.value / truth - 1))
    return inside / count, sum(errors) / count


def test_constant_power_is_exact_and_says_so(info):
    q = watched(info, constant(300.0), seconds=30).energy_between(round(3.333 * S), round(4.0 * S))
    assert q.value == pytest.approx(300 * 0.667, rel=2e-3)
    assert q.high - q.low < 0.02 * q.value


@pytest.mark.parametrize("period_s", [0.2, 0.37, 1.0, 3.1])
def test_square_waves_are_covered(info, period_s):
    curve = square(100.0, 400.0, period_s, 61)
    share, error = coverage(watched(info, curve, seconds=60), curve, seconds=60)
    assert share >= 0.91
    assert error < 0.03


@pytest.mark.parametrize("period_s", [0.37, 1.07, 3.17])
def test_a_counter_that_looks_a_quarter_of_the_time_is_covered_too(info, period_s):
    curve = square(100.0, 400.0, period_s, 61)
    series = watched(info, curve, seconds=60, counter_window_s=0.025)
    share, _ = coverage(series, curve, seconds=60)
    assert share >= 0.91


def test_a_witness_knows_where_in_a_tick_a_step_was(info):
    curve = piecewise([(10.03, 100.0), (20.0, 400.0)])
    with_power = watched(info, curve, seconds=30).energy_between(9 * S, round(10.05 * S))
    alone = watched(info, curve, seconds=30, witness=False).energy_between(9 * S, round(10.05 * S))
    truth = curve.energy(10.05) - curve.energy(9)
    assert abs(with_power.value - truth) < 1.0 < abs(alone.value - truth)
    assert alone.low <= truth <= alone.high


def test_what_a_reset_lost_is_put_in_from_the_power_beside(info):
    curve = constant(200.0)
    series = watched(info, curve, seconds=30, reset_s=15.05)
    q = series.energy_between(5 * S, 25 * S)
    assert not q.lower_bound
    assert q.value == pytest.approx(4000, rel=0.005)
    alone = watched(info, curve, seconds=30, reset_s=15.05, witness=False).energy_between(5 * S, 25 * S)
    assert alone.lower_bound


def test_the_open_end_goes_on_at_the_power_beside(info):
    curve = constant(300.0)
    series = watched(info, curve, seconds=10)
    q = series.energy_between(5 * S, round(9.99 * S))
    assert q.value == pytest.approx(300 * 4.99, rel=1e-3)
    assert q.high - q.low < 0.02 * q.value
