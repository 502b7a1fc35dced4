"""Options that several commands share, and how their faults reach the user: in one line, before anything is written."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

if TYPE_CHECKING:
    from efftrain.study.planning.plan import Plan

USAGE = 2

Preset = Annotated[str, typer.Option(help="Size of the study: quick, standard or full.")]
NAMES = "baseline, bf16, recompute, selective, pruned, distilled, fp16, pure-bf16, tf32, compile, kernels"
"""Of the variants, as in efftrain.study.planning.variants, which `--help` must not wait for."""

Variant = Annotated[str, typer.Option(help=f"How: one of {NAMES}.")]
Variants = Annotated[
    str | None,
    typer.Option(help=f"Separated by commas, some of: {NAMES}."),
]
Seeds = Annotated[int | None, typer.Option(help="Runs of each variant, each with its own seed.")]


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
    from efftrain.study.planning.request import PlanError
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
    from efftrain.study.planning.request import PlanError

    if value is not None and not (math.isfinite(value) and value >= 0):
        raise PlanError(f"{option} {value:g}: expected W of at least 0, for example 84")
    return value


def names(text: str | None, option: str) -> tuple[str, ...] | None:
    """The variants in a comma-separated option; None where it was not given.

    Raises:
        PlanError: an empty name.
    """
    from efftrain.study.planning.variants import VARIANTS

    return None if text is None else parts(text, option, known=VARIANTS)


def nothing_beside_resume(context: typer.Context) -> None:
    """Refuse options that a study which goes on has settled already.

    Raises:
        PlanError: one stands on the command line.
    """
    from efftrain.study.planning.request import PlanError

    extra = [
        "--from" if name == "start" else f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in {"resume", "out"} and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if extra:
        raise PlanError(f"--resume goes on with the study's own settings; leave out {', '.join(extra)}")


def parts(text: str | None, option: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """The names in a comma-separated option; none where it was not given.

    Raises:
        PlanError: an empty name.
    """
    from efftrain.study.planning.request import PlanError

    found = tuple(part.strip() for part in text.split(",")) if text is not None else ()
    if not all(found):
        choices = f"; choose from {', '.join(known)}" if known else ""
        raise PlanError(f"{option} {text!r}: names separated by commas are needed{choices}")
    return found


def check_corpus(plan: "Plan") -> None:
    """Prepare the text of a plan before anything is written, so that what is wrong with it is said first.

    Raises:
        DataError: no text, too little for one batch, or other classes than the plan's.
    """
    from efftrain.training.checkpoints.fit import other_class
    from efftrain.workload.text.corpus import DataError, prepare

    if not plan.runs:
        return
    config = plan.runs[0].config
    corpus = prepare(plan.text, config.model.vocab_size, masked=config.task == "masked")
    if plan.classes and (other := other_class(plan.classes, corpus.classes)):  # read again by --resume
        which, planned, found = other
        raise DataError(
            f"{corpus.name}: class {which} is {found} now, and was {planned} when this study began;"
            " it goes on with the text that it had"
        )
    corpus.require(config.tokens_per_step, seq_len=config.model.seq_len)


def phase_energy(name: str) -> str:
    """A known way to joules by phase.

    Raises:
        PlanError: another name.
    """
    return one_of(name, "--phase-energy", Literal["regression", "blocks"])


def one_of(name: str | None, option: str, choices: Any) -> Any:
    """`name`, which is None or one of the literals in `choices`.

    Raises:
        PlanError: another name.
    """
    from efftrain.study.planning.request import PlanError

    if name is not None and name not in get_args(choices):
        raise PlanError(f"{option} {name!r}: unknown; choose from {', '.join(get_args(choices))}")
    return name
