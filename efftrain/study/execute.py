"""Runs a plan: each run in a fresh process, its journal followed while it grows, its record written when it ends."""

from dataclasses import dataclass, field
from typing import Any

from efftrain.record.folder import StudyFolder
from efftrain.record.recorder import ENDED_WELL
from efftrain.study.collect import collect
from efftrain.study.folder import write_opening
from efftrain.study.launch import Crew, leading
from efftrain.study.planning.plan import Plan
from efftrain.study.process import Observer, make_run, measure_idle_power, measure_peaks, run_spec, run_status
from efftrain.study.resume import resumption


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a study ended.

    Attributes:
        statuses: of each run that was made, or was complete before.
        not_made: why others were not.
        interrupted: whether Ctrl-C ended it.
        details: what each run that was made now said at its end, if it said something.
    """

    statuses: dict[str, str]
    not_made: dict[str, str]
    interrupted: bool
    details: dict[str, str] = field(default_factory=dict)


def execute(plan: Plan, folder: StudyFolder, settings: dict[str, Any], observer: Observer) -> Outcome:
    """Make all runs of `plan` that are not complete yet, together with the other ranks of this launch.

    Args:
        plan: the runs, in order.
        folder: where everything is written.
        settings: `carbon` as resolved by efftrain.meters.carbon.footprint, `node_overhead_w`, W or None, and
            `phase_energy`; kept in the study's record.
        observer: told of the progress.
    """
    with leading() as crew:
        return _execute(plan, folder, settings, observer, crew)


def _execute(plan: Plan, folder: StudyFolder, settings: dict[str, Any], observer: Observer, crew: Crew) -> Outcome:
    made = {run.run_id: run_status(folder, run) for run in plan.runs}
    statuses = {run_id: status for run_id, status in made.items() if status in ENDED_WELL}
    not_made: dict[str, str] = {}
    details: dict[str, str] = {}
    idle: dict[str, Any] = {}
    interrupted = False
    write_opening(folder, plan, settings)
    if statuses:
        collect(folder)
    if len(statuses) == len(plan.runs):
        observer.message("all runs are complete: nothing is left to be made")
        return Outcome(statuses, not_made, interrupted)
    for note in plan.notes:
        observer.message(note)
    try:
        peaks = measure_peaks(plan, observer, crew.rank)
        crew.measure_idle(plan.runs[0].config.device)
        idle = measure_idle_power(plan, observer, crew.rank)
        for index, run in enumerate(plan.runs, start=1):
            if run.run_id in statuses:
                continue
            if run.teacher and statuses.get(run.teacher) not in ENDED_WELL:
                ended = statuses.get(run.teacher, "not made")
                not_made[run.run_id] = f"its teacher {run.teacher} did not complete ({ended})"
                continue
            observer.run_started(run, index, len(plan.runs))
            facts = {
                "carbon": settings["carbon"], "node_overhead_w": settings.get("node_overhead_w"),
                "phase_energy": settings.get("phase_energy"), "bill_data": settings.get("bill_data", False),
                "peak": peaks[run.config.precision], "idle": idle,
            }  # fmt: skip
            before = resumption(run, folder, observer.message)
            spec = {**run_spec(plan, run, folder, facts), **before}
            statuses[run.run_id], details[run.run_id], interrupted = make_run(run, folder, spec, observer, crew)
            observer.run_ended(run, statuses[run.run_id], details[run.run_id])
            if interrupted:
                break
            collect(folder, settings={"not_made": not_made})
            _drop_weights(plan, folder, statuses)
    except KeyboardInterrupt:
        interrupted = True
    after = measure_idle_power(plan, observer, crew.rank) if idle and not interrupted else {}
    collect(folder, settings={"not_made": not_made, "idle_before": idle, "idle_after": after})
    return Outcome(statuses, not_made, interrupted, details)


def _drop_weights(plan: Plan, folder: StudyFolder, statuses: dict[str, str]) -> None:
    """Remove the weights of teachers whose last student is complete."""
    waiting = {run.teacher for run in plan.runs if statuses.get(run.run_id) not in ENDED_WELL}
    for run in plan.runs:
        if run.teaches and run.run_id not in waiting and statuses.get(run.run_id) in ENDED_WELL:
            folder.weights(run.run_id).unlink(missing_ok=True)
