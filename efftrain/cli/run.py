"""`efftrain run`: what any command costs, with all the processes that it starts."""

import errno
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from efftrain.cli import options
from efftrain.cli.groups import BillOptions, grouped

if TYPE_CHECKING:
    from efftrain.adapters.command import Ended

Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after --.", metavar="COMMAND")]
Out = Annotated[Path | None, typer.Option(help="Folder for record and report; efftrain-runs/NAME-TIME if not given.")]
Name = Annotated[str | None, typer.Option(help="Of the measurement; the script's or the program's if not given.")]
Json = Annotated[bool, typer.Option("--json", help="The record as one line on standard output, all else on stderr.")]
Device = Annotated[str, typer.Option(help="Whose energy counts: auto (all visible GPUs), cpu, cuda or cuda:N.")]


@grouped
def run(
    command: Command,
    *,
    out: Out = None,
    name: Name = None,
    json: Json = False,
    device: Device = "auto",
    bill: BillOptions,
) -> None:
    """Run any command and report what it cost; the exit status is the command's."""
    from efftrain.adapters.signals import hold

    held = hold()  # before anything heavy is imported, which may start threads
    from efftrain.adapters.command import NOT_EXECUTABLE, NOT_FOUND, CommandError, run_command

    with options.usage_errors():
        settings = bill.resolve()
    _check(name, out, device)
    if shutil.which(command[0]) is None and not Path(command[0]).exists():
        typer.echo(f"efftrain: {command[0]}: command not found", err=True)
        raise typer.Exit(NOT_FOUND)
    try:
        ended = run_command(
            command, name=name or _name(command), folder=out, device=device, to_stderr=json, held=held, **settings,
        )  # fmt: skip
    except CommandError as error:
        typer.echo(f"efftrain: {error.strerror}", err=True)
        raise typer.Exit(NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE) from None
    _report(ended, json=json)
    raise typer.Exit(ended.status)


def _check(name: str | None, out: Path | None, device: str) -> None:
    """Say what is wrong with an option before the command starts."""
    if name is not None and not re.fullmatch(r"[^/\0.][^/\0]{0,99}", name):
        raise options.fail(f"--name {name!r}: expected 1 to 100 characters, no slash, no dot at the beginning")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise options.fail(f"--device {device!r}: expected auto, cpu, cuda or cuda:N")
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise options.fail(f"--out {out}: is there already; name a new folder")


def _name(command: list[str]) -> str:
    """The Python script's name, or the program's."""
    script = next((Path(part).stem for part in command if part.endswith(".py")), Path(command[0]).name)
    return script.lstrip(".")[:100] or "command"


def _report(ended: "Ended", *, json: bool) -> None:
    """The figures on standard error, and the record on standard output if that was asked for."""
    from efftrain.adapters.words import lines

    run = ended.made.run if ended.made else None
    first, *rest = lines(run, ended.folder, ended.problems)
    _write(sys.stderr, "\n".join([f"\nefftrain: {first}", *(f"  {line}" for line in rest)]))
    if json and run is not None:
        _write(sys.stdout, run.model_dump_json(by_alias=True))


def _write(stream: TextIO, text: str) -> None:
    """A line for whoever is listening; where nobody is, the exit status is still the command's."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else the interpreter would fail on it at its exit
