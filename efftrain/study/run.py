"""One run, from its specification to its journal: what the fresh process of a run executes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efftrain.compression.distillation import distillation_objective
from efftrain.compression.pruning import prune_session
from efftrain.monitor.machine import environment, find_sensors
from efftrain.monitor.monitor import Monitor
from efftrain.record.recorder import Recorder, Status
from efftrain.study.batches import corpus_batches
from efftrain.study.costs import measure_memory, record_costs
from efftrain.training.batch import Batches
from efftrain.training.blocks import measure_blocks
from efftrain.training.checkpoint import load_weights, save_weights
from efftrain.training.config import RunConfig, from_dict
from efftrain.training.evaluation import evaluate
from efftrain.training.loop import Intervention, train
from efftrain.training.objectives import data_objective
from efftrain.training.session import Session, build_session, preserved, train_step
from efftrain.workload.models.build import Model, build_model
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import Corpus, prepare

CPU_ALLOCATION_FAILED = ("can't allocate memory", "not enough memory")
"""What torch's CPU allocator says when the system refuses; it has no exception class of its own."""


def run(spec: dict[str, Any], stop: Callable[[], bool]) -> None:
    """Make one run: prepare, count, warm up, train; every outcome ends in the journal.

    Args:
        spec: as efftrain.study.process writes it.
        stop: asked before each step, and between the parts before the first.
    """
    config = from_dict(spec["config"])
    torch.set_num_threads(config.threads)
    if config.device == "cpu":  # compile in this process and its children, whose CPU time can be read
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    text = TextConfig(sources=(Source(path=spec["data"]),) if spec["data"] else ())
    corpus = prepare(text, config.model.vocab_size)
    sensors = find_sensors(config.device, node_overhead_w=spec["node_overhead_w"])
    with Monitor(Path(spec["journal"]), sensors, _header(spec, config, corpus)) as monitor:
        recorder = monitor.recorder
        try:
            status, detail = _train(spec, config, corpus, recorder, stop), {}
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


def _train(
    spec: dict[str, Any], config: RunConfig, corpus: Corpus, recorder: Recorder, stop: Callable[[], bool]
) -> Status:
    record_costs(config, recorder, Path(spec["costs"]) if spec["costs"] else None)
    if stop():
        return "interrupted"
    parts = _build(spec, config, corpus)
    _warm_up(parts, recorder)
    status = train(
        parts.session, parts.batches, recorder, interventions=_interventions(parts, recorder), should_stop=stop
    )
    if status == "complete" and spec["weights"]:
        save_weights(parts.session, Path(spec["weights"]))
    if status == "complete" and spec["phase_energy"] == "blocks":
        measure_blocks(parts.session, parts.batches, recorder, should_stop=stop)
    return status


def _build(spec: dict[str, Any], config: RunConfig, corpus: Corpus) -> _Parts:
    teacher, objective = None, data_objective
    if config.distill:
        teacher = build_model(config.distill.teacher, torch.device(config.device))
        load_weights(teacher, Path(spec["teacher"]["weights"]))
        objective = distillation_objective(teacher, config.distill)
    torch.manual_seed(config.seed)
    return _Parts(build_session(config, objective=objective), teacher, corpus_batches(corpus, config))


def _warm_up(parts: _Parts, recorder: Recorder) -> None:
    """Compile if asked, which is billed; then two steps whose memory is measured, which are not. State is restored."""
    with preserved(parts.session):
        if parts.session.config.compile:
            with recorder.span("compile"):
                train_step(parts.session, lambda: parts.batches.train(1), lambda _: None)
                evaluate(parts.session, parts.batches.validation()[:1])
        with recorder.span("warmup"):
            memory = measure_memory(parts.session, parts.teacher, parts.batches)
    memory.record(recorder, from_step=1)


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


def _header(spec: dict[str, Any], config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    facts = corpus.as_dict()
    copied = ("run_id", "study_id", "variant", "seed", "config", "peak", "carbon", "idle", "teacher")
    return {
        **{key: spec[key] for key in copied},
        "environment": {**environment(config.device), "corpus": facts},
        "corpus": facts,
        "parameters": (config.pruned_model or config.model).parameters,
    }


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in CPU_ALLOCATION_FAILED
    )
