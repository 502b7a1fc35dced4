"""A self-test of sensors whose habits are known."""

from dataclasses import replace

import pytest

from efftrain.sensors.examine import examine
from efftrain.sensors.protocol import Absent, Discovery, SensorError, SensorInfo
from efftrain.sensors.simulated import Habits, SimulatedCounter, SimulatedPower, constant


class Time:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def test_examine_sees_value_and_tick_period():
    time = Time()
    habits = Habits(tick_s=0.1, wrap_at=75.0)
    counter = SimulatedCounter(constant(50.0), clock=time, habits=habits)
    power = SimulatedPower(constant(80.0), clock=time)
    time.now = 1_000_000_000  # the counter shows 50 J, and wraps within the second
    seen, steady, gone = examine(
        Discovery(sensors=[counter, power], absent=[Absent(component="dram", name="rapl:dram", why="no", cure="do")]),
        clock=time,
        sleep=time.sleep,
    )
    assert seen.value == pytest.approx(50.0)
    assert seen.duration_s == pytest.approx(1.0, abs=0.003)
    assert seen.tick_period_s == pytest.approx(0.1, abs=0.003)
    assert (steady.value, steady.unit, steady.tick_period_s) == (80.0, "W", None)
    assert (gone.value, gone.method, gone.detail, gone.cure) == (None, "missing", "no", "do")


def test_a_reading_that_changes_at_every_poll_has_no_visible_tick():
    time = Time()
    fine = SimulatedCounter(constant(50.0), clock=time, habits=Habits(tick_s=0.0005))
    assert examine(Discovery(sensors=[fine]), clock=time, sleep=time.sleep)[0].tick_period_s is None


class Broken:
    info = SensorInfo(
        name="gpu0", component="gpu", device="x", kind="energy", unit="J", period_s=0.1, method="measured",
        source="nothing", boundary="",
    )  # fmt: skip

    def read(self) -> float:
        raise SensorError("GPU is lost")

    def close(self) -> None:
        pass


def test_a_sensor_that_cannot_be_read_is_a_finding_too():
    time = Time()
    finding = examine(Discovery(sensors=[Broken()]), clock=time, sleep=time.sleep)[0]
    assert (finding.value, finding.method, finding.detail) == (None, "missing", "GPU is lost")


def test_a_counter_shows_its_rhythm_its_resolution_and_the_power_of_the_machine():
    time = Time()
    counter = SimulatedCounter(constant(60.0), clock=time, habits=Habits(tick_s=0.1), name="gpu0")
    finding = examine(Discovery(sensors=[counter]), seconds=5, clock=time, sleep=time.sleep)[0]
    assert finding.watts == pytest.approx(60.0, rel=2e-3)
    assert finding.resolution == pytest.approx(6.0)
    assert finding.jitter_s < 0.001


def test_a_power_beside_a_counter_is_held_against_it():
    time = Time()
    counter = SimulatedCounter(constant(100.0), clock=time, name="gpu0")
    power = SimulatedPower(constant(100.0), clock=time, habits=Habits(gain=1.75), name="gpu0:power")
    power.info = replace(power.info, witness_of="gpu0")
    one, two = examine(Discovery(sensors=[counter, power]), seconds=5, clock=time, sleep=time.sleep)
    assert one.against_counter is None
    assert two.against_counter == pytest.approx(1.75, rel=5e-3)
