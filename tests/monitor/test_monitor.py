import time
from pathlib import Path
from typing import Any

import pytest

from efftrain.monitor.monitor import Monitor, header_fields
from efftrain.record.journal import read_journal
from efftrain.sensors.discover import REST_OF_NODE
from efftrain.sensors.protocol import Absent, Discovery
from efftrain.sensors.simulated import SimulatedCounter, constant

HEADER = {"run_id": "r1", "study_id": "s1", "variant": "baseline", "seed": 0, "config": {}, "environment": {}}


def discovery(**fields: Any) -> Discovery:
    counter = SimulatedCounter(constant(100.0), clock=time.monotonic_ns, period_s=0.02)
    return Discovery(sensors=[counter], absent=[REST_OF_NODE], **fields)


def test_a_run_from_entry_to_exit(tmp_path: Path):
    path = tmp_path / "runs" / "baseline-s0" / "journal.jsonl"
    found = discovery()
    before = time.monotonic_ns()
    with Monitor(path, found, HEADER) as monitor:
        monitor.recorder.step(
            step=1, tokens=4, t=1, t_end=2, phases=[("data", 1)], loss=2.0, learning_rate=0.1, grad_norm=None
        )
        time.sleep(0.25)
        monitor.recorder.end("complete")
    journal = read_journal(path)
    assert journal.header["schema"] == "efftrain.journal/1"
    assert journal.header["run_id"] == "r1"
    assert [s["name"] for s in journal.header["sensors"]] == ["simulated"]
    assert [a["component"] for a in journal.header["absent"]] == ["rest_of_node"]
    anchor = journal.header["clock"]
    assert before <= anchor["monotonic_ns"] <= time.monotonic_ns()
    assert abs(anchor["unix_s"] - time.time()) < 60
    assert journal.status == "complete"
    ticks = journal.of("tick")
    assert ticks[-1]["value"] > ticks[0]["value"]
    assert [sensor.closed for sensor in found.sensors if isinstance(sensor, SimulatedCounter)] == [True]


def test_the_header_is_on_the_disk_before_anything_else_happens(tmp_path: Path):
    with Monitor(tmp_path / "journal.jsonl", discovery(), HEADER):
        assert read_journal(tmp_path / "journal.jsonl").header["run_id"] == "r1"


def test_an_exception_passes_through_and_no_end_is_invented(tmp_path: Path):
    with pytest.raises(KeyError), Monitor(tmp_path / "journal.jsonl", discovery(), HEADER):
        raise KeyError("training")
    assert read_journal(tmp_path / "journal.jsonl").status == "killed"


def test_a_component_that_another_sensor_reads_is_not_absent():
    absent = [
        Absent(component="cpu", name="rapl", why="no RAPL", stand_in="cpu-time"),
        Absent(component="dram", name="rapl:dram", why="no RAPL"),
    ]
    header = header_fields(HEADER, Discovery(absent=absent), time.monotonic_ns)
    assert header["absent"] == [{"component": "dram", "why": "no RAPL"}]
    assert header["sensors"] == []
    assert header["idle"] == {}


def test_no_sensors_at_all_is_a_journal_too(tmp_path: Path):
    with Monitor(tmp_path / "journal.jsonl", Discovery(absent=[REST_OF_NODE]), HEADER) as monitor:
        monitor.recorder.end("complete")
    assert read_journal(tmp_path / "journal.jsonl").status == "complete"


def test_no_thread_costs_the_readings_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with Monitor(tmp_path / "journal.jsonl", discovery(), HEADER) as monitor:
        monitor.recorder.end("complete")
    journal = read_journal(tmp_path / "journal.jsonl")
    assert [(n["sensor"], n["lost"]) for n in journal.of("note")] == [("simulated", True)]
    assert journal.status == "complete"


def test_a_sensor_that_cannot_be_closed_is_left(tmp_path: Path):
    class Stuck(SimulatedCounter):
        def close(self) -> None:
            raise OSError("busy")

    stuck = Stuck(constant(1.0), clock=time.monotonic_ns)
    with Monitor(tmp_path / "journal.jsonl", Discovery(sensors=[stuck]), HEADER) as monitor:
        monitor.recorder.end("complete")
    assert read_journal(tmp_path / "journal.jsonl").status == "complete"


def test_a_journal_is_never_overwritten(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_text("kept")
    with pytest.raises(FileExistsError), Monitor(tmp_path / "journal.jsonl", discovery(), HEADER):
        pass
    assert (tmp_path / "journal.jsonl").read_text() == "kept"


def test_a_recorder_needs_an_entered_monitor(tmp_path: Path):
    with pytest.raises(RuntimeError, match="with statement"):
        _ = Monitor(tmp_path / "journal.jsonl", discovery(), HEADER).recorder
