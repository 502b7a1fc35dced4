"""Options in groups: each is a dataclass whose fields are options, and a command takes whole groups.

So what several commands share is written once, and `--help` shows it under headings.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., None])


def grouped(command: Command) -> Command:
    """Let a command take groups: each parameter that is annotated with a dataclass stands for that one's fields.

    A group may hold groups.
    """
    signature = inspect.signature(command)

    def with_groups(**given: Any) -> None:
        command(**{name: _taken(parameter.annotation, name, given) for name, parameter in signature.parameters.items()})

    options = [option for parameter in signature.parameters.values() for option in _options(parameter)]
    with_groups.__name__, with_groups.__doc__ = command.__name__, command.__doc__
    with_groups.__signature__ = signature.replace(parameters=options)  # pyright: ignore[reportFunctionMemberAccess]
    return with_groups  # pyright: ignore[reportReturnType]


def _taken(kind: Any, name: str, given: dict[str, Any]) -> Any:
    """The value of a parameter: what was given, or a group of that."""
    if not dataclasses.is_dataclass(kind):
        return given[name]
    fields = {field.name: _taken(field.type, field.name, given) for field in dataclasses.fields(kind)}
    return kind(**fields)  # pyright: ignore[reportCallIssue]


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The options that a parameter stands for."""
    if not dataclasses.is_dataclass(parameter.annotation):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    return [
        option
        for field in dataclasses.fields(parameter.annotation)
        for option in _options(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=field.type,
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            )
        )
    ]


def _in(panel: str) -> Callable[..., Any]:
    """Options under one heading of `--help`."""

    def option(*names: str, help: str, **settings: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=panel, **settings)

    return option


