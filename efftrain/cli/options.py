"""Options that several commands share, and how their faults reach the user: in one line, before anything is written."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from efftrain.study.plan import Plan

USAGE = 2

Preset = Annotated[str, typer.Option(help="Size of the study: quick, standard or full.")]
Variants = Annotated[
    str | None,
    typer.Option(help="Comma-separated: baseline,bf16,recompute,selective,pruned,distilled,fp16,tf32,compile,kernels."),
]
Model = Annotated[str | None, typer.Option(help="nano, micro, small or 1b; the preset's if not given.")]
Data = Annotated[
    Path | None,
    typer.Option(help="A .txt, a .jsonl with a text field, or a folder of those; Python's own library if not given."),
]
Seeds = Annotated[int | None, typer.Option(help="Runs of each variant, each with its own seed.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of each run.")]
Tokens = Annotated[int | None, typer.Option(help="Trained tokens of each run, instead of --steps.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Attention = Annotated[str, typer.Option(help="eager, sdpa or efftrain.")]
Optimizer = Annotated[str, typer.Option(help="torch or efftrain.")]
Country = Annotated[str | None, typer.Option(help="Grid, as ISO 3166-1 alpha-3: FRA.")]
Region = Annotated[str | None, typer.Option(help="State, province or zone of the country.")]
Intensity = Annotated[float | None, typer.Option(help="Carbon intensity of the grid in g/kWh, instead of --country.")]
Pue = Annotated[float | None, typer.Option(help="Power usage effectiveness of the facility, at least 1.")]
MarketIntensity = Annotated[
    float | None, typer.Option(help="Intensity of your electricity contract in g/kWh, shown beside the grid's.")
]
IntensityProfile = Annotated[
    Path | None, typer.Option(help="CSV of hourly intensities in g/kWh, for the run's own hours.")
]
Wue = Annotated[float | None, typer.Option(help="Water usage effectiveness of the facility in L/kWh.")]
LifetimeYears = Annotated[float | None, typer.Option(help="Years that the hardware is kept; 4 if not given.")]
Utilization = Annotated[float | None, typer.Option(help="Share of them in which it is used; 0.85 if not given.")]
NodeOverhead = Annotated[
    float | None,
    typer.Option(help="W of fans, disks, network and supply losses, which no sensor reads; assumed if not given."),
]
PhaseEnergy = Annotated[
    str,
    typer.Option(
        help="Joules by phase: regression on the training itself, or blocks: parts of the step, repeated after each "
        "run for about a minute, for steps too short for the sensor."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the study; reports/PRESET if not given.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the study that is in the folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the study that is in the folder.")]


def fail(message: object) -> typer.Exit:
    """Say what is wrong in one line; the exception to raise then."""
    typer.echo("efftrain: " + " ".join(str(message).split()), err=True)
    return typer.Exit(USAGE)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the faults that a user can mend into one line and exit status 2."""
    from efftrain.hardware.probe import DeviceError
    from efftrain.meters.carbon.grids import CarbonError
    from efftrain.record.schema import RecordError
    from efftrain.study.plan import PlanError
    from efftrain.training.config import ConfigError
    from efftrain.workload.text.corpus import DataError

    try:
        yield
    except (PlanError, ConfigError, CarbonError, DataError, DeviceError, RecordError) as error:
        raise fail(error) from None


def watts(value: float | None, option: str) -> float | None:
    """A power in W of at least 0; None where it was not given.

    Raises:
        PlanError: it is negative or not finite.
    """
    from efftrain.study.plan import PlanError

    if value is not None and not (math.isfinite(value) and value >= 0):
        raise PlanError(f"{option} {value:g}: expected W of at least 0, for example 84")
    return value


def names(text: str | None, option: str) -> tuple[str, ...] | None:
    """The names in a comma-separated option; None where it was not given.

    Raises:
        PlanError: an empty name.
    """
    from efftrain.study.plan import PlanError
    from efftrain.study.variants import VARIANTS

    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise PlanError(f"{option} {text!r}: names separated by commas are needed; choose from {', '.join(VARIANTS)}")
    return found


def nothing_beside_resume(context: typer.Context) -> None:
    """Refuse options that a study which goes on has settled already.

    Raises:
        PlanError: one stands on the command line.
    """
    from efftrain.study.plan import PlanError

    extra = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in {"resume", "out"} and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if extra:
        raise PlanError(f"--resume goes on with the study's own settings; leave out {', '.join(extra)}")


def check_corpus(plan: "Plan") -> None:
    """Prepare the text of a plan before anything is written, so that what is wrong with it is said first.

    Raises:
        DataError: no text, or too little for one batch.
    """
    from efftrain.workload.text.config import Source, TextConfig
    from efftrain.workload.text.corpus import prepare

    if not plan.runs:
        return
    config = plan.runs[0].config
    text = TextConfig(sources=(Source(path=plan.data),) if plan.data else ())
    corpus = prepare(text, config.model.vocab_size)
    corpus.require(config.tokens_per_step, seq_len=config.model.seq_len)


def attention(name: str) -> Any:
    """A known attention implementation.

    Raises:
        PlanError: another name.
    """
    from efftrain.workload.models.presets import Attention

    return _one_of(name, "--attention", Attention)


def optimizer(name: str) -> Any:
    """A known optimizer.

    Raises:
        PlanError: another name.
    """
    from efftrain.training.config import OptimizerName

    return _one_of(name, "--optimizer", OptimizerName)


def phase_energy(name: str) -> str:
    """A known way to joules by phase.

    Raises:
        PlanError: another name.
    """
    return _one_of(name, "--phase-energy", Literal["regression", "blocks"])


def _one_of(name: str, option: str, choices: Any) -> str:
    from efftrain.study.plan import PlanError

    if name not in get_args(choices):
        raise PlanError(f"{option} {name!r}: unknown; choose from {', '.join(get_args(choices))}")
    return name
