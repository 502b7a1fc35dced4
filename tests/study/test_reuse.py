"""Training from a checkpoint as a user does it: two commands, and what the second one's record says of the first."""

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
