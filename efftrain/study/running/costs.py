"""What a step will cost, written into the journal before the first one: FLOPs, bytes and memory on fake tensors.

Costs depend on the variant and not on the seed, so a study counts them in the first run of each variant, and the
others copy the lines.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efftrain.compression.distillation import distillation_objective
from efftrain.counting.flops import count_step, fake_mode
from efftrain.counting.memory import MeasuredMemory, measure_cpu_memory, measure_cuda_memory, predict_memory
from efftrain.record.journal import JournalError, read_journal
from efftrain.record.recorder import Recorder
from efftrain.training.batch import Batch, Batches, next_token_batch
from efftrain.training.config import RunConfig
from efftrain.training.objectives import data_objective
from efftrain.training.precision.autocast import prepare_precision
from efftrain.training.session import Mark, Session, build_session, train_step
from efftrain.workload.models.build import Model, build_model

_ENVELOPE = ("kind", "t")


def record_costs(config: RunConfig, recorder: Recorder, counted: Path | None) -> None:
    """Write the cost lines of every stage of a run; copied from `counted`, a journal of the same variant, if it can be.

    A run that prunes has two stages; the second holds from the step after the pruning.
    """
    if counted and _copy(counted, recorder):
        return
    _count_stage(config, recorder, from_step=1)
    if config.pruned_model:
        later = dataclasses.replace(config, model=config.pruned_model, prune=None)
        _count_stage(later, recorder, from_step=config.prune_step + 1)


def measure_memory(session: Session, teacher: Model | None, batches: Batches) -> MeasuredMemory:
    """The memory of two real steps, which change the session; see `efftrain.training.session.preserved`."""
    batch = batches.train(1)
    held = [session.model, *([teacher] if teacher else []), session.optimizer, *tensors(batch)]

    def run_step(mark: Mark) -> None:
        train_step(session, lambda: batch, mark)

    if session.device.type == "cuda":
        return measure_cuda_memory(run_step, session.device)
    return measure_cpu_memory(run_step, held)


def example_batch(config: RunConfig, rows: int) -> Batch:
    """A batch of the run's shape whose content does not matter."""
    shape, kind = (rows, config.model.seq_len + 1), {"dtype": torch.int64, "device": config.device}
    whole = torch.zeros(*shape, **kind)
    match config.task:
        case "causal":
            return next_token_batch(whole)
        case "masked":
            inputs = whole[:, :-1].contiguous()
            return Batch(inputs=inputs, targets=torch.zeros_like(inputs), per_sequence=1)
        case "classification":
            inputs, lengths = whole[:, :-1].contiguous(), torch.full((rows,), config.model.seq_len, **kind)
            return Batch(inputs=inputs, targets=torch.zeros(rows, **kind), lengths=lengths, per_sequence=1)


def tensors(batch: Batch) -> list[Tensor]:
    """What a batch holds in memory."""
    return [t for t in (batch.inputs, batch.targets, batch.lengths) if t is not None]


def _count_stage(config: RunConfig, recorder: Recorder, *, from_step: int) -> None:
    with fake_mode():
        teacher, objective = None, data_objective
        if config.distill:
            teacher = build_model(config.distill.teacher, torch.device(config.device))
            prepare_precision(teacher, config.precision)
            objective = distillation_objective(teacher, config.distill)
            teacher.requires_grad_(True)  # MemTracker hooks every parameter it meets; no gradient reaches these
        eager = dataclasses.replace(config, compile=False)
        session = build_session(eager, objective=objective)
        session.scaler = None  # it asks the device for its scale, which fake tensors do not have
        rows = config.batch_size * config.grad_accumulation
        batch = example_batch(config, rows)

        def run_step(mark: Mark) -> None:
            train_step(session, lambda: batch, mark)

        count_step(run_step, session.model, teacher=teacher).record(recorder, from_step)
        if config.parallel == "fsdp":
            return  # what is predicted holds for whole weights, and a rank has a shard of them
        held = [session.model, *([teacher] if teacher else []), session.optimizer, *tensors(batch)]
        prediction = predict_memory(run_step, held)
        if config.compile:
            prediction = dataclasses.replace(prediction, source=f"{prediction.source}; of the model before compilation")
        if config.parallel == "ddp":
            source = f"{prediction.source}; of one rank, without the buckets in which DDP keeps gradients all the time"
            prediction = dataclasses.replace(prediction, source=source)
        prediction.record(recorder, from_step)


def _copy(counted: Path, recorder: Recorder) -> bool:
    """Copy the cost lines of another run of the variant; False where it did not get beyond counting."""
    try:
        journal = read_journal(counted)
    except JournalError:
        return False
    if not journal.of("memory"):  # it is measured after the last cost line was written
        return False
    for line in journal.of("cost"):
        fields: dict[str, Any] = {key: value for key, value in line.items() if key not in _ENVELOPE}
        recorder.cost(**fields)
    return True
