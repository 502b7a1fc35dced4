"""The configuration that a wish comes to: what every variant of a study changes.

No torch here: a wish that cannot be granted is refused in one line before anything heavy is loaded.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from efftrain.hardware.probe import cpu
from efftrain.monitor.launch import this_rank
from efftrain.monitor.machine import compute_capability
from efftrain.study.planning.request import PlanError, Request, at_least_one, positive
from efftrain.training.checkpoints.fit import check_lora, check_start, start_model
from efftrain.training.checkpoints.folder import CheckpointInfo, find
from efftrain.training.config import HorizonConfig, LoraConfig, OptimizerConfig, RunConfig, Task
from efftrain.training.horizon_steps import steps_for_flops, steps_for_tokens_per_parameter
from efftrain.training.precision.support import refusal
from efftrain.workload.models.presets import HF_PREFIX, PRESETS, AnyModel, ModelConfig
from efftrain.workload.text.config import CleaningStep, DataError, Source, TextConfig
from efftrain.workload.text.corpus import prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How a model preset is trained where nobody says otherwise."""

    batch_size: int
    learning_rate: float
    grad_accumulation: int = 1


WORKLOADS: dict[str, Workload] = {
    "nano": Workload(batch_size=4, learning_rate=4e-3),
    "micro": Workload(batch_size=8, learning_rate=2e-3),
    "small": Workload(batch_size=8, learning_rate=6e-4, grad_accumulation=4),
    "1b": Workload(batch_size=4, learning_rate=3e-4, grad_accumulation=4),
}

RATE_TIMES_WIDTH = 0.512
"""Learning rate of a model that no preset names, times its width: close to that of all presets."""

DOCUMENTS_PER_SEQUENCE = 8
"""A classifier's evaluation has so many times the sequences: each holds one prediction, not one for each token."""

FINE_TUNING_SHARE = 0.1
"""Of a model's learning rate where training begins with a checkpoint: a fifth to a tenth is usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPreset:
    """Size of a study where nobody says otherwise."""

    model: str
    steps: int
    seeds: int
    evaluations: int
    eval_batches: int


STUDY_PRESETS: dict[str, StudyPreset] = {
    "quick": StudyPreset(model="nano", steps=240, seeds=2, evaluations=8, eval_batches=8),
    "standard": StudyPreset(model="micro", steps=1500, seeds=6, evaluations=15, eval_batches=16),
    "full": StudyPreset(model="small", steps=3000, seeds=6, evaluations=30, eval_batches=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What all runs of a study have in common.

    Attributes:
        config: the baseline's.
        text: what is read.
        start: the checkpoint that they begin with.
        notes: what a reader of every run should know.
        classes: names of the text's classes, in the order of the head over them, where there is one.
    """

    config: RunConfig
    text: TextConfig
    start: CheckpointInfo | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def base(request: Request, preset: StudyPreset) -> Base:
    """The baseline's configuration: what every variant changes. For a classification the text is prepared.

    Raises:
        PlanError: an unknown name, or a number out of range.
        ConfigError: a configuration that cannot be trained, a checkpoint that does not fit.
        DataError: a text that cannot be used.
    """
    refused = refusal(request.precision, request.device, compute_capability(request.device))
    if refused:
        raise PlanError(f"--precision {request.precision}: {refused}")
    if request.parallel and request.ranks == 1:
        raise PlanError(
            f"--parallel {request.parallel}: needs several ranks: torchrun --nproc-per-node N -m efftrain ..."
        )
    start = find(request.start) if request.start else None
    text = _text(request, start)
    name = request.model or ("" if start else preset.model)
    model = _model(request, name, start)
    classes: tuple[str, ...] = ()
    if model.num_classes is not None:
        classes = prepare(text, model.vocab_size).classes
        model = dataclasses.replace(model, num_classes=len(classes))
    workload = WORKLOADS.get(name) or Workload(batch_size=4, learning_rate=RATE_TIMES_WIDTH / model.d_model)
    config = _config(request, preset, model, workload, start)
    if config.lora:
        check_lora(config.lora, config.model)
    notes = [*start.passed_over, *check_start(config, start, classes)] if start else []
    if config.lora and not start:
        notes.append("adapters stand beside random weights: what they cost is right, what they learn says nothing")
    return Base(config=config, text=text, start=start, notes=tuple(notes), classes=classes)


