"""All files of a report, written into the study's folder, each whole or not at all."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from efftrain.record.schema import Run, Study
from efftrain.report.carbon_exports import write_codecarbon_csv, write_model_card
from efftrain.report.exports import write_runs_csv, write_steps_parquet
from efftrain.report.html import html
from efftrain.report.markdown import markdown
from efftrain.report.prometheus import write_prometheus


def write_reports(folder: Path, study: Study, runs: Sequence[Run], steps: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Write the reports, the tables and what other tools read, and replace what is there.

    Args:
        folder: an existing folder.
        study: the study's record.
        runs: its runs' records.
        steps: rows for `exports.write_steps_parquet`.

    Returns:
        The files, in the order in which they were written.

    Raises:
        OSError: `folder` cannot be written to; the file at hand is then as it was before.
    """
    return [
        _replace(folder / "report.md", lambda path: _write_text(path, markdown(study, runs))),
        _replace(folder / "report.html", lambda path: _write_text(path, html(study, runs))),
        _replace(folder / "runs.csv", lambda path: write_runs_csv(path, runs)),
        _replace(folder / "steps.parquet", lambda path: write_steps_parquet(path, steps)),
        _replace(folder / "model-card.yaml", lambda path: write_model_card(path, study, runs)),
        _replace(folder / "emissions.csv", lambda path: write_codecarbon_csv(path, study, runs)),
        _replace(folder / "metrics.prom", lambda path: write_prometheus(path, runs)),
    ]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _replace(path: Path, write: Callable[[Path], None]) -> Path:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
