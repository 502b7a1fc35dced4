from pathlib import Path

import pytest

from efftrain.record.journal import SCHEMA, JournalWriter, read_journal
from efftrain.record.recorder import JournalRecorder, NullRecorder, Recorder


def speak(recorder: Recorder) -> None:
    recorder.cost(from_step=1, phase="forward", module="m", op="mm", calls=1, flops=2, model_flops=2, bytes=3)
    with recorder.span("warmup"):
        pass
    recorder.step(
        step=1, tokens=8, t=10, t_end=40, phases=[("data", 10), ("forward", 20)], loss=1.5, learning_rate=0.1,
        grad_norm=None,
    )  # fmt: skip
    recorder.evaluation(step=1, tokens=8, loss=1.25, stderr=0.5)
    recorder.memory(from_step=1, peak_bytes=7)
    recorder.note("a sensor was lost", sensor="gpu0", lost=True)
    recorder.end("complete")


def test_every_fact_becomes_a_line(tmp_path: Path):
    writer = JournalWriter(tmp_path / "j")
    writer.write("header", schema=SCHEMA)
    speak(JournalRecorder(writer))
    writer.close()
    journal = read_journal(tmp_path / "j")
    kinds = [line["kind"] for line in journal.lines]
    assert kinds == ["cost", "span", "step", "evaluation", "memory", "note", "end"]
    (step,) = journal.of("step")
    assert (step["t"], step["t_end"], step["phases"]) == (10, 40, [["data", 10], ["forward", 20]])
    (span,) = journal.of("span")
    assert span["t_end"] >= span["t"]


def test_a_span_that_ends_in_an_exception_is_written(tmp_path: Path):
    writer = JournalWriter(tmp_path / "j")
    writer.write("header", schema=SCHEMA)
    recorder = JournalRecorder(writer)
    with pytest.raises(KeyError), recorder.span("evaluate"):
        raise KeyError
    writer.close()
    assert [line["name"] for line in read_journal(tmp_path / "j").of("span")] == ["evaluate"]


def test_the_null_recorder_takes_the_same_calls():
    speak(NullRecorder())
