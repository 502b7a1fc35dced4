"""The `efftrain` command: one file a subcommand, each of which imports what it needs when it is called.

`efftrain --help` must answer at once, so nothing heavy is imported here.
"""

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from efftrain.cli import bench, carbon, doctor, kernels, report, run, train
from efftrain.version import __version__

USAGE = 2
INTERRUPTED = 130

app = typer.Typer(
    help="What a training step costs, in FLOPs, bytes, joules and CO2e, and which change makes it cheaper.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.add_typer(carbon.app, name="carbon")
app.add_typer(kernels.app, name="kernels")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version or context.invoked_subcommand is None:
        typer.echo(f"efftrain {__version__}" if version else context.get_help())
        raise typer.Exit


def main() -> None:
    """Entry point: what is wrong with a command line is said in one line on standard error, with exit status 2.

    Of the commands that torchrun starts, that of rank 0 does all this; the others take part in its runs.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from efftrain.study.follower import follow, is_follower

        if is_follower(sys.argv[1:]):
            sys.exit(follow(sys.argv[1:]))
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        typer.echo(f"efftrain: {error.format_message()}", err=True)
        status = USAGE
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)
