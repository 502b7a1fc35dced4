"""`efftrain kernels`: what is known about the kernels; the same as `python -m efftrain_kernels.evidence`."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[Path | None, typer.Option("--json", help="Write everything that was found there too.")]

app = typer.Typer(
    help="Check, measure and tune the attention and AdamW kernels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def check(
    arch: Annotated[str, typer.Option(help="Compute capabilities times 10, comma-separated.")] = "80,86,90,100",
    only: Annotated[str | None, typer.Option(help="attention or adamw.")] = None,
    ptxas: Annotated[Path | None, typer.Option(help="An assembler in place of Triton's own.")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the kernels that most runs use.")] = False,
) -> None:
    """Compile every shipped kernel, without a device, and hold it to its limits."""
    options = ["--arch", arch, *_option("--only", only), *_option("--ptxas", ptxas), *_option("--json", json)]
    _evidence("check", *options, *(["--quick"] * quick))


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="attention or adamw; both if not given.")] = "",
    json: Json = None,
) -> None:
    """Measure attention or AdamW beside others'; without a GPU only that they run."""
    _evidence("bench", *([what] * bool(what)), *_option("--json", json))


@app.command()
def tune(json: Json = None) -> None:
    """Measure this GPU's configurations and keep the fastest of each for attention to use."""
    _evidence("tune", *_option("--json", json))


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _evidence(*arguments: str) -> None:
    from efftrain_kernels.evidence.__main__ import main

    raise typer.Exit(main(list(arguments), program="efftrain kernels"))
