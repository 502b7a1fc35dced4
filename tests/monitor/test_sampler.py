"""The sampler over hours of invented time: what it writes, and when."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efftrain.monitor.sampler import Sampler
from efftrain.record.journal import JournalWriter
from efftrain.sensors.cpu_time import CpuTimeSensor
from efftrain.sensors.protocol import SensorError, SensorInfo
from efftrain.sensors.simulated import Habits, SimulatedCounter, SimulatedPower, constant, piecewise

S = 1_000_000_000


class Time:
    """Moves only when the sampler waits, and asks it to stop at `end_s`."""

    def __init__(self, end_s: float) -> None:
        self.now = 0
        self.end = round(end_s * S)

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now = min(self.end, self.now + round(seconds * S))
        return self.now >= self.end


def sample(tmp_path: Path, end_s: float, *make: Callable[[Time], Any]) -> list[dict[str, Any]]:
    """Lines that a sampler writes in `end_s` seconds."""
    import json

    time_ = Time(end_s)
    journal = JournalWriter(tmp_path / "journal.jsonl", clock=time_)
    sampler = Sampler([m(time_) for m in make], journal, wait=time_.wait)
    sampler.start()
    sampler._thread.join(30)
    sampler.stop()
    sampler.stop()
    journal.close()
    return [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]


def test_a_changing_counter_is_written_once_a_change(tmp_path: Path):
    lines = sample(tmp_path, 10.0, lambda t: SimulatedCounter(constant(100.0), clock=t, period_s=0.03))
    assert {line["kind"] for line in lines} == {"tick"}
    values = [line["value"] for line in lines[:-1]]  # the last reading is written whether it changed or not
    assert values == sorted(set(values))
    assert len(values) == 100  # 0 J to 990 J; the tick at 10 s is the last reading's
    # Each change is seen at most one period of reading after it happened.
    assert all(0 <= line["t"] / S - line["value"] / 100.0 <= 0.0301 for line in lines[:-1])


def test_first_and_last_reading_stand_at_start_and_stop(tmp_path: Path):
    lines = sample(tmp_path, 3.21, lambda t: SimulatedCounter(constant(10.0), clock=t))
    assert (lines[0]["t"], lines[0]["value"]) == (0, 0.0)
    assert lines[-1]["t"] == round(3.21 * S)
    assert lines[-1]["value"] == pytest.approx(32.0)


def test_a_standing_reading_is_written_once_a_second(tmp_path: Path):
    lines = sample(tmp_path, 5.5, lambda t: SimulatedPower(constant(70.0), clock=t, period_s=0.05))
    assert [line["t"] / S for line in lines] == pytest.approx([0, 1, 2, 3, 4, 5, 5.5])
    assert {line["value"] for line in lines} == {70.0}


def test_each_sensor_has_its_own_rhythm(tmp_path: Path):
    fast = Habits(tick_s=0.01)
    lines = sample(
        tmp_path, 2.0,
        lambda t: SimulatedCounter(constant(1.0), clock=t, habits=fast, name="fast", period_s=0.05),
        lambda t: SimulatedCounter(constant(1.0), clock=t, habits=fast, name="slow", period_s=0.5),
    )  # fmt: skip
    times = {name: [line["t"] for line in lines if line["sensor"] == name] for name in ("fast", "slow")}
    assert times["fast"] == [i * S // 20 for i in range(41)]
    assert times["slow"] == [i * S // 2 for i in range(5)]


def test_a_drop_out_is_noted_once_and_the_return_too(tmp_path: Path):
    gone = Habits(drop_outs_s=((2.0, 5.5),))
    lines = sample(tmp_path, 9.0, lambda t: SimulatedCounter(constant(100.0), clock=t, habits=gone, name="gpu0"))
    notes = [(line["t"] / S, line["sensor"], line["lost"]) for line in lines if line["kind"] == "note"]
    # Three readings 0.05 s apart fail, then ten a second are tried: 2.2, 2.3, ... 5.5.
    assert notes == [(2.1, "gpu0", True), (5.5, "gpu0", False)]
    ticks = [line["t"] / S for line in lines if line["kind"] == "tick"]
    assert not [t for t in ticks if 2.0 <= t < 5.5]
    assert 5.5 in ticks


def test_a_sensor_that_stays_away_is_tried_once_a_second(tmp_path: Path):
    tried: list[float] = []

    class Gone(Erratic):
        def read(self) -> float:
            tried.append(0.0)
            raise SensorError("gone")

    sample(tmp_path, 60.0, lambda _: Gone(1.0))
    assert len(tried) < 100 + 60


def test_a_short_stumble_is_no_loss(tmp_path: Path):
    gone = Habits(drop_outs_s=((2.0, 2.1),))
    lines = sample(tmp_path, 4.0, lambda t: SimulatedCounter(constant(100.0), clock=t, habits=gone))
    assert {line["kind"] for line in lines} == {"tick"}


class Erratic:
    """Reads from a script; an exception in it is raised."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.info = SensorInfo(
            name="erratic", component="gpu", device="x", kind="power", unit="W", period_s=0.1, method="measured",
            source="script", boundary="",
        )  # fmt: skip

    def read(self) -> float:
        value = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(value, Exception):
            raise value
        return value

    def close(self) -> None:
        pass


