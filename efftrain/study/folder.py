"""How a study's folder is claimed, and what stands in it before the first run.

`study.json` is written before the first run and again after each, so that a study that is cut off anywhere can be
reported and resumed.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from efftrain.record.folder import StudyFolder, write_text
from efftrain.record.plain import from_plain
from efftrain.record.schema import RecordError, Study, dumps, load
from efftrain.study.planning.plan import Plan
from efftrain.study.planning.request import PlanError

STUDY_FILES = (
    "study.json", "report.html", "report.md", "runs.csv", "steps.parquet", "model-card.yaml", "emissions.csv",
    "metrics.prom",
)  # fmt: skip
STUDY_FOLDERS = ("runs",)


def claim(root: Path, *, force: bool, needed: Iterable[str] = ()) -> StudyFolder:
    """A folder for a new study; an old study there goes only with `force`.

    Args:
        root: the folder.
        force: whether an old study may go.
        needed: paths that the new study reads, which must not lie in it.

    Raises:
        PlanError: a study is there, or a folder with other things in it, or something that is needed, or it cannot be
            written; nothing is touched.
    """
    folder = StudyFolder(root)
    try:
        if folder.holds_study():
            if not force:
                raise PlanError(f"--out {root}: holds a study; --resume goes on with it, --force overwrites it")
            for path in needed:
                if Path(path).resolve().is_relative_to(root.resolve()):
                    raise PlanError(f"--out {root}: --force would remove {path}, which is read; name another folder")
            _remove_study(root)
        elif root.exists() and any(root.iterdir()):
            raise PlanError(f"--out {root}: is not empty and holds no study; name another folder")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"--out {root}: {error.strerror}") from None
    return folder


def discard(folder: StudyFolder) -> None:
    """Remove a study of which nothing was made, and its folder if nothing else is in it."""
    _remove_study(folder.root)
    with contextlib.suppress(OSError):
        folder.root.rmdir()


def write_opening(folder: StudyFolder, plan: Plan, settings: dict[str, Any]) -> None:
    """The study's record before its first run: what is planned and with which settings."""
    study = Study(
        study_id=plan.study_id, created=plan.created, command=plan.command, baseline=plan.baseline, runs=[],
        variants=[], checks=[], settings={"plan": dataclasses.asdict(plan), **settings},
    )  # fmt: skip
    write_text(folder.study, dumps(study))


def stored_plan(folder: StudyFolder) -> tuple[Plan, dict[str, Any]]:
    """The plan of a study that is there, and its other settings.

    Raises:
        PlanError: there is none, or it is damaged.
    """
    try:
        study = load(folder.study, Study)
        plan = from_plain(Plan, study.settings["plan"])
    except (RecordError, KeyError, ValueError) as error:
        raise PlanError(
            f"--resume: {folder.root} holds no study that can be resumed: {error}".splitlines()[0]
        ) from None
    return plan, {key: value for key, value in study.settings.items() if key != "plan"}


def _remove_study(root: Path) -> None:
    for name in STUDY_FILES:
        (root / name).unlink(missing_ok=True)
    for name in STUDY_FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
