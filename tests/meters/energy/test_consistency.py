"""Sensors that agree, disagree, or beat with the step, on readings made from known powers."""

import pytest

from efftrain.meters.energy.consistency import consistency
from efftrain.meters.energy.ledger import Ledger

S = 1_000_000_000


def checks(info, header, *, counter_w=200.0, power_w=200.0, step_s=0.27, devices=(), seconds=30):
    sensors = [info(), info("gpu0:power", "power", witness_of="gpu0")]
    ledger = Ledger(header(sensors=sensors, absent=[]))
    for k in range(seconds * 10 + 1):
        t = k * S // 10
        ledger.feed({"kind": "tick", "t": t, "sensor": "gpu0", "value": counter_w * k / 10, "since": t - S // 50})
        ledger.feed({"kind": "tick", "t": t, "sensor": "gpu0:power", "value": power_w})
    steps, start = [], 1.0
    while start + step_s < seconds - 1:
        steps.append({"t": round(start * S), "t_end": round((start + step_s) * S)})
        start += step_s
    windows = [(steps[0]["t"], steps[-1]["t_end"])]
    return {check.name: check for check in consistency(ledger, windows, steps, {"devices": list(devices)})}


@pytest.mark.parametrize(
    ("power_w", "status"), [(200.0, "passed"), (208.0, "passed"), (212.0, "failed"), (114, "failed")]
)
def test_counter_and_power_that_disagree_by_more_than_five_percent_are_said_to(info, header, power_w, status):
    check = checks(info, header, power_w=power_w)["counter_against_power"]
    assert check.status == status
    assert f"{power_w / 200 - 1:+.1%}" in check.detail


def test_power_beside_a_counter_is_not_billed(info, header):
    sensors = [info(), info("gpu0:power", "power", witness_of="gpu0")]
    ledger = Ledger(header(sensors=sensors, absent=[]))
    for k in range(101):
        ledger.feed({"kind": "tick", "t": k * S // 10, "sensor": "gpu0", "value": 20.0 * k})
        ledger.feed({"kind": "tick", "t": k * S // 10, "sensor": "gpu0:power", "value": 500.0})
    assert ledger.total([(0, 10 * S)]).value == pytest.approx(2000)
    assert list(ledger.series) == ["gpu0"]


@pytest.mark.parametrize(
    ("step_s", "status"),
    [(0.1, "warning"), (0.2, "warning"), (0.4, "warning"), (0.05, "warning"), (0.27, "passed"), (0.137, "passed")],
)
def test_a_step_that_beats_with_the_tick_is_named(info, header, step_s, status):
    check = checks(info, header, step_s=step_s)["phase_lock"]
    assert check.status == status
    assert ("jittered blocks" in check.detail) == (status == "warning")


@pytest.mark.parametrize(
    ("device", "status", "said"),
    [
        ({"uuid": "GPU-1", "other_processes": 0}, "passed", "no other process"),
        ({"uuid": "GPU-1", "other_processes": 2}, "warning", "GPU-1: 2 other processes"),
        ({"uuid": "GPU-1", "other_processes": 2, "other_process_ids": [7, 9]}, "warning", "2 other processes (7, 9)"),
        ({"uuid": "GPU-1", "other_processes": 0, "mig": True}, "warning", "split by MIG"),
        ({"uuid": "GPU-1", "other_processes": None}, "skipped", "does not tell"),
    ],
)
def test_who_else_uses_the_device(info, header, device, status, said):
    check = checks(info, header, devices=[device])["devices_alone"]
    assert (check.status, said in check.detail) == (status, True)


def test_a_run_without_a_counter_has_nothing_to_compare(info, header):
    ledger = Ledger(header(sensors=[info("cpu", "cpu_time")]))
    assert [check.name for check in consistency(ledger, [(0, S)], [], {})] == ["steps_steady"]


@pytest.mark.parametrize(
    ("lengths", "status"),
    [
        ([0.1] * 40, "passed"),
        ([0.1] * 20 + [0.06] * 20, "passed"),  # a model that was pruned
        ([0.1] * 39 + [0.5], "passed"),  # one hiccup: 0.3 of 4.4 s
        ([0.1] * 36 + [1.0] * 4, "warning"),
        ([0.1] * 12 + [8.0] * 28, "warning"),  # from one moment on, another load
        ([0.1] * 5, "skipped"),
    ],
)
def test_a_run_that_was_disturbed_says_so(info, header, lengths, status):
    steps, t = [], 0
    for length in lengths:
        steps.append({"t": t, "t_end": t + round(length * S)})
        t += round(length * S)
    check = consistency(Ledger(header(sensors=[])), [(0, t)], steps, {})[0]
    assert (check.name, check.status) == ("steps_steady", status)
    if status == "warning":
        lost = sum(max(0, length - 0.2) for length in lengths) / sum(lengths)
        assert f"{lost:.0%} of the training time" in check.detail
