"""One run, from its specification to its journal: what the fresh process of a run executes."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from efftrain.compression.distillation import distillation_objective
from efftrain.compression.pruning import prune_session
from efftrain.monitor.launch import Rank, this_rank
from efftrain.monitor.machine import environment
from efftrain.monitor.monitor import Monitor
from efftrain.record.plain import from_plain
from efftrain.record.recorder import ENDED_WELL, JournalRecorder, Recorder, Status
from efftrain.study.running.batches import corpus_batches, validation_shortage
from efftrain.study.running.budget import Budget
from efftrain.study.running.costs import measure_memory, record_costs
from efftrain.study.running.ranks import config_of_rank, facts_of_rank, journal_of_rank, sensors_of_rank, together
from efftrain.study.running.spending import Spending
from efftrain.training.batch import Batches
from efftrain.training.blocks import measure_blocks
from efftrain.training.checkpoints.folder import find
from efftrain.training.checkpoints.start import load_start
from efftrain.training.checkpoints.state import load_weights, reshape, resume, save_weights
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import ConfigError, RunConfig, from_dict
from efftrain.training.evaluation import evaluate
from efftrain.training.horizon import Horizon
from efftrain.training.loop import Intervention, train
from efftrain.training.lora import count_trainable
from efftrain.training.objectives import data_objective
from efftrain.training.precision.autocast import prepare_precision
from efftrain.training.ranks import Ranks
from efftrain.training.session import Session, build_session, preserved, train_step
from efftrain.workload.models.build import Model, build_model
from efftrain.workload.text.config import TextConfig
from efftrain.workload.text.corpus import Corpus, prepare

CPU_ALLOCATION_FAILED = ("can't allocate memory", "not enough memory")
"""What torch's CPU allocator says when the system refuses; it has no exception class of its own."""


def run(spec: dict[str, Any], stop: Callable[[], bool]) -> None:
    """Make one run: prepare, count, warm up, train; every outcome ends in the journal.

    Args:
        spec: as efftrain.study.process writes it.
        stop: asked before each step, and between the parts before the first.
    """
    rank = this_rank(started_as=os.getppid())
    config = config_of_rank(from_dict(spec["config"]), rank)
    spec = {**spec, "journal": str(journal_of_rank(Path(spec["journal"]), rank))}
    torch.set_num_threads(config.threads)
    if config.device == "cpu":  # compile in this process and its children, whose CPU time can be read
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    began = time.monotonic_ns()
    corpus = _prepare(spec, config)
    loaded = time.monotonic_ns()
    sensors = sensors_of_rank(config.device, rank, spec["node_overhead_w"])
    with Monitor(Path(spec["journal"]), sensors, _header(spec, config, corpus, rank)) as monitor:
        recorder = monitor.recorder
        recorder.past_span("load", t=began, t_end=loaded)
        for text in filter(None, (*spec["notes"], validation_shortage(corpus, config))):
            recorder.note(text)
        try:
            if rank.rank == 0:
                _count(spec, config, recorder)
            with together(spec["run_id"], torch.device(config.device), rank) as ranks:
                status, detail = _train(spec, config, corpus, recorder, stop=stop, ranks=ranks), {}
        except ConfigError as refusal:  # a budget below one step, a checkpoint that is not what it was
            status, detail = "refused", {"detail": str(refusal)}
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _out_of_memory(error):
                raise
            status, detail = "oom", {"detail": next(iter(str(error).splitlines()), "MemoryError")}
        recorder.end(status, **detail)


@dataclass(frozen=True, slots=True)
class _Parts:
    session: Session
    teacher: Model | None
    batches: Batches


def _count(spec: dict[str, Any], config: RunConfig, recorder: JournalRecorder) -> None:
    """What one rank does for all of them before they meet."""
    if spec.get("bill_data") and not spec.get("resume"):
        _prepare_again(spec, config, recorder)
    try:
        record_costs(config, recorder, Path(spec["costs"]) if spec["costs"] else None)
    except Exception as error:  # a model that cannot be counted can still be trained
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        recorder.note(f"FLOPs and memory were not counted beforehand: {said}")


def _train(
    spec: dict[str, Any], config: RunConfig, corpus: Corpus, recorder: JournalRecorder, *, stop: Callable[[], bool],
    ranks: Ranks,
) -> Status:  # fmt: skip
    if ranks.any(stop()):
        return "interrupted"
    kept = find(Path(spec["resume"])) if spec.get("resume") else None
    parts = _build(spec, config, corpus, ranks)
    if kept:
        reshape(parts.session, kept)
    _warm_up(
        parts, recorder, from_step=config.prune_step + 1 if kept and kept.facts["pruned"] else 1,
        plain_step=any(spec["config"]["horizon"][name] for name in ("max_joules", "max_gco2e")),
    )  # fmt: skip
    used = spec.get("before") or {}
    budget = Budget(
        Path(spec["journal"]), config.horizon, recorder.flush, note=recorder.note,
        joules_before=(used.get("energy") or {}).get("value") or 0.0, grams_before=used.get("grams") or 0.0,
    )  # fmt: skip
    refusal = budget.first_step_refusal()
    refused = ranks.any(bool(refusal))
    if refused and not kept:
        raise ConfigError(refusal or "the first rank refused")
    horizon, first_step = Horizon(config.horizon, budget.spent), 1
    if kept:  # last, because random state is part of it
        first_step = resume(parts.session, kept, horizon, rank=ranks.rank, group=ranks.checkpoints)
    if refused and first_step <= config.steps:
        recorder.note(f"ends where it was stopped: {refusal or 'the first rank refused'}")
        status: Status = "budget-spent"
    else:
        status = train(
            parts.session, parts.batches, recorder, interventions=_interventions(parts, recorder), should_stop=stop,
            horizon=horizon, checkpoints=_checkpoints(spec, config, corpus, recorder, ranks), first_step=first_step,
        )  # fmt: skip
    if status in ENDED_WELL and spec["weights"]:
        save_weights(parts.session, Path(spec["weights"]))
    if status in ENDED_WELL and spec["phase_energy"] == "blocks":
        measure_blocks(parts.session, parts.batches, recorder, should_stop=stop)
    return status


