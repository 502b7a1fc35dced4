"""Records as tables for other tools: one row a run as CSV, one row a step as Parquet.

A figure takes four columns: its value in SI units with the unit in the column's name, the ends of its 95 % interval,
and its method. A figure that is missing has empty cells and the method `missing`.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run
from efftrain.report.figures import FIGURES

PLAIN = ("run_id", "study_id", "variant", "seed", "status", "steps", "tokens", "parameters")

STEP_COLUMNS = ("run_id", "variant", "seed", "step", "tokens", "loss")


def write_runs_csv(path: Path, runs: Sequence[Run]) -> None:
    """Write one row a run; a file that is there is replaced.

    Raises:
        OSError: `path` cannot be written.
    """
    columns = [*PLAIN, *(column for name, figure in FIGURES.items() for column in _columns(name, figure.suffix))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for run in runs:
            figures = (cell for figure in FIGURES.values() for cell in _cells(figure.take(run)))
            writer.writerow([*(getattr(run, name) for name in PLAIN), *figures])


def write_steps_parquet(path: Path, steps: Iterable[Mapping[str, Any]]) -> None:
    """Write one row a step; a file that is there is replaced.

    Args:
        path: the Parquet file.
        steps: rows with at least the keys `STEP_COLUMNS`; a further key that a row lacks is null there. Where there is
            no journal to take them from, `train_losses` makes rows from records.

    Raises:
        OSError: `path` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string(), pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.float64()]
    known = dict(zip(STEP_COLUMNS, types, strict=True))
    rows = list(steps)
    columns = {name: pa.array([row[name] for row in rows], type=known[name]) for name in STEP_COLUMNS}
    for name in dict.fromkeys(key for row in rows for key in row if key not in known):
        columns[name] = pa.array([row.get(name) for row in rows])
    pq.write_table(pa.table(columns), path)


def train_losses(runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """A row a step from records alone: the training loss in nat/token, None where it was not finite."""
    for run in runs:
        each = run.tokens // run.steps if run.steps else 0
        for step, loss in enumerate(run.loss.train, start=1):
            yield {
                "run_id": run.run_id, "variant": run.variant, "seed": run.seed, "step": step, "tokens": each,
                "loss": loss,
            }  # fmt: skip


def _columns(name: str, suffix: str) -> list[str]:
    base = f"{name}_{suffix}" if suffix else name
    return [base, f"{base}_low", f"{base}_high", f"{base}_method"]


def _cells(quantity: Quantity) -> list[float | str | None]:
    return [quantity.value, quantity.low, quantity.high, quantity.method]
