"""What `bench` and `train` have in common: make the runs, show how they go, report, and say so in the exit status."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efftrain.cli import options
from efftrain.cli.groups import BillOptions, StudyOptions, TextOptions, TrainingOptions

if TYPE_CHECKING:
    from efftrain.record.folder import StudyFolder
    from efftrain.study.execute import Outcome
    from efftrain.study.planning.plan import Plan
    from efftrain.study.planning.request import Request

SOME_FAILED = 1
REFUSED = 2
"""As for any option that cannot be kept."""
INTERRUPTED = 130


def wish(
    training: TrainingOptions, *, preset: str, variants: tuple[str, ...] | None, seeds: int | None, first_seed: int = 0
) -> "Request":
    """What the options ask for.

    Raises:
        PlanError: a name that is none.
        DeviceError: a device that is not here.
    """
    from efftrain.hardware.probe import available_device
    from efftrain.monitor.launch import this_rank
    from efftrain.study.planning.request import Request
    from efftrain.training.config import OptimizerName, Parallel, Precision, Task
    from efftrain.workload.models.presets import Attention, Initialisation

    asked = {name: value for group in asdict(training).values() for name, value in group.items()}
    del asked["bill_data"]
    choices = {
        "task": Task, "attention": Attention, "init": Initialisation, "precision": Precision,
        "optimizer": OptimizerName, "parallel": Parallel,
    }  # fmt: skip
    for name, allowed in choices.items():
        options.one_of(asked[name], f"--{name}", allowed)
    rank = this_rank()
    asked["device"] = available_device(asked["device"], ranks=rank.ranks if rank.size > 1 else None)
    asked["ranks"], asked["parallel"] = rank.size, asked["parallel"] or ("ddp" if rank.size > 1 else None)
    asked["data"], asked["clean"] = tuple(asked["data"] or ()), options.parts(asked["clean"], "--clean")
    return Request(preset=preset, variants=variants, seeds=seeds, first_seed=first_seed, **asked)


def settings(bill: BillOptions, study: StudyOptions, text: TextOptions) -> dict[str, Any]:
    """What a study's record keeps beside its plan.

    Raises:
        CarbonError, PlanError: something of it makes no sense.
    """
    from efftrain.cli.options import phase_energy

    return {**bill.resolve(), "phase_energy": phase_energy(study.phase_energy), "bill_data": text.bill_data}


def run_new(request: "Request", settings: dict[str, Any], out: Path, *, force: bool) -> None:
    """Plan a study, make it, report it; `settings` are what efftrain.study.execute wants.

    Raises:
        typer.Exit: always; 0, 1 where a run failed, 2 where one was refused, 130 after Ctrl-C.
        PlanError, ConfigError, DataError: nothing was written.
    """
    from efftrain.study.folder import claim
    from efftrain.study.planning.plan import make_plan

    plan = make_plan(request)
    _check(plan, settings)
    raise _make(plan, claim(out, force=force, needed=plan.needed), settings, fresh=True)


def run_on(out: Path) -> None:
    """Go on with the study in `out`.

    Raises:
        typer.Exit: as `run_new`.
        PlanError, DataError: there is none, or its text is gone.
    """
    from efftrain.record.folder import StudyFolder
    from efftrain.study.folder import stored_plan

    folder = StudyFolder(out)
    plan, settings = stored_plan(folder)
    _check(plan, settings)
    raise _make(plan, folder, settings, fresh=False)


def report_folder(folder: "StudyFolder") -> None:
    """Assemble the records of a study's folder, write its reports, print its table.

    Raises:
        RecordError: no study there.
    """
    from efftrain.cli.progress import console
    from efftrain.report.folder import write_reports
    from efftrain.report.terminal import render
    from efftrain.study.collect import collect

    collected = collect(folder)
    with console().status("writing the report"):
        written = write_reports(folder.root, collected.study, collected.runs, collected.steps)
    render(collected.study, collected.runs, console())
    console().print("\nwritten: " + ", ".join(str(path) for path in written), soft_wrap=True, highlight=False)


def _check(plan: "Plan", settings: dict[str, Any]) -> None:
    from efftrain.cli.options import check_corpus
    from efftrain.cli.progress import console
    from efftrain.monitor.launch import this_rank
    from efftrain.study.launch import check_ranks

    check_ranks(plan, settings, this_rank())
    with console().status("preparing the text"):
        check_corpus(plan)


def _make(plan: "Plan", folder: "StudyFolder", settings: dict[str, Any], *, fresh: bool) -> typer.Exit:
    from efftrain.cli.progress import progress
    from efftrain.study.execute import execute
    from efftrain.study.folder import discard

    with progress() as observer:
        outcome = execute(plan, folder, settings, observer)
    refused = [outcome.details[run] for run, status in outcome.statuses.items() if status == "refused"]
    if refused and len(refused) == len(outcome.statuses):  # there is nothing to report but why
        if fresh:
            discard(folder)
        return options.fail(refused[0])
    report_folder(folder)
    return typer.Exit(_status(outcome))


def _status(outcome: "Outcome") -> int:
    from efftrain.record.recorder import ENDED_WELL

    bad = {run: status for run, status in outcome.statuses.items() if status not in ENDED_WELL}
    for run, status in bad.items():
        typer.echo(f"{run}: {status}", err=True)
    for run, why in outcome.not_made.items():
        typer.echo(f"{run}: not made: {why}", err=True)
    if outcome.interrupted:
        typer.echo("interrupted; go on with --resume", err=True)
        return INTERRUPTED
    if "refused" in bad.values():
        return REFUSED
    return SOME_FAILED if bad or outcome.not_made else 0
