"""Our own faults, wrong use and odd clocks: the training ends with the same result, and what was lost is said."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from adapters.faults import notes, once, train
from adapters.toys import WATTS, Meter

import efftrain
from efftrain.adapters import keeping

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize(
    ("place", "said", "kept"),
    [
        ("efftrain.meters.assemble.assemble", "no record could be made", False),
        ("efftrain.comparison.checks.run_checks", "the record could not be checked", True),
        ("efftrain.adapters.records._report", "the report could not be written", True),
        ("efftrain.adapters.keeping.environment", "the environment cannot be described", True),
        ("efftrain.adapters.keeping.measure_idle", "idle power could not be read", True),
        ("efftrain.adapters.keeping.find_sensors", "the measurement could not begin", False),
        ("efftrain.adapters.clock.MarkClock.mark", "step failed", True),
        ("efftrain.adapters.measure._fields", "failed", True),
        ("efftrain.record.recorder.JournalRecorder.end", "_end failed", True),
    ],
)
def test_our_own_faults(
    tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch, place: str, said: str, *, kept: bool
):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(place, broken)
    run = train(tmp_path, idle_s=0.05)
    assert f"{said}: a fault of ours" in "\n".join(run.problems)
    assert (run.record is not None) == kept


def test_a_log_handler_that_raises(tmp_path: Path, meters: list[Meter]):
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("a handler of the user's")

    handler = Broken()
    keeping.LOGGER.addHandler(handler)
    try:
        run = train(tmp_path, lambda run: run.step(tokens="many"))
    finally:
        keeping.LOGGER.removeHandler(handler)
    assert run.problems == ["step failed: invalid literal for int() with base 10: 'many'"]
    assert run.record.steps == 12


def test_values_that_are_none(tmp_path: Path, meters: list[Meter]):
    config: Any = {("not", "a name"): 1}
    with efftrain.measure("odd", out=tmp_path, device="cpu", config=config) as run:
        run.step(tokens=1, loss="high")
        run.step(tokens=-1, loss=float("nan"))
        run.step(tokens=1, loss=[1, 2])
        run.evaluation(loss="low")
        run.evaluation(loss=float("inf"))
        run.note({"any": object()})
    assert run.record.steps == 3
    assert run.record.tokens == 2
    assert run.record.loss.train == [None, None, None]
    assert run.record.config == {}
    for said in ("tokens -1", "loss is no number", "the configuration cannot be kept"):
        assert any(said in text for text in run.problems)


def test_used_twice_and_outside(tmp_path: Path, meters: list[Meter]):
    run = efftrain.measure("twice", out=tmp_path, device="cpu")
    run.step(tokens=1)
    with run:
        run.step(tokens=1)
    first = run.record
    with run:
        run.step(tokens=1)
        with run.phase("forward"), run.span("evaluate"):
            pass
    run.step(tokens=1)
    run.finish("failed")
    assert run.record is first
    assert first.steps == 1
    assert run.problems == [
        "step: nothing is recorded outside of the with block",
        "a measurement is used once: what comes after its first block is not measured",
    ]


def test_entered_in_itself(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("self", out=tmp_path, device="cpu") as run:
        with run:
            run.step(tokens=1)
        run.step(tokens=1)
    assert run.record.steps == 2


def test_nested(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("outer", out=tmp_path, device="cpu") as outer:
        time.sleep(0.05)
        with efftrain.measure("inner", out=tmp_path, device="cpu") as inner:
            time.sleep(0.05)
    assert "overlap" in notes(inner)
    assert outer.record.energy.total.value > inner.record.energy.total.value > 0


def test_a_phase_that_outlives_its_step(tmp_path: Path, meters: list[Meter]):
    with efftrain.measure("crossed", out=tmp_path, device="cpu") as run:
        for _ in range(3):
            with run.phase("forward"):
                time.sleep(0.01)
                run.step(tokens=1)
    assert run.record.steps == 3
    assert run.problems == []


def test_a_wall_clock_that_steps(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    real = time.time
    run = train(tmp_path, once(lambda _: monkeypatch.setattr(time, "time", lambda: real() - 86_400)))
    record = run.record
    assert 12 * 0.03 < record.time.total.value < 5
    assert record.energy.total.value == pytest.approx(WATTS * record.time.total.value, rel=0.02)
