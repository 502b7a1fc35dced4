"""From a journal to what a reader wants: the record, a study of one run around it, and the reports."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from efftrain.record.folder import StudyFolder, write_text
from efftrain.record.journal import Journal, read_journal
from efftrain.record.recorder import Status
from efftrain.record.schema import Run, Study, dumps, load

Guard = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Made:
    """The record of a measurement, and the files that could be written."""

    run: Run
    written: list[Path] = field(default_factory=list)


def open_study(folder: StudyFolder, name: str, command: str) -> None:
    """Write the study's own record before anything has happened, so that a killed run can be reported.

    Raises:
        OSError: it cannot be written.
    """
    study = Study(
        study_id=folder.root.name, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"), command=command, baseline=name,
        runs=[], variants=[], checks=[],
    )  # fmt: skip
    write_text(folder.study, dumps(study))


def make_records(folder: StudyFolder, name: str, status: Status, guarded: Guard) -> Made:
    """Assemble the record from the journal and write everything that is made of it.

    Args:
        folder: of the measurement.
        name: of its one run and variant.
        status: how it ended, in case that the journal could not be told.
        guarded: around each part that may fail for itself.

    Raises:
        Exception: there is no record.
    """
    from efftrain.comparison.checks import run_checks
    from efftrain.meters.assemble import assemble
    from efftrain.meters.ranks import with_ranks

    journal = _ended(with_ranks(read_journal(folder.journal(name)), folder.ranks(name)), status)
    run = assemble(journal)
    made = Made(run)
    with guarded("the record could not be checked"):
        run = run.model_copy(update={"checks": [*run.checks, *run_checks(run)]})
        made = Made(run)
    with guarded("run.json could not be written"):
        write_text(folder.record(name), dumps(run))
        made.written.append(folder.record(name))
    with guarded("the report could not be written"):
        _report(folder, run, journal, made.written)
    return made


def _report(folder: StudyFolder, run: Run, journal: Journal, written: list[Path]) -> None:
    from efftrain.comparison.checks import study_checks
    from efftrain.comparison.verdicts import compare
    from efftrain.meters.steps import step_rows
    from efftrain.report.folder import write_reports

    variants = compare([run], variants={run.variant: ("", False, None)}, baseline=run.variant)
    update = {"runs": [run.run_id], "variants": variants, "checks": study_checks([run], variants)}
    study = load(folder.study, Study).model_copy(update=update)
    write_text(folder.study, dumps(study))
    written.append(folder.study)
    written += write_reports(folder.root, study, [run], step_rows(journal))


def _ended(journal: Journal, status: Status) -> Journal:
    """A journal whose end could not be written: we know how it ended, and that it is not whole."""
    if journal.of("end"):
        return journal
    end = {"kind": "end", "t": max([0, *(line["t"] for line in journal.lines)]), "status": status}
    lost = "the journal could not be written to its end: what is missing there is missing here"
    return Journal(journal.header, [*journal.lines, end], [*journal.defects, lost])
