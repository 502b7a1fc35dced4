"""A run that is killed or stopped goes on from its checkpoint: bit for bit, and with one bill for all of it."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from efftrain.meters.assemble import assemble
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import read_journal
from efftrain.record.quantities import estimate
from efftrain.study.collect import collect
from efftrain.study.planning.plan import Request, RunPlan, make_plan
from efftrain.study.resume import FRESH, resumption
from efftrain.training.checkpoints.folder import find, finish, keep_newest, step_folder, unfinished_folder

RUN = "baseline-s0"
STEPS, EVERY = 360, 20
ENERGY = estimate(50.0, "J", method="measured", source="a counter", u_systematic=1.0)


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    folder.run(RUN).mkdir(parents=True)
    return folder


def planned(checkpoint_every: int | None = 5) -> RunPlan:
    (run,) = make_plan(Request(variants=("baseline",), seeds=1, steps=20)).runs
    return dataclasses.replace(run, config=dataclasses.replace(run.config, checkpoint_every=checkpoint_every))


def keep(folder: StudyFolder, run: RunPlan, step: int, **facts: Any) -> Path:
    """A checkpoint that is whole, of files that nobody loads."""
    checkpoints = folder.checkpoints(RUN)
    unfinished = unfinished_folder(checkpoints, step)
    unfinished.mkdir(parents=True)
    (unfinished / "__0_0.distcp").write_bytes(b"weights")
    known = {
        "run_id": RUN, "study_id": "s", "step": step, "tokens": 512 * step, "pruned": False,
        "config": run.config.as_dict(), "energy": dataclasses.asdict(ENERGY), "grams": 3.0, "seconds": 9.0,
    }  # fmt: skip
    finish(unfinished, step_folder(checkpoints, step), {**known, **facts})
    return step_folder(checkpoints, step)


def written(path: Path, run: RunPlan, steps: range) -> None:
    """A journal of half-second steps without sensors."""
    header = {
        "kind": "header", "t": 0, "schema": "efftrain.journal/1", "run_id": RUN, "study_id": "s", "seed": 0,
        "variant": "baseline", "config": run.config.as_dict(), "environment": {}, "corpus": {}, "sensors": [],
        "absent": [], "idle": {}, "parameters": 1, "teacher": None, "clock": {},
        "peak": {"device": "d", "dtype": "fp32", "flops_per_s": None, "method": "missing", "source": "none"},
        "carbon": {
            "location": "x", "regions": [], "pue": {"value": 1.0, "method": "assumed", "source": "none"},
            "intensity": {"value": 480.0, "method": "assumed", "source": "table"},
        },
    }  # fmt: skip
    lines = [header]
    for index, step in enumerate(steps):
        t = index * 500_000_000
        lines.append({"kind": "step", "t": t, "t_end": t + 500_000_000, "step": step, "tokens": 512, "loss": 1.0,
                      "phases": [], "learning_rate": 1.0, "grad_norm": 1.0})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_keeps_no_checkpoints_begins_again(study: StudyFolder):
    run = planned(None)
    written(study.journal(RUN), run, range(1, 8))
    assert resumption(run, study, print) == FRESH


def test_a_run_without_an_earlier_attempt_begins(study: StudyFolder):
    assert resumption(planned(), study, print) == FRESH


def test_the_journals_of_an_attempt_are_kept_and_counted(study: StudyFolder):
    run, said = planned(), []
    written(study.journal(RUN), run, range(1, 8))
    (study.run(RUN) / "rank-1.jsonl").write_text(study.journal(RUN).read_text())
    newest = keep(study, run, 5)
    found = resumption(run, study, said.append)
    assert found["resume"] == str(newest)
    assert found["before"] == {
        "attempts": 1, "step": 7, "tokens": 7 * 512, "energy": None, "grams": None, "seconds": 3.5,
    }  # fmt: skip
    assert found["costs"] == str(study.attempts(RUN)[0])
    assert said == [f"{RUN} goes on after step 5"]
    assert not study.journal(RUN).exists()
    assert [path.name for path in study.attempts(RUN)] == ["1.jsonl"]
    assert [path.name for path in study.attempt_ranks(study.attempts(RUN)[0])] == ["1-rank-1.jsonl"]
    written(study.journal(RUN), run, range(6, 9))
    again = resumption(run, study, said.append)
    assert (again["before"]["attempts"], again["before"]["step"], again["before"]["seconds"]) == (2, 8, 5.0)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(study: StudyFolder):
    run, said = planned(), []
    written(study.journal(RUN), run, range(1, 13))
    older, newest = keep(study, run, 5), keep(study, run, 10)
    (newest / "__0_0.distcp").write_bytes(b"weight5")
    unfinished_folder(study.checkpoints(RUN), 15).mkdir()
    assert resumption(run, study, said.append)["resume"] == str(older)
    assert "damaged" in said[0]
    assert older.name in said[0]
    moved = f"passed-over-{newest.name}"  # it would take one of two places for ever
    assert sorted(path.name for path in study.checkpoints(RUN).iterdir()) == [moved, older.name]
    assert moved in said[1]


def test_checkpoints_of_a_training_that_begins_again_are_not_taken_for_older_ones(study: StudyFolder):
    run, said = planned(), []
    written(study.journal(RUN), run, range(1, 23))
    for step in (15, 20):
        (keep(study, run, step) / "__0_0.distcp").write_bytes(b"weight5")
    assert resumption(run, study, said.append)["resume"] is None
    for step in (5, 10):
        keep(study, run, step)
        keep_newest(study.checkpoints(RUN), 2)
    assert find(study.checkpoints(RUN)).step == 10
    written(study.journal(RUN), run, range(1, 12))
    assert resumption(run, study, said.append)["resume"] == str(step_folder(study.checkpoints(RUN), 10))
    (keep(study, run, 20) / "__0_0.distcp").write_bytes(b"weight5")
    resumption(run, study, said.append)
    names = sorted(path.name for path in study.checkpoints(RUN).glob("passed-over-*"))
    assert names == ["passed-over-step-00000020", "passed-over-step-00000020-2"]
    keep(study, run, 15)
    keep_newest(study.checkpoints(RUN), 2)
    assert len(list(study.checkpoints(RUN).glob("passed-over-*"))) == 2, "training is not past them yet"
    keep(study, run, 20)
    keep_newest(study.checkpoints(RUN), 2)
    left = [step_folder(study.checkpoints(RUN), step) for step in (15, 20)]
    assert sorted(study.checkpoints(RUN).iterdir()) == left


def test_killed_before_its_first_checkpoint_it_begins_again_and_all_of_it_is_billed(study: StudyFolder):
    run, said = planned(), []
    written(study.journal(RUN), run, range(1, 4))
    found = resumption(run, study, said.append)
    assert found["resume"] is None
    assert found["before"]["step"] == 3
    assert said == [f"{RUN} kept no checkpoint: from step 1"]
    written(study.journal(RUN), run, range(1, 21))
    (record,) = collect(study).runs
    assert (record.steps, record.time.total.value, len(record.attempts)) == (20, 11.5, 2)


def test_where_the_journals_are_gone_the_checkpoint_knows_what_was_used(study: StudyFolder):
    run = planned()
    newest = keep(study, run, 5, attempts=2)
    found = resumption(run, study, print)
    assert found == {
        "resume": str(newest),
        "before": {
            "attempts": 2, "step": 5, "tokens": 5 * 512, "energy": dataclasses.asdict(ENERGY), "grams": 3.0,
            "seconds": 9.0,
        },
    }  # fmt: skip


def test_a_checkpoint_of_another_configuration_is_passed_over(study: StudyFolder):
    run, said = planned(), []
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, batch_size=3))
    keep(study, other, 5)
    assert resumption(run, study, said.append) == FRESH
    assert "another configuration" in said[0]


def test_a_journal_that_holds_nothing_is_no_attempt(study: StudyFolder):
    study.journal(RUN).write_text('{"kind":"hea')
    assert resumption(planned(), study, print) == FRESH
    assert study.run_ids() == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe no journal", b""])
def test_ranks_of_an_attempt_without_a_journal_are_out_of_the_way_and_nothing_is_lost(
    study: StudyFolder, content: bytes | None
):
    run = planned()
    keep(study, run, 5)
    written(study.journal(RUN), run, range(1, 8))
    resumption(run, study, print)
    for _ in range(2):
        (study.run(RUN) / "rank-1.jsonl").write_text("what it wrote")
        if content is not None:
            study.journal(RUN).write_bytes(content)
        assert resumption(run, study, print)["before"]["attempts"] == 1
        assert not study.ranks(RUN)
        assert not study.journal(RUN).exists()
    left = sorted(path.name for path in study.attempts_folder(RUN).iterdir())
    ranks = ["2-rank-1.jsonl.unreadable", "3-rank-1.jsonl.unreadable"]
    journals = [] if content is None else ["2.jsonl.unreadable", "3.jsonl.unreadable"]
    assert left == sorted(["1.jsonl", *ranks, *journals])
    if content is not None:
        assert (study.attempts_folder(RUN) / "2.jsonl.unreadable").read_bytes() == content
    written(study.journal(RUN), run, range(6, 10))
    resumption(run, study, print)
    assert [path.name for path in study.attempts(RUN)] == ["1.jsonl", "4.jsonl"]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within a minute")


def lines_of(path: Path) -> int:
    return path.read_text().count('"kind":"step"') if path.exists() else 0


def worker_of(process: Any) -> psutil.Process:
    (worker,) = [child for child in psutil.Process(process.pid).children() if "worker" in " ".join(child.cmdline())]
    return worker


def arguments(text_folder: Path, out: Path) -> list[object]:
    """Steps of some ten milliseconds each, with dropout."""
    return [
        "train", "--steps", STEPS, "--checkpoint-every", EVERY, "--seq-len", 32, "--batch-size", 2, "--dropout", 0.1,
        "--eval-every", 60, "--data", text_folder, "--device", "cpu", "--out", out,
    ]  # fmt: skip


def record(folder: StudyFolder) -> dict[str, Any]:
    return json.loads(folder.record(RUN).read_text())


@pytest.mark.slow
def test_killed_and_stopped_and_resumed_is_uninterrupted_and_its_bill_holds_all_attempts(
    start, efftrain, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait take the others' time
    whole, cut = StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "cut")
    done = efftrain(*arguments(text_folder, whole.root))
    assert done.returncode == 0, done.stdout + done.stderr

    process = start(*arguments(text_folder, cut.root))
    wait_until(lambda: lines_of(cut.journal(RUN)) >= 50, "50 steps")
    worker_of(process).send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    lost = record(cut)
    assert lost["status"] == "killed"

    process = start("train", "--resume", "--out", cut.root)
    wait_until(lambda: cut.attempts(RUN) != [] and lines_of(cut.journal(RUN)) >= 30, "30 steps more")
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert time.monotonic() - began < 15
    stopped = record(cut)
    assert stopped["status"] == "interrupted"
    assert find(cut.root).step == stopped["steps"], "a run that is stopped loses no step"

    done = efftrain("train", "--resume", "--out", cut.root)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = record(cut), record(whole)
    assert ours["status"] == "complete"
    assert ours["loss"]["train"] == theirs["loss"]["train"]
    assert [v["loss"] for v in ours["loss"]["validation"]] == [v["loss"] for v in theirs["loss"]["validation"]]
    assert (ours["steps"], ours["tokens"]) == (theirs["steps"], theirs["tokens"])

    attempts = [assemble(read_journal(path)) for path in (*cut.attempts(RUN), cut.journal(RUN))]
    assert len(attempts) == 3
    total = sum(run.energy.total.value or 0 for run in attempts)
    assert ours["energy"]["total"]["value"] == pytest.approx(total)
    assert ours["time"]["total"]["value"] == pytest.approx(sum(run.time.total.value or 0 for run in attempts))
    assert ours["attempts"][0]["first_step"] == 1
    assert ours["attempts"][1]["first_step"] % EVERY == 1
    assert ours["attempts"][2]["first_step"] == stopped["steps"] + 1
    energies = [point["energy_j"] for point in ours["loss"]["validation"]]
    assert energies == sorted(energies)
    last = find(cut.root)
    assert last.step == STEPS
    assert last.energy is not None
    assert last.energy.value == pytest.approx(total, rel=0.1)  # known while it ran: the last readings are not in yet