def test_an_unexpected_exception_is_a_loss_at_once(tmp_path: Path):
    lines = sample(tmp_path, 3.0, lambda _: Erratic(1.0, ZeroDivisionError("driver"), 2.0))
    assert [(line["kind"], line.get("lost")) for line in lines[:4]] == [
        ("tick", None), ("note", True), ("note", False), ("tick", None),
    ]  # fmt: skip
    assert "driver" in lines[1]["text"]
    assert lines[2]["t"] - lines[1]["t"] == S // 10


def test_a_reading_that_is_no_number_is_a_failure(tmp_path: Path):
    lines = sample(tmp_path, 1.0, lambda _: Erratic(1.0, float("nan")))
    assert [line["kind"] for line in lines] == ["tick", "note"]


def test_one_lost_sensor_does_not_disturb_the_others(tmp_path: Path):
    lines = sample(
        tmp_path, 3.0, lambda _: Erratic(OSError("gone")), lambda t: SimulatedPower(constant(5.0), clock=t)
    )  # fmt: skip
    assert sum(line["kind"] == "note" for line in lines) == 1
    assert [line["t"] for line in lines if line["kind"] == "tick"] == [0, S, 2 * S, 3 * S]


def test_after_a_stall_no_missed_reading_is_made_up_for(tmp_path: Path):
    class Stalling(Time):
        def wait(self, seconds: float) -> bool:
            stalled = self.now < 2 * S <= self.now + seconds * S
            return super().wait(3.0 if stalled else seconds)

    time_ = Stalling(8.0)
    journal = JournalWriter(tmp_path / "journal.jsonl", clock=time_)
    counter = SimulatedCounter(constant(1.0), clock=time_, habits=Habits(tick_s=0.01), period_s=0.5)
    reads = []
    counter_read = counter.read
    counter.read = lambda: reads.append(time_.now) or counter_read()
    sampler = Sampler([counter], journal, wait=time_.wait)
    sampler.start()
    sampler._thread.join(30)
    sampler.stop()
    journal.close()
    assert [t / S for t in reads] == [0, 0.5, 1, 1.5, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8]


def test_energy_from_the_ticks_is_the_truth(tmp_path: Path):
    curve = piecewise([(2.0, 100.0), (3.0, 350.0), (5.0, 20.0)])
    lines = sample(tmp_path, 10.0, lambda t: SimulatedCounter(curve, clock=t, habits=Habits(gain=1.0)))
    assert lines[-1]["value"] - lines[0]["value"] == pytest.approx(2 * 100 + 3 * 350 + 5 * 20)


def test_lines_of_others_reach_the_disk_without_any_sensor(tmp_path: Path):
    journal = JournalWriter(tmp_path / "journal.jsonl")
    sampler = Sampler([], journal)
    sampler.start()
    journal.write("note", text="x")
    assert (tmp_path / "journal.jsonl").read_text() == ""
    deadline = time.monotonic() + 5
    while not (tmp_path / "journal.jsonl").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    sampler.stop()
    written = (tmp_path / "journal.jsonl").read_text()
    journal.close()
    assert written


def test_sampling_costs_less_than_one_percent_of_a_core(tmp_path: Path):
    journal = JournalWriter(tmp_path / "journal.jsonl")
    sampler = Sampler([CpuTimeSensor((4.0, 2.0, 10.0), "assumed", "test")], journal)
    sampler.start()
    start = time.monotonic()
    time.sleep(1.5)
    cost = sampler.cpu_seconds / (time.monotonic() - start)
    sampler.stop()
    journal.close()
    assert 0 < cost < 0.01