_model = _in("Model")
_text = _in("Text")
_step = _in("Step")
_horizon = _in("Horizon: how long")
_reuse = _in("Checkpoints and reuse")
_bill = _in("Energy and carbon")
_study = _in("Study")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What is trained."""

    model: Annotated[
        str | None,
        _model(help="nano, micro, small, 1b, or hf:PATH/config.json of a Hugging Face model; the preset's by default."),
    ] = None
    task: Annotated[
        str | None, _model(help="causal (next token), masked (an encoder learns masked tokens) or classification.")
    ] = None
    attention: Annotated[str, _model(help="eager, sdpa or efftrain.")] = "sdpa"
    init: Annotated[str | None, _model(help="How weights are drawn: scaled (the default), xavier or he.")] = None
    dropout: Annotated[float | None, _model(help="Probability on residual branches and attention; 0 if not given.")] = (
        None
    )
    window: Annotated[int | None, _model(help="Tokens that attention looks back on, the token itself included.")] = None
    seq_len: Annotated[int | None, _model(help="Tokens of a sequence; the model's own if not given.")] = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What it is trained on."""

    data: Annotated[
        list[str] | None,
        _text(
            help="A .txt, .jsonl, .parquet, a Hugging Face dataset folder, or a folder of files; several with "
            "--data A=3 --data B=1 for their weights. Python's own library if not given."
        ),
    ] = None
    text_column: Annotated[str, _text(help="Column or field that holds the text.")] = "text"
    label_column: Annotated[str | None, _text(help="The one that holds the class, for classification.")] = None
    clean: Annotated[
        str | None, _text(help="Comma-separated, in this order: html,control,contacts,near-duplicates.")
    ] = None
    tokenizer: Annotated[Path | None, _text(help="A tokenizer.json, instead of one that is trained.")] = None
    bill_data: Annotated[
        bool, _text("--bill-data", help="Prepare the text again within each run, and put that on its bill.")
    ] = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How a step is made."""

    device: Annotated[str, _step(help="auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[str, _step(help="fp32, tf32, bf16 or fp16 (autocast), or pure-bf16 (fp32 masters).")] = "fp32"
    optimizer: Annotated[str, _step(help="AdamW of torch or of efftrain.")] = "torch"
    batch_size: Annotated[
        int | None, _step(help="Sequences of a micro-batch, on each rank; the model's own if not given.")
    ] = None
    grad_accumulation: Annotated[int | None, _step(help="Micro-batches of a step; the model's own if not given.")] = (
        None
    )
    learning_rate: Annotated[
        float | None, _step(help="At its peak, after the warm-up; by the model's width if not given.")
    ] = None
    weight_decay: Annotated[
        float | None, _step(help="Of matrices, 0.1 if not given; norms, biases, embeddings have none.")
    ] = None
    parallel: Annotated[str | None, _step(help="Under torchrun: ddp (whole copies, the default) or fsdp (shards).")] = (
        None
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HorizonOptions:
    """When it ends."""

    steps: Annotated[int | None, _horizon(help="Optimizer steps; the preset's if not given.")] = None
    tokens: Annotated[int | None, _horizon(help="Trained tokens, instead of --steps.")] = None
    tokens_per_parameter: Annotated[
        float | None, _horizon(help="Trained tokens for each weight of the model; about 20 spend a budget best.")
    ] = None
    max_flops: Annotated[float | None, _horizon(help="As many steps as keep within so many model FLOP: 1e15.")] = None
    max_joules: Annotated[float | None, _horizon(help="Stop before the bill exceeds so many J.")] = None
    max_gco2e: Annotated[float | None, _horizon(help="Stop before it exceeds so many g CO2e.")] = None
    patience: Annotated[int | None, _horizon(help="Stop after so many evaluations without a better loss.")] = None
    min_delta: Annotated[float, _horizon(help="How much lower a loss must be to count as better, in nat.")] = 0.0
    target_loss: Annotated[float | None, _horizon(help="Stop at this validation loss.")] = None
    eval_every: Annotated[
        int | None, _horizon(help="Steps between evaluations; an eighth to a thirtieth of all if not given.")
    ] = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReuseOptions:
    """Where it begins, and what it leaves."""

    start: Annotated[
        Path | None, _reuse("--from", help="Begin with the weights of a checkpoint: its folder, or its run's.")
    ] = None
    lora_rank: Annotated[int | None, _reuse(help="Train low-rank adapters of this rank instead of the weights.")] = None
    lora_alpha: Annotated[float | None, _reuse(help="Their scale is alpha over rank; twice the rank if not given.")] = (
        None
    )
    checkpoint_every: Annotated[
        int | None, _reuse(help="Steps between checkpoints, of which the newest two are kept; none if not given.")
    ] = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """All of a training."""

    model: ModelOptions
    text: TextOptions
    step: StepOptions
    horizon: HorizonOptions
    reuse: ReuseOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BillOptions:
    """What joules become."""

    country: Annotated[str | None, _bill(help="Grid, as ISO 3166-1 alpha-3: FRA.")] = None
    region: Annotated[str | None, _bill(help="State, province or zone of the country.")] = None
    intensity: Annotated[float | None, _bill(help="Carbon intensity of the grid in g/kWh.")] = None
    pue: Annotated[float | None, _bill(help="Power usage effectiveness of the facility, at least 1.")] = None
    market_intensity: Annotated[
        float | None, _bill(help="Of your electricity contract in g/kWh, shown beside the grid's.")
    ] = None
    intensity_profile: Annotated[Path | None, _bill(help="CSV of hourly intensities in g/kWh.")] = None
    wue: Annotated[float | None, _bill(help="Water usage effectiveness of the facility in L/kWh.")] = None
    lifetime_years: Annotated[float | None, _bill(help="Years that the hardware is kept; 4 if not given.")] = None
    utilization: Annotated[float | None, _bill(help="Share of them in which it is used; 0.85 if not given.")] = None
    node_overhead_w: Annotated[
        float | None, _bill(help="W of fans, disks, network, supply losses; assumed if not given.")
    ] = None

    def resolve(self) -> dict[str, Any]:
        """The settings that a run's header holds: `carbon` and `node_overhead_w`.

        Raises:
            CarbonError, PlanError: what is given makes no sense.
        """
        from efftrain.cli.options import watts
        from efftrain.meters.carbon.footprint import resolve

        carbon = resolve(
            self.country, self.region, self.intensity, self.pue, market_intensity=self.market_intensity, wue=self.wue,
            profile=self.intensity_profile, lifetime_years=self.lifetime_years, utilization=self.utilization,
        )  # fmt: skip
        return {"carbon": carbon, "node_overhead_w": watts(self.node_overhead_w, "--node-overhead-w")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """Where it is written, and how its joules are divided."""

    phase_energy: Annotated[
        str,
        _study(
            help="Joules by phase: regression on the training itself, or blocks: parts of the step, repeated after "
            "each run for about a minute, for steps too short for the sensor."
        ),
    ] = "regression"
    out: Annotated[Path | None, _study(help="Folder of the study; reports/PRESET or reports/train by default.")] = None
    force: Annotated[bool, _study("--force", help="Overwrite the study that is in the folder.")] = False
    resume: Annotated[bool, _study("--resume", help="Go on with the study that is in the folder.")] = False