def _config(
    request: Request, preset: StudyPreset, model: AnyModel, workload: Workload, start: CheckpointInfo | None
) -> RunConfig:
    batch_size = at_least_one(request.batch_size, workload.batch_size, "--batch-size")
    grad_accumulation = at_least_one(request.grad_accumulation, workload.grad_accumulation, "--grad-accumulation")
    steps = _steps(request, preset, model, batch_size * grad_accumulation * model.seq_len * request.ranks)
    rate = workload.learning_rate * (FINE_TUNING_SHARE if start and request.lora_rank is None else 1.0)
    optimizer = OptimizerConfig(
        name=request.optimizer, learning_rate=positive(request.learning_rate, rate, "--learning-rate"),
        weight_decay=positive(request.weight_decay, OptimizerConfig().weight_decay, "--weight-decay", zero=True),
    )  # fmt: skip
    return RunConfig(
        model=model,
        task=_task(request, model),
        horizon=_horizon(request),
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        grad_accumulation=grad_accumulation,
        precision=request.precision,
        eval_every=at_least_one(request.eval_every, max(1, steps // preset.evaluations), "--eval-every"),
        eval_batches=preset.eval_batches * (DOCUMENTS_PER_SEQUENCE if model.num_classes else 1),
        device=request.device,
        threads=max(1, cpu().threads // this_rank().ranks),
        log_every=1 if request.device == "cpu" else 10,
        start=str(start.folder.resolve()) if start else None,
        lora=_lora(request),
        checkpoint_every=at_least_one(request.checkpoint_every, None, "--checkpoint-every"),
        ranks=request.ranks,
        parallel=request.parallel,
    )


def _steps(request: Request, preset: StudyPreset, model: AnyModel, per_step: int) -> int:
    asked = {
        "--steps": request.steps, "--tokens": request.tokens, "--tokens-per-parameter": request.tokens_per_parameter,
        "--max-flops": request.max_flops,
    }  # fmt: skip
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise PlanError(f"{given[0]} and {given[1]} say the same thing twice; give one of them")
    if request.tokens is not None:
        return -(-at_least_one(request.tokens, 1, "--tokens") // per_step)
    if request.tokens_per_parameter is not None:
        return steps_for_tokens_per_parameter(request.tokens_per_parameter, model.parameters, per_step)
    if request.max_flops is not None:
        return steps_for_flops(request.max_flops, model.model_flops_per_token, per_step)
    return at_least_one(request.steps, preset.steps, "--steps")


def _horizon(request: Request) -> HorizonConfig:
    if request.min_delta and request.patience is None:
        raise PlanError("--min-delta: needs --patience")
    names = [field.name for field in dataclasses.fields(HorizonConfig)]
    return HorizonConfig(**{name: getattr(request, name) for name in names})


def _lora(request: Request) -> LoraConfig | None:
    if request.lora_rank is None:
        if request.lora_alpha is not None:
            raise PlanError("--lora-alpha: needs --lora-rank")
        return None
    alpha = 2.0 * request.lora_rank if request.lora_alpha is None else request.lora_alpha
    return LoraConfig(rank=at_least_one(request.lora_rank, 8, "--lora-rank"), alpha=alpha)


def _task(request: Request, model: AnyModel) -> Task:
    if request.task is not None:
        return request.task
    return "causal" if model.causal else "masked"


def _model(request: Request, name: str, start: CheckpointInfo | None) -> AnyModel:
    """The model that is named, or that of the checkpoint, with what the options change about it."""
    if name.startswith(HF_PREFIX):
        unknown = {"--init": request.init, "--dropout": request.dropout, "--window": request.window}
        for option, value in unknown.items():
            if value is not None:
                raise PlanError(f"{option}: is set by the Hugging Face configuration itself; change {name}")
        from efftrain.study.planning.hub import describe

        return describe(
            Path(name.removeprefix(HF_PREFIX)), task=request.task, seq_len=request.seq_len, attention=request.attention
        )
    if name and name not in PRESETS:
        raise PlanError(f"--model {name!r}: unknown; choose from {', '.join(PRESETS)}, or hf:PATH/config.json")
    model = start_model(start) if start and not name else PRESETS[name]
    if not isinstance(model, ModelConfig):
        return dataclasses.replace(model, attention=request.attention)
    task = _task(request, model)
    changes = {
        "attention": request.attention, "initialisation": request.init, "dropout": request.dropout,
        "window": request.window, "seq_len": request.seq_len, "causal": {"causal": True, "masked": False}.get(task),
    }  # fmt: skip
    asked = {name: value for name, value in changes.items() if value is not None}
    try:  # how many classes there are is told by the text
        return dataclasses.replace(model, **asked, num_classes=2 if task == "classification" else None)
    except ValueError as error:
        field, _, said = str(error).partition(" ")  # each message begins with the field's name
        raise PlanError(f"--{field.replace('_', '-')}: {said}") from None


def _text(request: Request, start: CheckpointInfo | None) -> TextConfig:
    for step in request.clean:
        if step not in get_args(CleaningStep):
            raise PlanError(f"--clean {step!r}: unknown; choose from {', '.join(get_args(CleaningStep))}")
    if request.task == "classification" and request.label_column is None:
        raise PlanError("--task classification: needs --label-column, which holds the class of each document")
    if request.task != "classification" and request.label_column is not None:
        raise PlanError(f"--label-column {request.label_column}: needs --task classification")
    return TextConfig(
        sources=tuple(_source(entry) for entry in request.data), column=request.text_column,
        label_column=request.label_column, cleaning=request.clean, tokenizer=_tokenizer(request, start),
    )  # fmt: skip


def _tokenizer(request: Request, start: CheckpointInfo | None) -> str | None:
    """The one that is named, that of the checkpoint, or one that lies beside a Hugging Face configuration."""
    if request.tokenizer is not None:
        return str(request.tokenizer.resolve())
    if start:
        return str((start.folder / "tokenizer.json").resolve())
    if request.model and request.model.startswith(HF_PREFIX):
        beside = Path(request.model.removeprefix(HF_PREFIX)).parent / "tokenizer.json"
        return str(beside.resolve()) if beside.is_file() else None
    return None


def _source(entry: str) -> Source:
    """PATH, or PATH=WEIGHT; a path that exists is never taken apart."""
    path, separator, weight = entry.rpartition("=")
    if not separator or Path(entry).exists():
        return Source(path=str(Path(entry).resolve()))
    try:
        return Source(path=str(Path(path).resolve()), weight=float(weight))
    except ValueError as error:
        detail = str(error) if isinstance(error, DataError) else f"{weight!r} is not a weight above 0"
        raise PlanError(f"--data {entry}: {detail}; expected PATH or PATH=WEIGHT") from None
