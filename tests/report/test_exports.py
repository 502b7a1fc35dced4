"""Exported tables, read back with pandas and held against the records."""

from pathlib import Path

import pandas as pd
import pytest

from efftrain.record.schema import Run, Study
from efftrain.report.exports import train_losses, write_runs_csv, write_steps_parquet
from efftrain.report.figures import FIGURES

Case = tuple[Study, list[Run]]


def test_a_row_a_run_with_its_interval_and_method(small: Case, tmp_path: Path) -> None:
    write_runs_csv(tmp_path / "runs.csv", small[1])
    table = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    assert list(table.index) == [r.run_id for r in small[1]]
    for run in small[1]:
        row, energy = table.loc[run.run_id], run.energy.per_token
        assert row["energy_per_token_j"] == energy.value
        assert row["energy_per_token_j_low"] == energy.low
        assert pd.isna(row["energy_per_token_j_high"])  # a lower bound claims no upper end
        assert row["energy_per_token_j_method"] == "assumed"
        assert row["tokens_per_second"] == run.time.tokens_per_second.value
        assert row["tokens"] == run.tokens


def test_missing_figures_are_empty_and_named_missing(damaged: Case, tmp_path: Path) -> None:
    write_runs_csv(tmp_path / "runs.csv", damaged[1])
    row = pd.read_csv(tmp_path / "runs.csv").set_index("run_id").loc["recompute-s0"]
    assert pd.isna(row["mfu"])
    assert row["mfu_method"] == "missing"
    assert row["status"] == "oom"


def test_columns_are_four_a_figure(small: Case, tmp_path: Path) -> None:
    write_runs_csv(tmp_path / "runs.csv", small[1])
    assert len(pd.read_csv(tmp_path / "runs.csv").columns) == 8 + 4 * len(FIGURES)


def test_steps_survive_the_round_trip(damaged: Case, tmp_path: Path) -> None:
    write_steps_parquet(tmp_path / "steps.parquet", train_losses(damaged[1]))
    table = pd.read_parquet(tmp_path / "steps.parquet")
    assert len(table) == sum(r.steps for r in damaged[1])
    diverged = table[table["run_id"] == "bf16-s0"].set_index("step")["loss"]
    assert pd.isna(diverged[300])
    assert diverged[1] == damaged[1][2].loss.train[0]
    assert set(table["tokens"]) == {512}


def test_further_columns_are_kept(tmp_path: Path) -> None:
    plain = {"run_id": "a", "variant": "b", "seed": 0, "tokens": 4, "loss": None}
    rows = [{**plain, "step": 1, "grad_norm": 0.5}, {**plain, "step": 2}, {**plain, "step": 3, "grad_norm": 1.5}]
    write_steps_parquet(tmp_path / "steps.parquet", rows)
    table = pd.read_parquet(tmp_path / "steps.parquet")
    assert list(table["grad_norm"].dropna()) == [0.5, 1.5]
    assert pd.isna(table["grad_norm"][1])
    assert table["loss"].dtype == "float64"


def test_no_steps_are_a_table_without_rows(tmp_path: Path) -> None:
    write_steps_parquet(tmp_path / "steps.parquet", [])
    table = pd.read_parquet(tmp_path / "steps.parquet")
    assert (len(table), table["step"].dtype) == (0, "int64")


def test_a_row_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="step"):
        write_steps_parquet(tmp_path / "steps.parquet", [{"run_id": "a", "variant": "b", "seed": 0}])
