"""Checkpoints on disk: which folder holds one, whether it is whole, and what it says of itself. Without torch.

`RUN/checkpoints/step-00000120/` holds the files of torch.distributed.checkpoint, the tokenizer, and `checkpoint.json`,
which names every other file with its size and SHA-256. It is written last, into a folder under a temporary name that
is then renamed, so that a process that is killed leaves no step folder that is half there. Sizes and hashes are for
what renaming cannot promise: a disk that lost its cache, a copy that was cut short, a bit that turned. SHA-256 is the
choice because every shell can check it, and processors with SHA instructions read a disk faster than it writes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from efftrain.record.plain import from_plain
from efftrain.record.quantities import Quantity
from efftrain.training.config import ConfigError, RunConfig, from_dict
from efftrain.workload.models.presets import AnyModel

SCHEMA: Final = "efftrain.checkpoint/1"
FACTS: Final = "checkpoint.json"
TOKENIZER: Final = "tokenizer.json"
CHECKPOINTS: Final = "checkpoints"
KEPT: Final = 2
"""The newest checkpoint, and one before it for the case that the newest is damaged."""

_STEP_FOLDER: Final = re.compile(r"step-\d{8,}")
_PASSED_OVER: Final = re.compile(r"passed-over-step-(\d{8,})(?:-(\d+))?")
_UNFINISHED: Final = ".unfinished-"


class CheckpointError(ConfigError):
    """A folder that holds no checkpoint, or a damaged one; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint that is whole.

    Attributes:
        folder: its files.
        step: optimizer steps that were done.
        tokens: tokens of all ranks that were trained by then.
        config: of the run that made it.
        run_id: of that run.
        study_id: of its study.
        model: shape of its weights, which after pruning is not `config.model`.
        energy: what the run had used by then, all attempts together; None where it was not known.
        classes: names of the classes that its head tells apart, in the head's order; none where it has no such head,
            or was made before they were kept.
        facts: all of `checkpoint.json`.
        passed_over: newer checkpoints that are damaged, one line each.
    """

    folder: Path
    step: int
    tokens: int
    config: RunConfig
    run_id: str
    study_id: str
    model: AnyModel
    energy: Quantity | None
    facts: dict[str, Any]
    classes: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that its weights go with, if it was kept."""
        path = self.folder / TOKENIZER
        return path if path.exists() else None


def find(path: Path) -> CheckpointInfo:
    """The newest whole checkpoint at `path`: a checkpoint, a `checkpoints` folder, a run, or a study of one run.

    A damaged one is passed over for the one before, and named in the result; one that `path` names itself is an error.

    Raises:
        CheckpointError: there is none, or several runs have one.
    """
    if _is_step(path) or (path / FACTS).exists():  # a copy may have any name
        return read(path)
    damaged: list[str] = []
    for folder in reversed(step_folders(_container(path))):
        try:
            info = read(folder)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        return replace(info, passed_over=tuple(damaged))
    why = f"all are damaged: {damaged[0]}" if damaged else "no checkpoint was finished here"
    raise CheckpointError(f"{path}: holds no checkpoint: {why}")


