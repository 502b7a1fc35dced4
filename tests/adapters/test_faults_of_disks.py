"""Whatever becomes of files and folders, the training ends with the same result and the record says what was lost."""

import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from adapters.faults import journal_of, notes, once, train
from adapters.toys import Meter, toy_training

from efftrain.adapters.measure import Measurement

pytestmark = pytest.mark.usefixtures("no_report")


def test_a_full_disk(tmp_path: Path, meters: list[Meter]):
    def fill(run: Measurement) -> None:
        journal_of(run)._file.close()
        journal_of(run)._file = open("/dev/full", "w")  # noqa: SIM115

    run = train(tmp_path, once(fill))
    assert run.record.status == "complete"
    assert 0 < run.record.steps < 12
    assert "the journal could not be written to its end" in notes(run)


LIMITED = """
import resource, sys, time
import efftrain
from pathlib import Path
weight, losses = 1.0, []
with efftrain.measure("toy", out=sys.argv[1], device="cpu") as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for step in range(1, 301):
        losses.append((weight - 0.3) ** 2)
        weight -= 0.1 * 2 * (weight - 0.3) / step
        time.sleep(0.003)
        run.step(tokens=64, loss=losses[-1])
print(losses[-1], weight, run.record.steps, run.record.status)
print(*run.problems, sep="\\n")
"""


def test_files_that_may_not_grow(tmp_path: Path):
    """In a process of its own, whose files the kernel itself refuses to let grow beyond 5000 bytes."""
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loss, weight, steps, status = done.stdout.splitlines()[0].split()
    losses, expected = toy_training(300)
    assert (float(loss), float(weight), status) == (losses[-1], expected, "complete")
    assert 0 < int(steps) < 300
    assert "run.json could not be written" in done.stdout
    assert "run.json could not be written" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("out", ["a file", "/proc/nowhere", "/dev/null/x"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, meters: list[Meter], out: str):
    place = Path(out) if out.startswith("/") else tmp_path / out
    if not out.startswith("/"):
        place.write_text("not a folder")
    run = train(place)
    assert run.record.steps == 12
    assert "the measurement could not begin" in notes(run)
    assert f"everything goes to {run.folder} instead" in notes(run)
    assert (run.folder / "runs/toy/run.json").exists()
    shutil.rmtree(run.folder)


def test_no_folder_anywhere(tmp_path: Path, meters: list[Meter], monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    run = train(Path("/proc/nowhere"))
    assert run.record is None
    assert run.folder is None
    assert "no space left" in str(run)


def test_a_journal_that_is_closed(tmp_path: Path, meters: list[Meter]):
    run = train(tmp_path, once(lambda run: journal_of(run).close()))
    assert run.record.status == "complete"
    assert "the journal could not be written to its end" in notes(run)


def test_a_folder_that_disappears(tmp_path: Path, meters: list[Meter]):
    run = train(tmp_path, once(lambda run: shutil.rmtree(run.folder)))
    assert run.record is None
    assert "no record could be made" in "\n".join(run.problems)
