"""Every series here is made from a power curve whose integral is known in closed form."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.meters.energy.series import Series

S = 1_000_000_000


def counter(info, energy, *, end_s, tick_s=0.1, **changed):
    """A counter in J that updates every `tick_s` and shows `energy(t)`."""
    series = Series(info(**changed))
    for i in range(round(end_s / tick_s) + 1):
        series.add(round(i * tick_s * S), energy(i * tick_s))
    return series


def samples(info, power, *, end_s, gap=(math.inf, math.inf)):
    """A power sensor that is read every 50 ms and written on change, and at least once a second."""
    series, written, last = Series(info(kind="power")), -math.inf, None
    for i in range(round(end_s / 0.05) + 1):
        t = i * 0.05
        if not gap[0] <= t < gap[1] and (power(t) != last or t - written > 0.999):
            series.add(round(t * S), power(t))
            written, last = t, power(t)
    return series


def test_constant_power(info):
    q = counter(info, lambda t: 7000 + 100 * t, end_s=20).energy_between(5 * S, 15 * S)
    assert q.value == pytest.approx(1000, rel=1e-12)
    assert q.u_random == pytest.approx(0, abs=1e-6)
    assert q.u_systematic == pytest.approx(25.5)
    assert (q.low, q.high) == (pytest.approx(1000 - 1.96 * 25.5), pytest.approx(1000 + 1.96 * 25.5))
    assert (q.method, q.lower_bound, q.unit) == ("measured", False, "J")


def test_ramp(info):
    series = counter(info, lambda t: 5 * t * t, end_s=20)  # P = 10 t W
    assert series.energy_between(4 * S, 12 * S).value == pytest.approx(5 * (144 - 16), rel=1e-12)
    cut = series.energy_between(4 * S + S // 20, 12 * S)
    # Interpolating a parabola between ticks 0.1 s apart is off by at most P' dt² / 8.
    assert cut.value == pytest.approx(5 * (144 - 4.05**2), abs=10 * 0.01 / 8 + 1e-9)


def test_a_cut_on_a_tick_is_certain_and_one_in_the_middle_is_not(info):
    series = counter(info, lambda t: 100 * t, end_s=10)
    interval_j = 100 * 0.1
    assert series.energy_between(2 * S, 4 * S).u_random == pytest.approx(0, abs=1e-6)
    middle = series.energy_between(2 * S + S // 20, 4 * S)
    assert middle.u_random == pytest.approx(interval_j / math.sqrt(12))
    both = series.energy_between(2 * S + S // 20, 4 * S + S // 20)
    assert both.u_random == pytest.approx(math.sqrt(2) * interval_j / math.sqrt(12))
    inside = series.energy_between(2 * S + S // 40, 2 * S + 3 * S // 40)
    assert inside.value == pytest.approx(5)
    assert inside.u_random == pytest.approx(interval_j / math.sqrt(12))


def test_u_random_covers_energy_that_falls_anywhere_within_a_tick(info):
    """Half of each interval draws a share of its energy that is uniform between none and all; cut in the middle."""
    draw = random.Random(1)
    errors, claimed = [], []
    for _ in range(300):
        shares = [draw.random() for _ in range(4)]
        series = counter(info, lambda t: 10 * round(t / 0.1), end_s=0.4)
        q = series.energy_between(S // 20, S // 4)  # middles of the first and of the third interval
        truth = 10 * (1 - shares[0]) + 10 + 10 * shares[2]
        errors.append(q.value - truth)
        claimed.append(q.u_random)
    rms = math.sqrt(sum(e * e for e in errors) / len(errors))
    assert rms == pytest.approx(claimed[0], rel=0.15)  # the standard error of an rms of 300 is 4 %


def test_wrap(info):
    series = counter(info, lambda t: (900 + 100 * t) % 1000, end_s=60, wrap_at=1000.0)
    q = series.energy_between(0, 60 * S)
    assert q.value == pytest.approx(6000)
    assert not q.lower_bound


def test_a_reset_makes_a_lower_bound_of_windows_that_hold_it(info):
    series = counter(info, lambda t: 5000 + 100 * t if t < 5.05 else 100 * (t - 5.05), end_s=10)
    assert not series.energy_between(S, 4 * S).lower_bound
    q = series.energy_between(0, 10 * S)
    assert q.value == pytest.approx(1000 - 5)  # the 5 J between the tick at 5 s and the reset are gone
    assert q.lower_bound
    assert q.high is None
    assert "reset" in q.source
    assert not series.energy_between(6 * S, 9 * S).lower_bound


def test_a_fall_too_large_for_a_wrap_is_a_reset(info):
    """A counter that wraps at 262 kJ and reads 0 once did not use 162 kJ in a tenth of a second."""
    series = counter(info, lambda t: 100_000 + 50 * t if t < 5 else 50 * (t - 5), end_s=10, wrap_at=262_143.3)
    q = series.energy_between(0, 10 * S)
    assert q.value == pytest.approx(500, abs=6)
    assert q.lower_bound


def test_a_counter_counts_through_a_drop_out(info):
    series = Series(info())
    for t in [*range(0, 50), *range(120, 200)]:
        series.add(t * S // 10, 10.0 * t)
    q = series.energy_between(0, 199 * S // 10)
    assert q.value == pytest.approx(1990)
    assert not q.lower_bound


def test_a_wrap_in_a_gap_is_a_lower_bound(info):
    series = Series(info(wrap_at=1000.0))
    for t, value in ((0, 800.0), (1, 900.0), (20, 100.0), (21, 200.0)):
        series.add(t * S, value)
    q = series.energy_between(0, 21 * S)
    assert q.value == pytest.approx(400)
    assert q.lower_bound


def test_a_heartbeat_without_change_is_no_pause_of_the_device(info):
    """A counter that updates every 1.6 s, with ticks every 0.8 s, at 100 W."""
    series = counter(info, lambda t: 160.0 * (t // 1.6001), end_s=16, tick_s=0.8)
    q = series.energy_between(2 * S, 12 * S)
    assert q.value == pytest.approx(1000, abs=160)
    assert abs(q.value - 1000) < 1.96 * q.u_random


def test_power_that_never_changes(info):
    q = samples(info, lambda t: 100.0, end_s=60).energy_between(0, 60 * S)
    assert q.value == pytest.approx(6000)
    assert q.u_random == 0


def test_power_square_wave(info):
    series = samples(info, lambda t: 100.0 if t < 30 else 300.0, end_s=60)
    assert series.energy_between(0, 60 * S).value == pytest.approx(12000, abs=200 * 0.05)
    assert series.energy_between(5 * S, 25 * S).value == pytest.approx(2000)


def test_power_square_wave_is_covered_by_its_random_part(info):
    """A square wave that beats with the sampling: the error of each edge is within dt, uniformly."""
    period, truth = 1.37, 200 * 54.8
    series = samples(info, lambda t: 100.0 if t % period < period / 2 else 300.0, end_s=60)
    q = series.energy_between(0, round(54.8 * S))  # 40 periods
    assert q.value == pytest.approx(truth, abs=2 * q.u_random)
    assert q.u_random == pytest.approx(math.sqrt(79) * 200 * 0.05 / math.sqrt(12), rel=0.05)


def test_a_gap_in_power_is_missing_energy(info):
    series = samples(info, lambda t: 100.0, end_s=20, gap=(5.01, 10.0))
    q = series.energy_between(0, 20 * S)
    assert q.value == pytest.approx(2000 - 500, abs=100)  # the gap reaches back to the last heartbeat
    assert q.lower_bound
    assert "no reading for" in q.source
    inside = series.energy_between(7 * S, 8 * S)
    assert inside.value is None


def test_cpu_seconds_have_the_limits_of_their_watts(info):
    q = counter(info, lambda t: 2 * t, end_s=10, name="cpu", kind="cpu_time").energy_between(0, 5 * S)
    assert (q.value, q.low, q.high) == (pytest.approx(40), pytest.approx(20), pytest.approx(100))
    assert q.method == "assumed"
    cut = counter(info, lambda t: 2 * t, end_s=10, name="cpu", kind="cpu_time").energy_between(0, 5 * S + S // 20)
    assert cut.u_random == pytest.approx(4 * 0.2 / math.sqrt(12))


def test_an_idle_process_uses_no_cpu_seconds(info):
    """Unlike a counter's, a heartbeat of CPU time says that nothing was used until then."""
    series = Series(info("cpu", "cpu_time"))
    for t, value in ((0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)):
        series.add(t * S, value)
    assert series.energy_between(S, 3 * S).value == 0
    assert series.energy_between(3 * S, 4 * S).value == pytest.approx(4)


