"""The accuracy benchmark: its arithmetic on rows whose verdict is plain, and its short form on simulated boards."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy.rows
    import accuracy.scenarios
    import accuracy.table

    return accuracy


def test_errors_and_coverage_of_rows(accuracy):
    def row(tool, value_j, low=None, high=None, scenario="a"):
        return accuracy.rows.Row(
            scenario=scenario, tool=tool, window_s=1.0, start_s=0.0, truth_j=100.0, value_j=value_j, low=low, high=high,
            note="",
        )  # fmt: skip

    rows = [
        row("efftrain", 101.0, 95.0, 107.0),
        row("efftrain", 103.0, 101.0, 105.0),
        row("efftrain", 90.0, 80.0, None),
        row("zeus", None),
        row("zeus", -300.0),
        row("zeus", 98.0),
    ]
    (line,) = accuracy.table.lines(rows)
    assert line.errors == pytest.approx({"efftrain": 0.03, "zeus": 1.0})
    assert (line.covered, line.claimed, line.windows) == (2, 3, 3)
    assert line.half_width == pytest.approx((6 / 101 + 2 / 103) / 2)
    coverage, smallest, behind = accuracy.table.targets(rows)
    assert [coverage.met, smallest.met, behind.met] == [False, True, True]  # 2 of 3, and far fewer than 200
    worse = [row("efftrain", 101.0, scenario="b"), row("zeus", 100.4, scenario="b")]
    verdict = accuracy.table.targets(rows + worse)[2]
    assert not verdict.met
    assert verdict.outcome == "b, 1 s (1.00 against zeus's 0.40; larger in 1 of 1 windows, p = 1)"
    many = [r for _ in range(10) for r in worse]
    assert "larger in 10 of 10 windows, p = 0.002" in accuracy.table.targets(many)[2].outcome  # 2 / 2¹⁰


def test_windows_are_out_of_step_with_every_clock(accuracy):
    windows = accuracy.scenarios.plan({0.5: 20, 10.0: 2}, seed=1)
    assert sorted(w.row_s for w in windows) == [0.5] * 20 + [10.0] * 2
    assert all(0.9 * w.row_s <= w.end_s - w.start_s <= 1.1 * w.row_s for w in windows)
    gaps = [b.start_s - a.end_s for a, b in itertools.pairwise(windows)]
    assert 0.15 <= min(gaps) < max(gaps) <= 0.45
    assert len({round(w.start_s % 0.1, 2) for w in windows}) > 5


@pytest.mark.slow
def test_the_truth_lies_in_our_intervals():
    """It ends with 1 where they hold the truth in less than 91 % of 200 windows or more."""
    command = [sys.executable, str(BENCHMARKS / "energy_accuracy.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
