import math

import pytest

from efftrain.monitor.idle import measure_idle
from efftrain.sensors.cpu_time import CpuTimeSensor
from efftrain.sensors.simulated import Habits, PowerCurve, SimulatedCounter, SimulatedPower, constant


class Time:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def idle(*sensors, time: Time, seconds: float = 10.0) -> dict[str, dict[str, float]]:
    return measure_idle(sensors, seconds, clock=time, sleep=time.sleep)


def test_a_constant_power_is_found_exactly_by_both_kinds():
    time = Time()
    found = idle(
        SimulatedCounter(constant(70.0), clock=time, name="gpu0"),
        SimulatedPower(constant(30.0), clock=time, name="gpu1"),
        time=time,
    )
    assert found["gpu0"]["watts"] == pytest.approx(70.0, rel=1e-9)
    assert found["gpu1"] == {"watts": pytest.approx(30.0), "u_watts": pytest.approx(0.0, abs=1e-9)}
    # Two ends, each known to within one poll of 5 ms, in about 9.9 s.
    assert found["gpu0"]["u_watts"] == pytest.approx(70.0 * 0.005 / math.sqrt(6) / 9.9, rel=0.05)


def test_the_window_is_cut_at_ticks():
    time = Time()
    counter = SimulatedCounter(constant(70.0), clock=time, habits=Habits(tick_s=0.77))
    watts = idle(counter, time=time)["simulated"]["watts"]
    # Cut anywhere, 10 s of a 0.77 s tick are wrong by up to 7.7 %; cut at ticks, by two polls in 9.2 s at most.
    assert watts == pytest.approx(70.0, rel=2 * 0.005 / 9.2)


def test_an_unsteady_power_has_an_uncertainty_that_covers_the_truth():
    time = Time()
    wave = PowerCurve(lambda t: 100 + 40 * math.sin(t), lambda t: 100 * t + 40 * (1 - math.cos(t)))
    found = idle(SimulatedCounter(wave, clock=time), time=time)["simulated"]
    assert abs(found["watts"] - wave.energy(10.0) / 10.0) < 2 * found["u_watts"]
    assert found["u_watts"] > 5.0


def test_wraps_are_undone():
    time = Time()
    counter = SimulatedCounter(constant(70.0), clock=time, habits=Habits(wrap_at=64.0))
    assert idle(counter, time=time)["simulated"]["watts"] == pytest.approx(70.0, rel=1e-3)


def test_what_cannot_be_told_is_left_out():
    time = Time()
    sensors = (
        CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "test"),
        SimulatedCounter(constant(70.0), clock=time, habits=Habits(reset_s=(5.0,)), name="reset"),
        SimulatedCounter(constant(70.0), clock=time, habits=Habits(tick_s=4.0), name="slow"),
        SimulatedCounter(constant(70.0), clock=time, habits=Habits(drop_outs_s=((0.0, 99.0),)), name="lost"),
        SimulatedPower(constant(70.0), clock=time, habits=Habits(drop_outs_s=((0.0, 99.0),)), name="lost-power"),
    )
    assert idle(*sensors, time=time) == {}


def test_no_sensors_take_no_time():
    time = Time()
    assert idle(time=time) == {}
    assert time.now == 0
