"""From a study's journals to its records: `run.json` of each run and `study.json`, made anew from what is there.

The same function serves a study that has just ended, one that is still running, and one that was killed last year.
"""

from dataclasses import dataclass
from typing import Any

from efftrain.comparison.checks import run_checks, study_checks
from efftrain.comparison.verdicts import compare
from efftrain.meters.attempts import assemble_attempts
from efftrain.meters.ranks import with_ranks
from efftrain.meters.steps import step_rows
from efftrain.record.folder import StudyFolder, write_text
from efftrain.record.journal import Journal, JournalError, read_journal
from efftrain.record.schema import Check, RecordError, Run, Study, dumps, load
from efftrain.study.planning.variants import BASELINE, VARIANTS


@dataclass(frozen=True, slots=True)
class Collected:
    """A study's records, and one row a training step for export."""

    study: Study
    runs: list[Run]
    steps: list[dict[str, Any]]


def collect(folder: StudyFolder, *, settings: dict[str, Any] | None = None) -> Collected:
    """Assemble all records of a study's folder and write them there.

    Args:
        folder: must hold a study.
        settings: facts about the study itself, to be kept in its record; `not_made` (run id -> why) is one.

    Raises:
        RecordError: there is no study here.
    """
    journals, damaged = _journals(folder)
    if not journals and not folder.study.exists():
        raise RecordError(f"{folder.root}: holds no study (no study.json, and no journal under runs/)")
    runs = [_record(attempts) for attempts in journals.values()]
    for run in runs:
        write_text(folder.record(run.run_id), dumps(run))
    study = _study(folder, runs, damaged, settings or {})
    write_text(folder.study, dumps(study))
    steps = [row for attempts in journals.values() for row in _rows(attempts)]
    return Collected(study, runs, steps)


def _record(attempts: list[Journal]) -> Run:
    run = assemble_attempts(attempts)
    return run.model_copy(update={"checks": [*run.checks, *run_checks(run)]})


def _rows(attempts: list[Journal]) -> list[dict[str, Any]]:
    """One row a step, as it was made last."""
    rows = {row["step"]: row for journal in attempts for row in step_rows(journal)}
    return [rows[step] for step in sorted(rows)]


def _journals(folder: StudyFolder) -> tuple[dict[str, list[Journal]], list[Check]]:
    """The journals of each run's attempts, in order."""
    journals: dict[str, list[Journal]] = {}
    damaged: list[Check] = []
    for run_id in folder.run_ids():
        files = [(path, folder.attempt_ranks(path)) for path in folder.attempts(run_id)]
        if folder.journal(run_id).exists():
            files.append((folder.journal(run_id), folder.ranks(run_id)))
        for path, ranks in files:
            try:
                journals.setdefault(run_id, []).append(with_ranks(read_journal(path), ranks))
            except JournalError as error:
                damaged.append(Check(name="journal", status="failed", detail=f"{run_id}: {error}"))
    return {run_id: attempts for run_id, attempts in journals.items() if attempts}, damaged


def _study(folder: StudyFolder, runs: list[Run], damaged: list[Check], added: dict[str, Any]) -> Study:
    opening = load(folder.study, Study) if folder.study.exists() else _unknown(folder, runs)
    settings = {**opening.settings, **added}
    plan, not_made = settings.get("plan", {}), settings.get("not_made", {})
    made = {run.variant for run in runs}
    reasons = {**plan.get("skipped", {}), **{run_id.rsplit("-s", 1)[0]: why for run_id, why in not_made.items()}}
    names = plan.get("variants") or sorted(made, key=lambda name: name != BASELINE)
    summaries = compare(
        runs,
        variants={
            name: (
                VARIANTS[name].summary if name in VARIANTS else "",
                name not in made,
                reasons.get(name, None if name in made else "the study ended before its turn"),
            )
            for name in names
        },
        baseline=opening.baseline,
    )
    return opening.model_copy(
        update={
            "runs": [run.run_id for run in runs],
            "variants": summaries,
            "checks": [*damaged, *study_checks(runs, summaries, settings)],
            "settings": settings,
        }
    )


def _unknown(folder: StudyFolder, runs: list[Run]) -> Study:
    """A study whose own record is gone: what its runs say of it."""
    return Study(
        study_id=runs[0].study_id if runs else folder.root.name, created="unknown", command="unknown",
        baseline=BASELINE, runs=[], variants=[], checks=[],
    )  # fmt: skip
