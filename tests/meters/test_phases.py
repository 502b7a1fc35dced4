import math
import random

import pytest

from efftrain.meters.phases import phase_times, time_section, tokens_per_second
from efftrain.meters.windows import billed_windows

S = 1_000_000_000


def steps_of(durations, tokens=512):
    return [
        {"kind": "step", "t": i * 100 * S, "t_end": i * 100 * S + round(d * S), "tokens": tokens, "phases": []}
        for i, d in enumerate(durations)
    ]


def test_times_of_a_run(journal, run_lines):
    built = journal(run_lines)
    time = time_section(built, billed_windows(built.lines))
    assert time.total.value == time.total.low == time.total.high == 14
    assert time.step.value == pytest.approx(0.5)
    assert (time.step.low, time.step.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert time.tokens_per_second.value == pytest.approx(1024)
    assert {n: round(q.value, 9) for n, q in time.phases.items()} == {
        "data": 0.05, "forward": 0.15, "backward": 0.25, "optimizer": 0.05,
    }  # fmt: skip
    assert {n: q.value for n, q in time.spans.items()} == {"compile": 2, "warmup": 2, "evaluate": 2}


def test_a_run_without_steps_has_missing_times(journal):
    time = time_section(journal([]), [])
    assert [q.value for q in (time.total, time.step, time.tokens_per_second)] == [None] * 3
    assert time.phases == {}


def test_repeated_phases_of_a_step_are_added_up():
    marks = [["data", 0], ["forward", 1 * S], ["backward", 3 * S], ["forward", 6 * S], ["backward", 8 * S]]
    times = phase_times([{"phases": marks, "t": 0, "t_end": 12 * S}])
    assert {n: q.value for n, q in times.items()} == {"data": 1, "forward": 4, "backward": 7}
    assert times["forward"].low is None  # one step claims no interval


def test_the_mean_step_has_the_standard_error_of_a_mean(journal):
    time = time_section(journal(steps_of([1.0, 2.0, 3.0, 4.0])), [(0, 1)])
    assert time.step.value == pytest.approx(2.5)
    assert time.step.u_random == pytest.approx(math.sqrt(5 / 3) / 2)  # sd of 1, 2, 3, 4 over the root of 4


def test_tokens_per_second_is_total_over_total():
    q = tokens_per_second(steps_of([1.0, 3.0], tokens=100))
    assert q.value == pytest.approx(50)  # and not the mean of 100 and 33


def test_interval_of_tokens_per_second_agrees_with_the_jackknife():
    draw = random.Random(3)
    steps = [s | {"tokens": draw.randint(400, 600)} for s in steps_of([draw.gauss(1, 0.1) for _ in range(200)])]
    without = [tokens_per_second(steps[:i] + steps[i + 1 :]).value for i in range(len(steps))]
    mean = sum(without) / len(without)
    jackknife = math.sqrt((len(steps) - 1) / len(steps) * sum((v - mean) ** 2 for v in without))
    assert tokens_per_second(steps).u_random == pytest.approx(jackknife, rel=0.02)
