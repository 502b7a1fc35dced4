"""A checkpoint is whole or it is none: each way to damage a folder is recognised, and the one before is used."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from efftrain.record.quantities import estimate
from efftrain.training.checkpoints.folder import (
    FACTS,
    CheckpointError,
    find,
    finish,
    keep_newest,
    move_aside,
    passed_over,
    remove_unfinished,
    step_folder,
    step_folders,
    unfinished_folder,
)
from efftrain.training.config import RunConfig

ENERGY = estimate(12.5, "J", method="measured", source="a counter", u_random=0.1, u_systematic=0.2)

Make = Callable[..., Path]


@pytest.fixture
def make(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> Make:
    """Write a checkpoint of a run in `tmp_path/runs/baseline-s0`."""

    def make(step: int, *, run: str = "baseline-s0", **facts: object) -> Path:
        checkpoints = tmp_path / "runs" / run / "checkpoints"
        unfinished = unfinished_folder(checkpoints, step)
        unfinished.mkdir(parents=True)
        (unfinished / "__0_0.distcp").write_bytes(bytes(range(256)) * 16)
        (unfinished / ".metadata").write_bytes(b"where what is")
        known = {
            "run_id": run, "study_id": "study", "variant": "baseline", "seed": 0, "step": step, "tokens": 32 * step,
            "pruned": False, "config": tiny_config().as_dict(), "energy": asdict(ENERGY),
        }  # fmt: skip
        finish(unfinished, step_folder(checkpoints, step), {**known, **facts})
        return step_folder(checkpoints, step)

    return make


def test_a_step_a_checkpoints_folder_a_run_and_a_study_of_one_run_mean_the_newest(make: Make, tmp_path: Path):
    older, newest = make(5), make(120)
    run = tmp_path / "runs" / "baseline-s0"
    for path in (run / "checkpoints", run, tmp_path, newest):
        assert find(path).folder == newest
    assert find(older).step == 5


def test_a_copy_may_have_any_name(make: Make, tmp_path: Path):
    copy = make(5).rename(tmp_path / "my-model")
    assert find(copy).step == 5


def test_what_was_written_is_what_is_read(make: Make, tiny_config: Callable[..., RunConfig]):
    info = find(make(7))
    assert (info.step, info.tokens, info.run_id, info.study_id) == (7, 224, "baseline-s0", "study")
    assert (info.config, info.model, info.energy) == (tiny_config(), tiny_config().model, ENERGY)
    assert info.tokenizer is None
    assert info.classes == (), "as in a checkpoint that was made before they were kept"
    assert info.passed_over == ()


def test_after_pruning_the_shape_of_the_weights_is_the_pruned_one(make: Make, tiny_config: Callable[..., RunConfig]):
    from efftrain.training.config import PruneConfig

    config = tiny_config(prune=PruneConfig())
    assert find(make(2, config=config.as_dict())).model == config.model
    assert find(make(4, config=config.as_dict(), pruned=True)).model == config.pruned_model


def rewritten(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, **changes}))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file is gone": lambda folder: (folder / ".metadata").unlink(),
    "a file is shorter": lambda folder: (folder / "__0_0.distcp").write_bytes(b"short"),
    "one bit turned": lambda folder: flipped(folder / "__0_0.distcp"),
    "half of the facts": lambda folder: (folder / FACTS).write_text((folder / FACTS).read_text()[:100]),
    "empty facts": lambda folder: (folder / FACTS).write_text(""),
    "facts of another kind": lambda folder: (folder / FACTS).write_text("[]"),
    "no facts": lambda folder: (folder / FACTS).unlink(),
    "another schema": lambda folder: rewritten(folder, schema="efftrain.checkpoint/9"),
    "a step that is none": lambda folder: rewritten(folder, step=None),
    "files that are none": lambda folder: rewritten(folder, files=["x"]),
    "a foreign configuration": lambda folder: rewritten(folder, config={"model": 3}),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_for_the_one_before(make: Make, tmp_path: Path, damage: str):
    older, newest = make(5), make(10)
    DAMAGES[damage](newest)
    info = find(tmp_path)
    assert info.folder == older
    (line,) = info.passed_over
    assert str(newest) in line
    assert "\n" not in line
    with pytest.raises(CheckpointError):  # it was asked for by name
        find(newest)


def test_nothing_whole_is_one_line(make: Make, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint; efftrain train --checkpoint-every"):
        find(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such folder"):
        find(tmp_path / "nowhere")
    (make(5) / FACTS).unlink()
    with pytest.raises(CheckpointError, match="all are damaged") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


def test_several_runs_are_not_chosen_among(make: Make, tmp_path: Path):
    make(5, run="baseline-s0")
    make(5, run="bf16-s0")
    with pytest.raises(CheckpointError, match=r"name one of runs/: baseline-s0, bf16-s0"):
        find(tmp_path)


def test_unfinished_folders_are_no_checkpoints_and_are_removed(make: Make, tmp_path: Path):
    whole = make(5)
    checkpoints = whole.parent
    unfinished_folder(checkpoints, 9).mkdir()
    (unfinished_folder(checkpoints, 9) / "__0_0.distcp").write_bytes(b"half")
    assert find(tmp_path).folder == whole
    remove_unfinished(checkpoints)
    assert list(checkpoints.iterdir()) == [whole]


def test_the_newest_two_are_kept_in_the_order_of_their_steps(make: Make):
    folders = [make(step) for step in (900_000_000, 5, 120)]
    keep_newest(folders[0].parent, 2)
    assert step_folders(folders[0].parent) == [folders[2], folders[0]]


def test_what_is_passed_over_fills_no_disk_and_what_was_moved_now_is_not_lost(make: Make):
    checkpoints = make(5).parent
    (checkpoints / "passed-over-by-me").mkdir()  # not ours
    for _ in range(12):
        make(10)
        move_aside(checkpoints, after=5)
    assert [path.name for path in passed_over(checkpoints)] == [f"passed-over-step-00000010-{n}" for n in (11, 12)]
    for step in (6, 7, 8):
        make(step)
    assert len(move_aside(checkpoints, after=5)) == 3
    assert [path.name[-1] for path in passed_over(checkpoints)] == ["6", "7", "8"]
    keep_newest(checkpoints, 2)
    assert len(passed_over(checkpoints)) == 3, "training goes on after step 5"
    make(7)
    keep_newest(checkpoints, 2)
    assert [path.name[-1] for path in passed_over(checkpoints)] == ["8"]
    assert (checkpoints / "passed-over-by-me").exists()


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(make: Make):
    folder = make(5, variant="first")
    (folder / FACTS).write_text("damaged")
    assert find(make(5, variant="second")).facts["variant"] == "second"


def test_reading_imports_no_torch():
    code = "import sys, efftrain.training.checkpoints.folder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
