"""Counters with a period that is known, seen through polls that are not in step with it."""

import itertools
import math
import random

import pytest

from efftrain.meters.energy.ticks import Track, track

S = 1_000_000_000


def polled(
    info, *, period_s, phase_s, seconds, poll_s=0.0209, watts=250.0, jitter_s=0.001, wander_s=0.0, seed=0,
    silences=(), reset_s=math.inf, **changed,
):  # fmt: skip
    """A counter in mJ that moves at phase + k · period, read by a poller that is late by up to `jitter_s`.

    In `silences`, from and to in s, nothing can be read; at `reset_s` the counter begins again at 0.
    """
    draw, raw, t, shown, seen = random.Random(seed), [], 0.0, None, None
    wander = [draw.gauss(0, wander_s) for _ in range(math.ceil(seconds / period_s) + 2)]
    while t < seconds:
        t = max([t, *(end for start, end in silences if start <= t < end)])
        late = t + draw.uniform(0, jitter_s)
        k = math.floor((late - phase_s) / period_s)
        k -= late < phase_s + k * period_s + wander[k]
        value = round(watts * k * period_s, 3) + 1e6
        if late >= reset_s:
            value = max(0.0, round(watts * (phase_s + k * period_s - reset_s), 3))
        if value != shown:
            raw.append((round(late * S), value, seen))
        shown, seen, t = value, round(late * S), t + poll_s
    return track(info(**changed), raw)


def off_ms(found: Track, period_s: float, phase_s: float) -> list[float]:
    """By how many ms each moment misses the nearest true update."""
    places = [(t / S - phase_s) / period_s for t in found.t]
    return [(place - round(place)) * period_s * 1e3 for place in places]


@pytest.mark.parametrize("period_s", [0.1, 0.0997, 0.25])
@pytest.mark.parametrize("seed", range(5))
def test_updates_are_put_back_to_where_they_happened(info, period_s, seed):
    phase_s = random.Random(seed).uniform(0, period_s)
    found = polled(info, period_s=period_s, phase_s=phase_s, seconds=60, seed=seed)
    errors = off_ms(found, period_s, phase_s)
    assert found.period == pytest.approx(period_s * S, rel=1e-4)
    assert max(map(abs, errors)) < 0.5  # read as they were, they would be 0 to 22 ms late
    assert found.u_t < 0.5e6
    assert max(map(abs, errors)) < 3 * found.u_t / 1e6 + 0.2


def test_joules_between_updates_are_those_of_the_power(info):
    found = polled(info, period_s=0.1, phase_s=0.03, seconds=30)
    powers = [
        (b - a) / (u - t) * S
        for (t, a), (u, b) in itertools.pairwise(zip(found.t, found.joules, strict=True))
    ]  # fmt: skip
    assert powers == pytest.approx([250.0] * len(powers), rel=1e-3)


def test_half_a_second_is_enough_for_a_period(info):
    found = polled(info, period_s=0.1, phase_s=0.05, seconds=0.75)
    assert found.period == pytest.approx(0.1 * S, rel=0.05)
    assert max(map(abs, off_ms(found, 0.1, 0.05))) < 12


def test_updates_that_wander_a_little_keep_their_mean_period(info):
    found = polled(info, period_s=0.1, phase_s=0.02, seconds=60, wander_s=0.002)
    assert found.period == pytest.approx(0.1 * S, rel=1e-3)
    assert math.sqrt(sum(e * e for e in off_ms(found, 0.1, 0.02)) / len(found.t)) < 3


def test_updates_faster_than_the_polls_are_left_where_they_were_seen(info):
    found = polled(info, period_s=0.02, phase_s=0.01, seconds=20)
    assert found.period is None
    assert not found.common
    assert found.u_t == pytest.approx(0.0209 * S / math.sqrt(12), rel=0.05)


def test_a_counter_that_is_exact_at_any_time_is_left_alone(info):
    raw = [(round(t * 0.2 * S), 2.0 * t, round((t - 1) * 0.2 * S)) for t in range(50)]
    found = track(info("cpu", "cpu_time", tick_s=0.0), raw)
    assert list(found.t) == [t for t, _, _ in raw]
    assert found.joules[-1] == pytest.approx(4 * 2.0 * 49)
    assert found.u_t == 0


