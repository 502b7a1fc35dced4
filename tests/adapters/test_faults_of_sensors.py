"""Whatever a sensor or its sampler does, the training ends with the same result and the record says what was lost."""

from pathlib import Path
from typing import Any

import pytest
from adapters.faults import notes, once, train
from adapters.toys import WATTS, Meter

from efftrain.adapters.measure import Measurement
from efftrain.monitor import sampler
from efftrain.sensors.protocol import SensorError

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize("error", [SensorError("the driver is gone"), ZeroDivisionError("of all things")])
def test_a_sensor_that_raises(tmp_path: Path, meters: list[Meter], error: Exception):
    def fault(_: Measurement) -> None:
        meters[0].fails = error

    run = train(tmp_path, fault, steps=30)
    assert f"sensor gpu0 is lost: {error}" in notes(run)
    gpu = run.record.energy.components["gpu"]
    assert gpu.lower_bound
    assert gpu.value < WATTS * run.record.time.total.value
    assert meters[0].closed


def test_a_sensor_that_comes_back(tmp_path: Path, meters: list[Meter]):
    def fault(_: Measurement) -> None:
        meters[0].fails = SensorError("busy")

    def recovers(run: Measurement) -> None:
        once(fault)(run)
        if run._steps > 20:
            meters[0].fails = None

    run = train(tmp_path, recovers, steps=60)
    assert "is back" in notes(run)
    gpu = run.record.energy.components["gpu"]
    assert gpu.value == pytest.approx(WATTS * run.record.time.total.value, rel=0.02)  # a counter goes on counting


@pytest.mark.parametrize("reading", [float("nan"), float("inf"), -1.0, 1e300, None, "12"])
def test_a_sensor_that_reads_nonsense(tmp_path: Path, meters: list[Meter], reading: Any):
    def fault(_: Measurement) -> None:
        meters[0].fails = lambda _: reading

    run = train(tmp_path, fault)
    assert run.record is not None
    assert run.record.status == "complete"
    assert run.record.steps == 12


def test_no_sensor_at_all(tmp_path: Path, meters: list[Meter]):
    meters.clear()
    total = train(tmp_path).record.energy.total
    assert total.value is None
    assert total.method == "missing"


def test_a_sampler_that_dies(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> int:
        raise RuntimeError("a fault of ours")

    run = train(tmp_path, once(lambda _: monkeypatch.setattr(sampler, "_next", broken)))
    assert "sensors are lost from here on, because the sampler failed: a fault of ours" in notes(run)
    assert {c.name: c.status for c in run.record.checks}["sensors_kept"] == "warning"
    gpu = run.record.energy.components["gpu"]  # the counter was read at the end
    assert gpu.value == pytest.approx(WATTS * run.record.time.total.value, rel=0.05)


def test_threads_cannot_be_started(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    assert "no sampler: can't start new thread" in notes(train(tmp_path))
