"""Joules by phase on small runs whose answer is known in closed form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from efftrain.meters.energy.ticks import Track
from efftrain.meters.parts.phase_energy import Metered, phase_energy
from efftrain.meters.parts.regression import jackknife
from efftrain.meters.parts.timeline import timeline
from efftrain.record.quantities import exact

S = 1_000_000_000
Info = Callable[..., dict[str, Any]]


class _Run:
    """400 steps of about 0.3 s: data, forward, backward, optimizer at given watts, read exactly every 37 ms or so."""

    def __init__(self, watts: tuple[float, ...], shares: tuple[float, ...] = (0.01, 0.3, 0.49, 0.2)) -> None:
        rng = np.random.default_rng(5)
        names = ("data", "forward", "backward", "optimizer")
        lengths = (rng.lognormal(0.0, 0.03, (400, 4)) * 0.3 * np.array(shares)).ravel()
        bounds = np.round(np.concatenate([[0.0], np.cumsum(lengths)]) * S).astype(np.int64)
        self.steps = [
            {"t": int(bounds[4 * i]), "t_end": int(bounds[4 * i + 4]), "step": i + 1,
             "phases": [[name, int(bounds[4 * i + k])] for k, name in enumerate(names)]}
            for i in range(400)
        ]  # fmt: skip
        self.windows = [(0, int(bounds[-1]))]
        exactly = np.diff(bounds) / S
        self.seconds = {name: float(exactly[k::4].sum()) for k, name in enumerate(names)}
        self.joules = {name: self.seconds[name] * w for name, w in zip(names, watts, strict=True)}
        energy = np.concatenate([[0.0], np.cumsum(exactly * np.tile(watts, 400))])
        t = np.cumsum(rng.uniform(0.03, 0.044, 3000)) * S
        t = t[t < bounds[-1]].astype(np.int64)
        self.track = Track(t.tolist(), np.interp(t, bounds, energy).tolist(), common=False)

    def meter(self, info: dict[str, Any]) -> Metered:
        return Metered(info, self.track, sum(self.joules.values()))

    @property
    def whole(self) -> Any:
        return exact(sum(self.joules.values()), "J", source="known")


def test_exact_readings_give_exact_joules(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    answer = phase_energy([run.meter(info("cpu", "cpu_time"))], run.steps, [], run.windows, run.whole)
    assert list(answer.phases) == ["data+forward", "backward", "optimizer"]
    for name, quantity in answer.phases.items():
        assert quantity.value == pytest.approx(sum(run.joules[part] for part in name.split("+")), rel=1e-6)
        assert answer.power[name].value == pytest.approx(
            quantity.value / sum(run.seconds[part] for part in name.split("+"))
        )
    assert answer.closure.value == pytest.approx(1.0, abs=1e-6)


def test_a_model_of_the_power_errs_in_every_phase_in_the_same_direction(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    answer = phase_energy([run.meter(info("cpu", "cpu_time"))], run.steps, [], run.windows, run.whole)
    backward = answer.phases["backward"]  # 4 W, 2 to 10, a thread
    assert backward.method == "assumed"
    assert backward.low == pytest.approx(run.joules["backward"] / 2, rel=1e-4)
    assert backward.high == pytest.approx(run.joules["backward"] * 2.5, rel=1e-4)
    assert backward.u_random == pytest.approx(0.0, abs=1e-3)


def test_sensors_add_and_an_assumed_constant_power_goes_by_time(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    node = {**info("node", "cpu_time"), "kind": "elapsed", "component": "rest_of_node", "watts_per_unit": [80, 60, 120]}
    meters = [run.meter(info("cpu", "cpu_time")), Metered(node, None, 80 * sum(run.seconds.values()))]
    answer = phase_energy(meters, run.steps, [], run.windows, run.whole)
    expected = run.joules["optimizer"] + 80 * run.seconds["optimizer"]
    assert answer.phases["optimizer"].value == pytest.approx(expected, rel=1e-6)


def test_a_phase_with_a_negative_estimate_is_joined_to_its_neighbour(info: Info) -> None:
    run = _Run((5.0, 300.0, -40.0, 200.0))
    answer = phase_energy([run.meter(info("cpu", "cpu_time"))], run.steps, [], run.windows, run.whole)
    assert next(iter(answer.phases)) == "data+forward"
    assert "backward+optimizer" in answer.phases


def test_an_untimed_counter_of_little_weight_is_shared_out_over_time(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    t = np.arange(0, run.windows[0][1], S // 3)
    small = Metered(
        info("dram", tick_s=None), Track(t.tolist(), (t / S * 0.5).tolist()), 0.5 * sum(run.seconds.values())
    )
    meters = [run.meter(info("cpu", "cpu_time")), small]
    answer = phase_energy(meters, run.steps, [], run.windows, run.whole)
    expected = run.joules["backward"] + 0.5 * run.seconds["backward"]
    assert answer.phases["backward"].value == pytest.approx(expected, rel=1e-2)
    assert "dram evenly over time (the counter shows no steady period" in answer.attribution


def test_without_phases_or_energy_the_answer_says_so(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    bare = [{**step, "phases": []} for step in run.steps]
    answer = phase_energy([run.meter(info("cpu", "cpu_time"))], bare, [], run.windows, run.whole)
    assert not answer.phases
    assert "no phase of a step was marked" in answer.attribution
    answer = phase_energy([], run.steps, [], run.windows, run.whole)
    assert all(q.method == "missing" for q in answer.phases.values())
    assert "no energy was read" in answer.attribution


def test_the_timeline_gives_the_seconds_of_any_window_by_part() -> None:
    steps = [
        {"t": 10 * S, "t_end": 14 * S, "phases": [["forward", 10 * S], ["backward", 12 * S]]},
        {"t": 15 * S, "t_end": 19 * S, "phases": [["forward", 15 * S], ["backward", 16 * S], ["forward", 18 * S]]},
    ]
    spans = [{"name": "evaluate", "t": 19 * S, "t_end": 21 * S}, {"name": "idle", "t": 21 * S, "t_end": 30 * S}]
    line = timeline(steps, spans, [(10 * S, 21 * S)])
    assert line.names == ("forward", "backward", "evaluate", "other")
    assert line.seconds.tolist() == [4.0, 4.0, 2.0, 1.0]
    start, end = np.array([9.0, 11.5, 20.0]) * S, np.array([11.0, 15.5, 25.0]) * S
    assert line.occupancy(start, end).tolist() == [
        [1.0, 0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 4.0],
    ]  # fmt: skip


def test_the_jackknife_is_that_of_leaving_blocks_out() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(240, 3)) * np.array([1.0, 1e-3, 50.0])
    y = x @ np.array([3.0, -2.0, 0.1]) + rng.normal(size=240)
    full = np.linalg.lstsq(x, y, rcond=None)[0]
    covariance, blocks = jackknife(x, y - x @ full)
    parts = np.array_split(np.arange(240), blocks)
    without = [np.linalg.lstsq(np.delete(x, part, 0), np.delete(y, part), rcond=None)[0] - full for part in parts]
    expected = (blocks - 1) / blocks * np.array(without).T @ np.array(without)
    assert covariance == pytest.approx(expected, rel=1e-6)


def test_what_is_too_short_for_a_fit_is_as_uncertain_on_two_counters_as_on_one(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    shortened = [{**step, "t_end": step["t_end"] - S // 1000} for step in run.steps]
    meters = [run.meter(info(f"cpu{i}", "cpu_time")) for i in range(2)]
    one, two = (phase_energy(meters[:n], shortened, [], run.windows, run.whole).phases["other"] for n in (1, 2))
    assert two.value == pytest.approx(2 * one.value)
    assert two.high == pytest.approx(2 * one.high)
    assert "mean power" in two.source


def test_readings_in_step_with_the_steps_are_refused(info: Info) -> None:
    run = _Run((20.0, 8.0, 12.0, 4.0))
    bounds = np.arange(401) * 3 * S // 10
    marks = (("data", 0), ("forward", 3_000_000), ("backward", 93_000_000), ("optimizer", 240_000_000))
    run.steps = [
        {"t": int(t), "t_end": int(t + 3 * S // 10), "step": i + 1, "phases": [[n, int(t + d)] for n, d in marks]}
        for i, t in enumerate(bounds[:-1])
    ]
    t = np.arange(0, bounds[-1], S // 10)
    run.track = Track(t.tolist(), (t / S * 10.0).tolist(), common=False)
    answer = phase_energy(
        [run.meter(info("cpu", "cpu_time"))], run.steps, [], [(0, int(bounds[-1]))], exact(1200.0, "J", source="known")
    )
    assert not answer.power
    assert "moves every 100 ms and a step takes 300 ms, so that it met only 3 of 16 parts" in answer.attribution