def read(folder: Path) -> CheckpointInfo:
    """One checkpoint, every file of it held against its size and hash.

    Raises:
        CheckpointError: it is damaged, or none.
    """
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if facts["schema"] != SCHEMA:
            raise CheckpointError(f"{folder}: schema {facts['schema']!r}, expected {SCHEMA!r}")
        _check_files(folder, facts["files"])
        config = from_dict(facts["config"])
        return CheckpointInfo(
            folder=folder, step=int(facts["step"]), tokens=int(facts["tokens"]), config=config,
            run_id=str(facts["run_id"]), study_id=str(facts["study_id"]),
            model=(config.pruned_model if facts["pruned"] else None) or config.model,
            energy=from_plain(Quantity, facts["energy"]) if facts.get("energy") else None, facts=facts,
            classes=tuple(map(str, facts.get("classes") or ())),
        )  # fmt: skip
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}: damaged: {Path(error.filename or FACTS).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged: {FACTS}: {str(error).splitlines()[0]}") from None


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` stands."""
    return checkpoints / f"step-{step:08d}"


def step_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints in a `checkpoints` folder, whole or damaged, the oldest first."""
    found = [path for path in checkpoints.iterdir() if _is_step(path)] if checkpoints.is_dir() else []
    return sorted(found, key=_step)


def unfinished_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` is made."""
    return checkpoints / f"{_UNFINISHED}step-{step:08d}"


def remove_unfinished(checkpoints: Path) -> None:
    """Remove what a save that was cut off has left. Nobody else may be saving there."""
    for path in checkpoints.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def finish(unfinished: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Describe the files of a checkpoint, and give it its name; it is on the disk when this returns.

    Raises:
        OSError: something cannot be written; `folder` is as it was.
    """
    files = {path.name: _described(path) for path in sorted(unfinished.iterdir()) if path.name != FACTS}
    with (unfinished / FACTS).open("w", encoding="utf-8") as file:
        json.dump({"schema": SCHEMA, **facts, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(unfinished)
    if folder.exists():  # damaged, or of an attempt that was resumed from an older checkpoint
        shutil.rmtree(folder)
    unfinished.rename(folder)
    _sync(folder.parent)


def keep_newest(checkpoints: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and those passed over that the newest has caught up with."""
    folders = step_folders(checkpoints)
    behind = [path for path in passed_over(checkpoints) if folders and _age(path)[0] <= _step(folders[-1])]
    for folder in [*folders[:-count], *behind]:
        shutil.rmtree(folder, ignore_errors=True)


def move_aside(checkpoints: Path, after: int) -> list[Path]:
    """Take the checkpoints after a step out of the way of a training that goes on there: `passed-over-step-N`.

    They would be the newest for ever, and what such a training keeps would be removed. They stay there until it has
    kept one of the same step or a later one (`keep_newest`). Of those from earlier times so many stay that there are
    `KEPT`, the ones of the latest steps: a training that is cut off again and again fills no disk.

    Args:
        checkpoints: the folder of a run.
        after: the step of the checkpoint that is resumed from; 0 for none.

    Returns:
        Where they are now.
    """
    found, before = [path for path in step_folders(checkpoints) if _step(path) > after], passed_over(checkpoints)
    moved = [path.rename(_aside(path, before)) for path in found]
    for folder in before[: max(0, len(before) + len(moved) - KEPT)] if moved else ():
        shutil.rmtree(folder, ignore_errors=True)
    return moved


def passed_over(checkpoints: Path) -> list[Path]:
    """What `move_aside` has put there, by step and then by age, the oldest first."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return sorted((path for path in found if _PASSED_OVER.fullmatch(path.name) and path.is_dir()), key=_age)


def _aside(folder: Path, before: Iterable[Path]) -> Path:
    """Where a checkpoint is put that is passed over; with a number where one of the same step was put there before."""
    numbers = [number for step, number in map(_age, before) if step == _step(folder)]
    return folder.with_name(f"passed-over-{folder.name}{f'-{max(numbers) + 1}' if numbers else ''}")


def _age(path: Path) -> tuple[int, int]:
    """The step of a checkpoint that was passed over, and which one of that step it is."""
    found = _PASSED_OVER.fullmatch(path.name)
    assert found, "the name is as `move_aside` gave it"
    return int(found[1]), int(found[2] or 1)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def size_bytes(folders: Iterable[Path]) -> int:
    """What the files of these folders weigh."""
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def _is_step(path: Path) -> bool:
    return _STEP_FOLDER.fullmatch(path.name) is not None and path.is_dir()


def _container(path: Path) -> Path:
    """The folder of checkpoints that a path means."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; a checkpoint, a run's folder or a study's is expected")
    if path.name == CHECKPOINTS or step_folders(path):
        return path
    if (path / CHECKPOINTS).is_dir():
        return path / CHECKPOINTS
    runs = sorted(path.glob(f"runs/*/{CHECKPOINTS}"))
    if len(runs) > 1:
        names = ", ".join(run.parent.name for run in runs)
        raise CheckpointError(f"{path}: several runs have checkpoints; name one of runs/: {names}")
    if not runs:
        raise CheckpointError(f"{path}: holds no checkpoint; efftrain train --checkpoint-every N keeps some")
    return runs[0]


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raise a CheckpointError for a file that is not what it was."""
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{folder}: damaged: {name} has {size} bytes, not {expected['bytes']}")
    for name, expected in files.items():
        if _sha256(folder / name) != expected["sha256"]:
            raise CheckpointError(f"{folder}: damaged: {name} has changed since it was written (SHA-256)")


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Put a folder's entries onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
