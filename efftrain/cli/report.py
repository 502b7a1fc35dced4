"""`efftrain report`: the figures of a study again, from its journals."""

from pathlib import Path
from typing import Annotated

import typer

from efftrain.cli import options


def report(folder: Annotated[Path, typer.Argument(help="Folder of a study, whole or cut off.")]) -> None:
    """Make a study's records and reports anew from what is there, killed runs included."""
    from efftrain.cli.study import report_folder
    from efftrain.record.folder import StudyFolder

    with options.usage_errors():
        report_folder(StudyFolder(folder))
