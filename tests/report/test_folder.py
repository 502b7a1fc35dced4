"""A folder of reports: all files, whole or not at all, and without torch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from efftrain.record.schema import Run, Study, dumps
from efftrain.report.exports import train_losses
from efftrain.report.folder import write_reports

Case = tuple[Study, list[Run]]
NAMES = [
    "report.md", "report.html", "runs.csv", "steps.parquet", "model-card.yaml", "emissions.csv", "metrics.prom",
]  # fmt: skip


def test_all_files_are_written_and_replaced(damaged: Case, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("old")
    written = write_reports(tmp_path, *damaged, train_losses(damaged[1]))
    assert [path.name for path in written] == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    assert (tmp_path / "report.md").read_text().startswith("# quick")


def test_a_file_that_cannot_be_made_leaves_the_old_one(damaged: Case, tmp_path: Path) -> None:
    (tmp_path / "steps.parquet").write_text("old")

    def torn() -> Iterator[dict]:
        yield from train_losses(damaged[1][:1])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_reports(tmp_path, *damaged, torn())
    assert (tmp_path / "steps.parquet").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


SCRIPT = """
import sys
from pathlib import Path
import efftrain.comparison.checks, efftrain.report.folder, efftrain.report.terminal
heavy = {"torch", "scipy", "numpy", "pandas", "pyarrow", "altair", "vl_convert", "jinja2", "rich"} & set(sys.modules)
assert not heavy, heavy
from efftrain.record.schema import Run, Study, load
from efftrain.report.exports import train_losses
from rich.console import Console
folder = Path(sys.argv[1])
study = load(folder / "study.json", Study)
runs = [load(path, Run) for path in sorted(folder.glob("runs/*.json"))]
efftrain.report.folder.write_reports(folder, study, runs, train_losses(runs))
efftrain.report.terminal.render(study, runs, Console(width=100))
assert "torch" not in sys.modules
"""


def test_records_are_rendered_without_torch_and_imported_without_anything_heavy(damaged: Case, tmp_path: Path) -> None:
    study, runs = damaged
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.json").write_text(dumps(study), encoding="utf-8")
    for run in runs:
        (tmp_path / "runs" / f"{run.run_id}.json").write_text(dumps(run), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, encoding="utf-8", check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unfinished baseline-s1: killed" in done.stdout
    assert all((tmp_path / name).stat().st_size for name in NAMES)