def test_a_lost_sensor_gives_a_lower_bound(info):
    series = counter(info, lambda t: 100 * t, end_s=10)
    q = series.energy_between(0, 60 * S)
    assert q.value == pytest.approx(1000 + 100 * 0.15)  # it is not missed before one and a half of its ticks
    assert q.lower_bound
    assert q.high is None
    assert "49.9 s" in q.source
    assert series.energy_between(20 * S, 60 * S).value is None


def test_a_run_that_is_killed_between_two_ticks_is_no_lower_bound(info):
    q = counter(info, lambda t: 100 * t, end_s=10, u_relative=0.0).energy_between(0, 10 * S + S // 10)
    assert not q.lower_bound
    assert q.low < 1010 < q.high


@pytest.mark.parametrize("readings", [[], [5.0], [5.0, 5.0, 5.0], [None, float("nan")]])
def test_no_two_readings_are_missing_and_not_zero(info, readings):
    series = Series(info())
    for t, value in enumerate(readings):
        series.add(t * S, value)
    q = series.energy_between(0, 2 * S)
    assert (q.value, q.method) == (None, "missing")
    assert "gpu0" in q.source
    assert series.watts(0, 2 * S) is None


def test_no_window_is_missing(info):
    q = counter(info, lambda t: 100 * t, end_s=10).energy_over([])
    assert q.value is None
    assert "no billed window" in q.source


def test_windows_of_one_sensor_share_its_gain_but_not_its_cuts(info):
    series = counter(info, lambda t: 100 * t, end_s=20)
    one, two = (S + S // 20, 4 * S), (6 * S + S // 20, 15 * S)
    q1, q2, both = series.energy_between(*one), series.energy_between(*two), series.energy_over([one, two])
    assert both.value == pytest.approx(q1.value + q2.value)
    assert both.u_systematic == pytest.approx(q1.u_systematic + q2.u_systematic)
    assert both.u_random == pytest.approx(math.hypot(q1.u_random, q2.u_random))


increments = st.lists(st.floats(0, 1e4, allow_subnormal=False), min_size=3, max_size=30)
moments = st.lists(st.integers(-S, 4 * S), min_size=3, max_size=3, unique=True)


@given(increments, moments, st.sampled_from(["energy", "power", "cpu_time"]))
def test_windows_add(info, steps, cuts, kind):
    series, value = Series(info("x", kind)), 0.0
    for i, step in enumerate(steps):
        value = step if kind == "power" else value + step
        series.add(i * S // 10, value)
    a, b, c = sorted(cuts)
    parts = [series.energy_between(a, b), series.energy_between(b, c)]
    whole = series.energy_between(a, c)
    assert sum(q.value or 0 for q in parts) == pytest.approx(whole.value or 0, rel=1e-9, abs=1e-6)


@given(st.integers(1, 8), increments)
def test_devices_add(info, n, steps):
    one, many = Series(info()), Series(info())
    for i, total in enumerate(sum(steps[: k + 1]) for k in range(len(steps))):
        one.add(i * S // 10, total)
        many.add(i * S // 10, n * total)
    end = len(steps) * S // 10
    q1, qn = one.energy_between(0, end), many.energy_between(0, end)
    assert (qn.value is None) == (q1.value is None)
    if q1.value is not None:
        assert qn.value == pytest.approx(n * q1.value)


def test_mean_power(info):
    series = counter(info, lambda t: 100 * t if t < 5 else 500 + 250 * (t - 5), end_s=10)
    assert series.watts(0, 5 * S) == pytest.approx(100)
    assert series.watts(6 * S, 30 * S) == pytest.approx(250)
    assert series.watts(20 * S, 30 * S) is None
