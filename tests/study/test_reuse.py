"""Training from a checkpoint as a user does it: two commands, and what the second one's record says of the first."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from efftrain.record.schema import Run, load
from efftrain.training.checkpoints.folder import find

SMALL = ("--device", "cpu", "--country", "FRA", "--seq-len", 32, "--batch-size", 2)


def record(out: Path) -> Run:
    return load(out / "runs" / "baseline-s0" / "run.json", Run)


@pytest.fixture(scope="module")
def first(efftrain, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "study"
    done = efftrain("train", *SMALL, "--steps", 6, "--checkpoint-every", 6, "--data", text_folder, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_it_begins_where_the_checkpoint_ended_and_shows_its_cost_apart(efftrain, first, text_folder, tmp_path: Path):
    done = efftrain(
        "train", *SMALL, "--from", first, "--lora-rank", 2, "--learning-rate", 1e-12, "--steps", 1,
        "--checkpoint-every", 1, "--data", text_folder, "--out", tmp_path / "second",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    before, run = record(first), record(tmp_path / "second")
    assert run.loss.final_validation.value == pytest.approx(before.loss.final_validation.value, rel=1e-6)
    assert run.trainable_parameters is not None
    assert run.trainable_parameters < run.parameters / 20
    assert run.origin is not None
    cost, whole = run.origin.training_energy, before.energy.total
    assert (cost.value, cost.low, cost.lower_bound, cost.method) == (
        whole.value, whole.low, whole.lower_bound, whole.method,
    )  # fmt: skip
    assert (run.origin.run_id, run.origin.steps, run.origin.tokens) == ("baseline-s0", 6, before.tokens)
    assert run.origin.path == str(find(first).folder.resolve())
    assert run.energy.total.value == pytest.approx(sum(q.value or 0.0 for q in run.energy.components.values()))
    assert "which is not in this bill" in " ".join(done.stdout.split())
    kept = find(tmp_path / "second").facts["origin"]["training_energy"]
    assert kept["value"] == whole.value, "so that a chain is known without records"


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *classes: str) -> Path:
        rows = [{"text": f"words about {kind} number {i}", "kind": kind} for i in range(200) for kind in classes]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    return write


@pytest.mark.slow
def test_other_classes_get_a_head_of_their_own_and_resume_nothing(efftrain, labelled, tmp_path: Path):
    def classifier(data: Path, out: str, *more: object) -> None:
        task = ("--task", "classification", "--label-column", "kind", "--data", data, "--out", tmp_path / out)
        done = efftrain("train", *SMALL, "--steps", 2, "--checkpoint-every", 1, *task, *more)
        assert done.returncode == 0, done.stdout + done.stderr

    cats = labelled("cats.jsonl", "cats", "dogs")
    classifier(cats, "first")
    assert find(tmp_path / "first").classes == ("cats", "dogs")
    classifier(labelled("birds.jsonl", "birds", "fish"), "other", "--from", tmp_path / "first")
    assert any(
        "its head over 2 classes is new; class 1 is 'birds'" in note for note in record(tmp_path / "other").notes
    )

    labelled("cats.jsonl", "cats", "ants")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")}
    done = efftrain("train", "--resume", "--out", tmp_path / "first")
    assert done.returncode == 2
    said = "efftrain: cats.jsonl: class 1 is 'ants' now, and was 'cats' when this study began; "
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--model", "micro"), "d_model 128 in the checkpoint, 256 here"),
        (("--lora-alpha", 4), "--lora-alpha: needs --lora-rank"),
    ],
)
def test_what_does_not_fit_is_one_line(efftrain, first: Path, tmp_path: Path, asked: tuple[str, ...], said: str):
    done = efftrain("train", "--device", "cpu", "--from", first, *asked, "--out", tmp_path / "o")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "o").exists()
