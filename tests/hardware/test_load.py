"""The kernel's account written by hand, and once the kernel's own with a busy neighbour."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efftrain.hardware.load import Moment, moment, share_of_others


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)


def _stat(root: Path, text: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/stat").write_text(text)
    return root


def test_own_processors_count_and_waiting_does_not(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal guest guest_nice; guests' time stands in user already.
    rows = ["cpu  9 9 9 9 9 9 9 9 9 9", "cpu0 1 2 4 1000 2000 8 16 32 1 1", "cpu1 7 7 7 7 7 7 7 7 7 7",
            "cpu2 100 0 0 5 5 0 0 0 0 0", "intr 5"]  # fmt: skip
    found = moment(_stat(tmp_path, "\n".join(rows)))
    assert found is not None
    assert found.processors == 2
    assert found.busy_s == pytest.approx((63 + 100) / hertz)


@pytest.mark.parametrize("text", ["", "cpu  1 2 3 4 5 6 7 8", "cpu0 1 2 3", "cpu0 a b c d e f g h"])
def test_an_account_that_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    assert moment(_stat(tmp_path, text)) is None
    assert moment(tmp_path / "nothing") is None


def _moment(clock_s: float, busy_s: float, own_s: float) -> Moment:
    return Moment(clock_s=clock_s, busy_s=busy_s, own_s=own_s, processors=2)


def test_the_share_is_what_is_not_ours_over_all_processors() -> None:
    # 2 s on 2 processors are 4 CPU seconds; 3 were used, 1.8 of them by us.
    assert share_of_others(_moment(10, 100, 1), _moment(12, 103, 2.8)) == pytest.approx(1.2 / 4)


def test_rounding_makes_nobody_less_than_idle() -> None:
    assert share_of_others(_moment(0, 0, 0), _moment(1, 1.98, 2.0)) == 0.0


def test_a_kernel_that_does_not_count_is_not_known() -> None:
    assert share_of_others(_moment(0, 0, 0), _moment(1, 0, 2)) is None
    assert share_of_others(None, _moment(1, 0, 2)) is None
    assert share_of_others(_moment(0, 0, 0), None) is None


@pytest.mark.slow
def test_a_busy_neighbour_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        before = moment()
        time.sleep(1.0)
        share = share_of_others(before, moment())
    finally:
        neighbour.kill()
        neighbour.wait()
    # One process keeps at most one processor busy, and others may be about.
    assert share is not None
    assert share > 0.5 / len(os.sched_getaffinity(0))
