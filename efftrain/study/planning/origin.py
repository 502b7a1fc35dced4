"""What the checkpoint had cost that a run begins with: read once, by the parent, and handed on as plain data.

A run's bill holds what the run itself used. What its starting weights had cost belongs beside it: fine-tuning looks
cheap where nobody tells what came before. The record of the run that made the checkpoint knows best, because it counts
the whole bill after the fact; the checkpoint itself knows what had been used when it was written.
"""

import dataclasses
from pathlib import Path
from typing import Any

from efftrain.record.plain import from_plain
from efftrain.record.quantities import Quantity, correlated, missing
from efftrain.record.schema import RecordError, Run, load
from efftrain.training.checkpoints.folder import FACTS, CheckpointInfo


def origin_of(info: CheckpointInfo) -> dict[str, Any]:
    """The checkpoint as a journal's header holds it: `path`, `run_id`, `steps`, `tokens`, `training_energy` in J.

    Steps and tokens are those of the run that made it. The energy is that of this run and, where it began with a
    checkpoint itself, of all before it.
    """
    return {
        "path": str(info.folder.resolve()), "run_id": info.run_id, "steps": info.step, "tokens": info.tokens,
        "training_energy": dataclasses.asdict(training_energy(info)),
    }  # fmt: skip


def training_energy(info: CheckpointInfo) -> Quantity:
    """Energy in J of everything that led to the checkpoint; a lower bound where a part of it is not known.

    A run that ended with the checkpoint is taken whole, its last evaluation included: these are the weights that it was
    for. Of a run that went on, what it had used by then.
    """
    run = _record(info)
    own = _own_energy(info, run)
    before = _before(info, run)
    return own if before is None else _chain(own, before)


def _record(info: CheckpointInfo) -> Run | None:
    """The record of the run that made the checkpoint, if it stands where that run put it."""
    try:
        run = load(_beside(info), Run)
    except RecordError:
        return None
    return run if (run.run_id, run.study_id) == (info.run_id, info.study_id) else None


def _beside(info: CheckpointInfo) -> Path:
    return info.folder.resolve().parent.parent / "run.json"


def _own_energy(info: CheckpointInfo, run: Run | None) -> Quantity:
    """What the run that made the checkpoint had used."""
    if run and run.energy.total.present and _last_step(run) == info.step:
        whole, taught = run.energy.total, "; its teacher's training apart" if run.teacher else ""
        return dataclasses.replace(whole, source=f"record of {run.run_id}, {info.step} steps{taught}; {whole.source}")
    if info.energy and info.energy.present:
        source = f"{FACTS}: {info.run_id} up to step {info.step}; {info.energy.source}"
        return dataclasses.replace(info.energy, source=source)
    if run is None:
        return missing("J", source="no record beside the checkpoint")
    if not run.energy.total.present:
        return run.energy.total
    return missing("J", source=f"{run.run_id} is recorded up to step {_last_step(run)}, not up to step {info.step}")


def _last_step(run: Run) -> int:
    """The last step that is on the bill; a run that was resumed may have done some twice."""
    return max((attempt.last_step for attempt in run.attempts), default=run.steps)


def _before(info: CheckpointInfo, run: Run | None) -> Quantity | None:
    """What the weights had cost that the checkpoint's own run began with; None where it began afresh."""
    if run and run.origin:
        return run.origin.training_energy
    if info.config.start is None:
        return None
    try:
        return from_plain(Quantity, info.facts["origin"]["training_energy"])
    except (KeyError, TypeError, ValueError):
        return missing("J", source=f"what {info.config.start} had cost is not known")


def _chain(own: Quantity, before: Quantity) -> Quantity:
    """Two runs, one after the other, likely read by the same sensors, which were wrong in the same way."""
    source = f"{own.source}; and before it: {before.source}"
    return correlated([before, own], boundary=own.boundary or before.boundary, source=source)