def _prepare(spec: dict[str, Any], config: RunConfig, cache: Path | None = None) -> Corpus:
    text = from_plain(TextConfig, spec["text"])
    return prepare(text, config.model.vocab_size, masked=config.task == "masked", cache=cache)


def _prepare_again(spec: dict[str, Any], config: RunConfig, recorder: Recorder) -> None:
    """From files to tokens once more, whatever the cache holds, so that it is measured what that takes."""
    with tempfile.TemporaryDirectory(prefix="efftrain-") as folder, recorder.span("prepare"):
        _prepare(spec, config, Path(folder))


def _build(spec: dict[str, Any], config: RunConfig, corpus: Corpus, ranks: Ranks) -> _Parts:
    teacher, objective = None, data_objective
    if config.distill:
        teacher = build_model(config.distill.teacher, torch.device(config.device))
        prepare_precision(teacher, config.precision)
        load_weights(teacher, Path(spec["teacher"]["weights"]))
        objective = distillation_objective(teacher, config.distill)
    torch.manual_seed(config.seed + (ranks.rank << 32))  # each rank draws its own dropout; seeds are below 2^32
    start = None
    if config.start and not spec.get("resume"):
        start = partial(load_start, info=find(Path(config.start)), classes=corpus.classes)
    session = build_session(config, objective=objective, start=start)
    if ranks.size > 1:
        from efftrain.training.distributed import share  # a second of imports

        share(session, ranks)
    return _Parts(session, teacher, corpus_batches(corpus, config, session.ranks))


def _warm_up(parts: _Parts, recorder: Recorder, *, from_step: int, plain_step: bool) -> None:
    """Compile if asked, which is billed; then two steps whose memory is measured, which are not. State is restored.

    Args:
        parts: of the run.
        recorder: told of it.
        from_step: where the stage of the model begins that is measured: pruned or not.
        plain_step: make one more, without the profiler, in a span of its own: for `Budget.first_step_refusal`.
    """
    with preserved(parts.session):
        if parts.session.config.compile:
            with recorder.span("compile"):
                train_step(parts.session, lambda: parts.batches.train(1), lambda _: None)
                evaluate(parts.session, parts.batches.validation()[:1])
        with recorder.span("warmup"):
            memory = measure_memory(parts.session, parts.teacher, parts.batches)
        if plain_step:
            with recorder.span("warmup"):
                train_step(parts.session, lambda: parts.batches.train(1), lambda _: None).loss.item()
    if (size := parts.session.ranks.size) > 1:
        memory = dataclasses.replace(memory, source=f"{memory.source}; of one of {size} ranks")
    memory.record(recorder, from_step=from_step)


def _checkpoints(
    spec: dict[str, Any], config: RunConfig, corpus: Corpus, recorder: JournalRecorder, ranks: Ranks
) -> CheckpointWriter | None:
    if config.checkpoint_every is None:
        return None
    journal, planned = Path(spec["journal"]), from_dict(spec["config"])  # not as a rank has it: that is not resumed
    return CheckpointWriter(
        journal.parent / "checkpoints", planned, recorder, tokenizer=corpus.tokenizer_path,
        identity={key: spec[key] for key in ("run_id", "study_id", "variant", "seed", "origin")}
        | {"classes": list(corpus.classes)},
        spent=Spending(journal, recorder.flush), rank=ranks.rank, group=ranks.checkpoints,
    )  # fmt: skip


def _interventions(parts: _Parts, recorder: Recorder) -> dict[int, Intervention]:
    prune, config = parts.session.config.prune, parts.session.config
    if prune is None:
        return {}

    def intervene(session: Session) -> None:
        with recorder.span("calibrate"):
            first = config.prune_step + 1
            steps = (parts.batches.train(first + index).inputs for index in range(prune.calibration_batches))
            prune_session(session, (micro for step in steps for micro in step.split(config.batch_size)))

    return {config.prune_step: intervene}


def _header(spec: dict[str, Any], config: RunConfig, corpus: Corpus, rank: Rank) -> dict[str, Any]:
    facts = corpus.as_dict()
    copied = ("run_id", "study_id", "variant", "seed", "config", "peak", "carbon", "idle", "teacher", "origin")
    return {
        **{key: spec[key] for key in copied},
        **facts_of_rank(rank),
        "before": spec.get("before"),
        "environment": {**environment(config.device, gpus=rank.gpus(config.device)), "corpus": facts},
        "corpus": facts,
        "parameters": (config.pruned_model or config.model).parameters,
        "trainable_parameters": count_trainable(config),
    }


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in CPU_ALLOCATION_FAILED
    )