def test_a_wrap_between_two_updates_loses_nothing(info):
    found = polled(info, period_s=0.1, phase_s=0.03, seconds=30)
    raw, wrap = [], 1000.0
    for t, joules in zip(found.t, found.joules, strict=True):
        raw.append((t, (joules + 900.0) % wrap, t - S // 50))
    again = track(info(wrap_at=wrap), raw)
    assert again.joules[-1] == pytest.approx(found.joules[-1])
    assert again.flaws == []


def test_a_reset_stays_with_its_interval(info):
    raw = [(i * S // 10, 5000 + 25.0 * i if i < 100 else 25.0 * (i - 99), i * S // 10 - S // 50) for i in range(200)]
    (flaw,) = track(info(), raw).flaws
    assert flaw.reset
    assert flaw.start < 9.95 * S < flaw.end


def test_long_runs_are_fitted_in_blocks_and_stay_in_order(info):
    found = polled(info, period_s=0.1, phase_s=0.04, seconds=250)
    assert all(a < b for a, b in itertools.pairwise(found.t))
    assert max(map(abs, off_ms(found, 0.1, 0.04))) < 0.5


def test_a_gap_in_the_readings_keeps_the_count_of_the_updates(info):
    """Between 10.013 s and 12.41 s nothing can be read; the first reading after it shows an update of just before."""
    raw, seen, shown = [], None, None
    for i in range(1, 1400):
        t = i * 0.0209
        if 10.013 < t < 12.41:
            continue
        value = 25.0 * math.floor((t - 0.033) / 0.1)
        if value != shown:
            raw.append((round(t * S), value, seen))
        seen, shown = round(t * S), value
    found = track(info(), raw)
    assert found.period == pytest.approx(0.1 * S, rel=1e-3)
    assert max(map(abs, off_ms(found, 0.1, 0.033))) < 1
    assert all(
        (b - a) / S * 250 == pytest.approx(v - u, abs=0.5)
        for a, b, u, v in zip(found.t, found.t[1:], found.joules, found.joules[1:], strict=False)
    )


@pytest.mark.parametrize("seed", range(5))
def test_after_a_silence_the_update_seen_is_the_last_one(info, seed):
    draw = random.Random(seed)
    silences = [(start, start + draw.uniform(0.2, 3.0)) for start in (2.0, 9.1, 17.3, 25.0, 40.4)]
    found = polled(info, period_s=0.1, phase_s=0.03, seconds=60, silences=silences, seed=seed)
    assert found.period == pytest.approx(0.1 * S, rel=1e-4)
    assert max(map(abs, off_ms(found, 0.1, 0.03))) < 0.5
    powers = [(b - a) / (u - t) * S for (t, a), (u, b) in itertools.pairwise(zip(found.t, found.joules, strict=True))]
    assert powers == pytest.approx([250.0] * len(powers), rel=1e-2)


def test_a_busy_machine_s_late_polls_do_not_hide_the_period(info):
    draw = random.Random(1)
    late = [(start, start + draw.uniform(0.06, 0.15)) for start in (draw.uniform(0, 60) for _ in range(40))]
    found = polled(info, period_s=0.1, phase_s=0.03, seconds=60, silences=sorted(late))
    assert found.period == pytest.approx(0.1 * S, rel=1e-4)
    assert max(map(abs, off_ms(found, 0.1, 0.03))) < 0.5


def test_a_reset_between_updates_leaves_the_period_alone(info):
    found = polled(info, period_s=0.1, phase_s=0.03, seconds=30, reset_s=12.37)
    assert found.period == pytest.approx(0.1 * S, rel=1e-4)
    errors = sorted(map(abs, off_ms(found, 0.1, 0.03)))
    assert errors[-2] < 0.5  # all but the reset itself, which is no update
    (flaw,) = found.flaws
    assert flaw.start < 12.37 * S <= flaw.end + 0.0215 * S
