"""A plain loop, measured: what it marks is what stands in the record, and its joules are those of a known power."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapters.toys import WATTS, measured_training, toy_training

import efftrain
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import read_journal
from efftrain.record.schema import Run, Study, dumps, load
from efftrain.study.collect import collect

pytestmark = pytest.mark.usefixtures("meters", "no_report")


def test_import_stays_light():
    code = "import sys, efftrain; print([m for m in ('torch', 'pandas', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert callable(efftrain.measure)
    with pytest.raises(AttributeError, match="magic"):
        efftrain.magic  # noqa: B018


def test_a_loop_with_phases(tmp_path: Path):
    result, run = measured_training(tmp_path, seed=3, parameters=7, config={"lr": 0.1}, country="FRA")
    record = run.record
    assert result == toy_training()
    assert record is not None
    assert (record.status, record.steps, record.tokens, record.seed, record.parameters) == ("complete", 5, 320, 3, 7)
    assert record.loss.train == result[0]
    assert record.loss.final_validation.value == result[0][-1]
    assert record.carbon.location == "France"
    assert run.problems == []
    phases = {name: q.value or 0 for name, q in record.time.phases.items()}
    assert list(phases) == ["forward", "backward", "optimizer"]
    assert phases["forward"] == pytest.approx(0.010, rel=0.5)
    assert phases["backward"] == pytest.approx(0.020, rel=0.5)
    assert sum(phases.values()) == pytest.approx(record.time.step.value, rel=1e-6)


def test_joules_are_power_times_time(tmp_path: Path):
    _, run = measured_training(tmp_path, steps=20)
    total, seconds = run.record.energy.total, run.record.time.total.value
    assert total.value == pytest.approx(WATTS * seconds, rel=0.01)
    assert total.low <= WATTS * seconds
    assert total.lower_bound  # the plug has no meter
    assert run.record.energy.per_token.value == pytest.approx(total.value / 1280)


def test_what_lies_between_steps(tmp_path: Path):
    """A long gap before the first phase is `other`; a span between two steps belongs to neither."""
    with efftrain.measure("gaps", out=tmp_path, device="cpu") as run:
        time.sleep(0.2)  # before the first phase: not in any step
        for _ in range(3):
            with run.phase("forward"):
                time.sleep(0.02)
            run.step(tokens=1)
            time.sleep(0.02)  # fetching data, say
            with run.span("evaluate"):
                time.sleep(0.05)
    time_ = run.record.time
    assert time_.step.value == pytest.approx(0.02, rel=0.6)
    assert time_.spans["evaluate"].value == pytest.approx(0.15, rel=0.3)
    assert "other" not in time_.phases
    with efftrain.measure("fetching", out=tmp_path, device="cpu") as run:
        for _ in range(4):
            time.sleep(0.02)
            with run.phase("forward"), run.phase("attention"):
                time.sleep(0.02)
            run.step(tokens=1)
    phases = {name: q.value for name, q in run.record.time.phases.items()}
    assert set(phases) == {"forward", "attention", "other"}
    assert phases["forward"] < 0.002 < phases["attention"]
    assert phases["other"] == pytest.approx(0.015, rel=0.4)  # three gaps of 20 ms over four steps


def test_a_loop_without_phases_or_steps(tmp_path: Path):
    with efftrain.measure("block", out=tmp_path, device="cpu") as run:
        time.sleep(0.3)
    record = run.record
    assert record.steps == 0
    assert record.time.total.value == pytest.approx(0.3, abs=0.1)
    assert record.energy.total.value == pytest.approx(WATTS * record.time.total.value, rel=0.02)
    assert record.time.spans["whole"].value == record.time.total.value
    with efftrain.measure("steps", out=tmp_path, device="cpu") as run:
        for _ in range(3):
            time.sleep(0.02)
            run.step()
    assert run.record.time.step.value == pytest.approx(0.02, rel=0.5)
    assert run.record.energy.per_token.value is None
    assert "whole" not in run.record.time.spans


def test_warm_up_is_not_on_the_bill(tmp_path: Path):
    with efftrain.measure("warm", out=tmp_path, device="cpu") as run:
        with run.span("warmup"):
            time.sleep(0.2)
        for _ in range(3):
            time.sleep(0.02)
            run.step(tokens=1)
    assert run.record.time.total.value == pytest.approx(0.06, rel=0.5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("a bug of mine"), "failed"), (KeyboardInterrupt(), "interrupted"), (MemoryError(), "oom"),
        (SystemExit(3), "failed"), (SystemExit(0), "complete"),
    ],
)  # fmt: skip
def test_exceptions_pass_unchanged(tmp_path: Path, error: BaseException, status: str):
    run = efftrain.measure("raises", out=tmp_path, device="cpu")
    with pytest.raises(type(error)) as caught, run:  # noqa: PT012
        with run.phase("forward"):
            time.sleep(0.01)
        run.step(tokens=5)
        with run.phase("forward"):
            raise error
    assert caught.value is error
    assert run.record.status == status
    assert run.record.steps == 1
    assert load(run.folder / "runs/raises/run.json", Run) == run.record


def test_the_folder_is_a_study(tmp_path: Path):
    _, run = measured_training(tmp_path)
    assert run.folder == tmp_path / "toy"
    study = load(run.folder / "study.json", Study)
    assert study.baseline == "toy"
    journal = read_journal(run.folder / "runs/toy/journal.jsonl")
    assert journal.status == "complete"
    assert journal.header["config"] == {}
    assert [dumps(r) for r in collect(StudyFolder(run.folder)).runs] == [
        dumps(run.record)
    ]  # as `efftrain report` does it


def test_a_folder_is_never_overwritten(tmp_path: Path):
    folders = [measured_training(tmp_path, steps=1)[1].folder for _ in range(3)]
    assert folders == [tmp_path / "toy", tmp_path / "toy-2", tmp_path / "toy-3"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("data")
    with efftrain.measure("mine", out=tmp_path, device="cpu") as run:
        pass
    assert run.folder == tmp_path / "mine-2"
    assert (tmp_path / "mine" / "precious").read_text() == "data"


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with efftrain.measure("default", device="cpu") as run:
        pass
    assert run.folder.parent == Path("efftrain-runs")
    assert run.folder.name.startswith("default-2")


def test_the_summary_is_a_paragraph(tmp_path: Path):
    run = efftrain.measure("words", out=tmp_path, device="cpu", intensity=56.0)
    assert "No record" in str(run)
    with run:
        time.sleep(0.05)
        run.step(tokens=1000)
    text = str(run)
    assert "\n" not in text
    for part in ("words: complete, 1 steps and 1,000 tokens", "measured", "56.0 g/kWh", "report.html", "not read"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "name"), ({"name": "a/b"}, "slash"), ({"name": ".."}, "dot"), ({"device": "tpu"}, "cuda:N"),
        ({"country": "FRX"}, "FRX"), ({"pue": 0.5}, "pue"), ({"intensity": -1}, "intensity"),
        ({"node_overhead_w": -1.0}, "node_overhead_w"), ({"profile": "nowhere.csv"}, "nowhere.csv"),
    ],
)  # fmt: skip
def test_bad_arguments_are_said_at_once(arguments: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        efftrain.measure(**{"name": "x", **arguments})


def test_losses_that_come_late(tmp_path: Path):
    with efftrain.measure("late", out=tmp_path, device="cpu") as run:
        for step in range(4):
            run.step(tokens=1)
            if step % 2:
                run.late(loss=step / 2)
    assert run.record.loss.train == [None, 0.5, None, 1.5]


def test_threads_may_mark(tmp_path: Path):
    def work() -> None:
        for _ in range(50):
            with run.phase("forward"):
                pass
            run.step(tokens=2)

    with efftrain.measure("threads", out=tmp_path, device="cpu") as run:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (run.record.steps, run.record.tokens) == (200, 400)
    assert run.problems == []


@pytest.mark.slow
def test_marks_cost_little(tmp_path: Path):
    with efftrain.measure("cost", out=tmp_path, device="cpu") as run:
        began = time.perf_counter()
        for _ in range(1000):
            with run.phase("forward"):
                pass
            with run.phase("backward"):
                pass
            run.step(tokens=1, loss=0.5)
        each = (time.perf_counter() - began) / 1000
    assert each < 500e-6


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_journal_alone(tmp_path: Path):
    with efftrain.measure("parent", out=tmp_path, device="cpu") as run:
        run.step(tokens=1)
        child = os.fork()
        if not child:
            run.step(tokens=1000)
            run.finish("failed")
            os._exit(0)
        os.waitpid(child, 0)
        run.step(tokens=1)
    assert (run.record.status, run.record.steps, run.record.tokens) == ("complete", 2, 2)


@dataclass
class LateEvent:
    """A device that takes 30 ms for what the host hands it in no time."""

    at: float

    def query(self) -> bool:
        return time.monotonic() >= self.at

    def elapsed_time(self, end_event: "LateEvent") -> float:
        return (end_event.at - self.at) * 1e3


def test_a_loop_that_runs_ahead_of_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The host is through in an instant; phases and steps are the device's, and the host never waits for it."""
    free = [0.0]

    def launch(seconds: float) -> None:
        free[0] = max(free[0], time.monotonic()) + seconds

    monkeypatch.setattr("efftrain.adapters.measure.cuda_event", lambda: LateEvent(max(free[0], time.monotonic())))
    wait = "efftrain.adapters.measure.wait_for_cuda"
    monkeypatch.setattr(wait, lambda: time.sleep(max(0, free[0] - time.monotonic())))
    with efftrain.measure("ahead", out=tmp_path) as run:
        began = time.monotonic()
        for _ in range(10):
            with run.phase("forward"):
                launch(0.01)
            with run.phase("backward"):
                launch(0.02)
            run.step(tokens=1)
        assert time.monotonic() - began < 0.2
    record = run.record
    assert record.steps == 10
    assert record.time.step.value == pytest.approx(0.03, rel=0.1)
    phases = {name: q.value for name, q in record.time.phases.items()}
    assert phases == pytest.approx({"forward": 0.01, "backward": 0.02}, rel=0.15)
    assert record.energy.total.value == pytest.approx(WATTS * 0.3, rel=0.1)


KILLED = """
import time, efftrain
with efftrain.measure("killed", out="out", device="cpu") as run:
    for step in range(1000):
        with run.phase("forward"):
            time.sleep(0.02)
        run.step(tokens=10)
        if step == 50:
            print("now", flush=True)
"""


def test_a_killed_training_has_a_record(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with process:
        process.stdout.readline()
        process.kill()
    (run,) = collect(StudyFolder(tmp_path / "out/killed")).runs
    assert run.status == "killed"
    assert 20 <= run.steps <= 52
    assert run.tokens == 10 * run.steps
    assert run.energy.total.value > 0
