"""Going on with a run that was cut off: what its earlier attempts leave for the next one, and where that begins.

A run that keeps checkpoints is one training however often its process dies: the journals of its attempts stay, and
its bill holds all of them, also where the first checkpoint was never reached. A run that keeps none starts again as a
training of its own, on whose bill nothing stands that was lost before.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efftrain.meters.attempts import assemble_attempts
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import Journal, JournalError, read_journal
from efftrain.study.planning.plan import RunPlan
from efftrain.training.checkpoints.folder import (
    CheckpointError,
    CheckpointInfo,
    find,
    move_aside,
    remove_unfinished,
    step_folders,
)

FRESH: dict[str, Any] = {"resume": None, "before": None}
"""For a run that begins at its beginning."""


def resumption(run: RunPlan, folder: StudyFolder, say: Callable[[str], None]) -> dict[str, Any]:
    """What the process of a run is told of the attempts before it; their journals are put aside.

    Args:
        run: to be made.
        folder: of its study.
        say: told what a user must know.

    Returns:
        `resume`: the checkpoint's folder, or None; `before`: what earlier attempts used, for the journal's header, or
        None where nothing is to be kept of them; `costs`: a journal in which the model's FLOPs are counted, if there
        is one.
    """
    if run.config.checkpoint_every is None:
        return FRESH
    _put_aside(folder, run.run_id)
    info = _checkpoint(run, folder, say)
    journals = _readable(folder, run.run_id)
    if info is None and not journals:
        return FRESH
    for moved in move_aside(folder.checkpoints(run.run_id), info.step if info else 0):
        say(f"a checkpoint that is passed over stays as {moved} until training is past it")
    say(f"{run.run_id} goes on after step {info.step}" if info else f"{run.run_id} kept no checkpoint: from step 1")
    return {
        "resume": str(info.folder) if info else None,
        "before": _used(journals) if journals else _as_the_checkpoint_knew(info),
        **({"costs": str(folder.attempts(run.run_id)[-1])} if journals else {}),
    }


def _put_aside(folder: StudyFolder, run_id: str) -> None:
    """Move the journals of the last attempt to the attempts, those of all ranks of this machine.

    Where the first rank's is gone or cannot be read, they are no attempt, and end in `.unreadable` there.
    """
    journal = folder.journal(run_id)
    left = [path for path in (journal, *folder.ranks(run_id)) if path.exists()]
    if not left:
        return
    attempts, readable = folder.attempts_folder(run_id), _read(journal) is not None
    attempts.mkdir(exist_ok=True)
    number = 1 + max((int(re.split(r"\D", path.name)[0] or 0) for path in attempts.iterdir()), default=0)
    for path in left:
        to = folder.attempt(run_id, number, rank=None if path == journal else path.stem)
        path.rename(to if readable else to.with_name(f"{to.name}.unreadable"))


def _checkpoint(run: RunPlan, folder: StudyFolder, say: Callable[[str], None]) -> CheckpointInfo | None:
    checkpoints = folder.checkpoints(run.run_id)
    remove_unfinished(checkpoints)
    if not step_folders(checkpoints):
        return None
    try:
        info = find(checkpoints)
    except CheckpointError as error:
        say(str(error))
        return None
    for line in info.passed_over:
        say(f"{line}; {info.folder.name} is taken")
    if info.config != run.config:
        say(f"{info.folder}: is of another configuration than this run and is passed over")
        return None
    return info


def _readable(folder: StudyFolder, run_id: str) -> list[Journal]:
    return [journal for path in folder.attempts(run_id) if (journal := _read(path))]


def _read(path: Path) -> Journal | None:
    try:
        return read_journal(path)
    except JournalError:
        return None


def _used(journals: list[Journal]) -> dict[str, Any]:
    """All that was used, steps that were lost after the last checkpoint included."""
    run = assemble_attempts(journals)
    energy = dataclasses.asdict(run.energy.total) if run.energy.total.present else None
    return {
        "attempts": max(len(run.attempts), 1), "step": run.steps, "tokens": run.tokens, "energy": energy,
        "grams": run.carbon.total.value, "seconds": run.time.total.value,
    }  # fmt: skip


def _as_the_checkpoint_knew(info: CheckpointInfo | None) -> dict[str, Any] | None:
    """What had been used when the checkpoint was made; for where the journals are gone."""
    if info is None:
        return None
    facts = info.facts
    return {
        "attempts": facts.get("attempts", 1), "step": info.step, "tokens": info.tokens, "energy": facts.get("energy"),
        "grams": facts.get("grams"), "seconds": facts.get("seconds"),
    }  # fmt: skip
