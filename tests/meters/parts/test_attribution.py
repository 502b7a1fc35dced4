"""From a journal's lines to the record: the regression first, blocks where it refuses, and a reason where both do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from efftrain.meters.assemble import assemble

S = 1_000_000_000
WATTS = {"data": 100.0, "forward": 300.0, "backward": 400.0, "optimizer": 200.0}
SHARES = {"data": 0.02, "forward": 0.3, "backward": 0.5, "optimizer": 0.18}
PARTS = {
    "data": 100.0, "forward": 300.0, "forward+backward": (0.3 * 300 + 0.5 * 400) / 0.8, "optimizer": 200.0,
}  # fmt: skip
"""W of each kind of block."""

LENGTHS = {"data": 0.02, "forward": 0.3, "forward+backward": 0.8, "optimizer": 0.18}


class _Run:
    """60 s of steps on a counter of 100 ms that averages all of it, then blocks of 5 s."""

    def __init__(self, step_s: float, jitter: float, *, blocks: bool) -> None:
        rng = np.random.default_rng(11)
        self.lines: list[dict[str, Any]] = []
        self.watts: list[tuple[float, float]] = [(1.0, 90.0)]
        now = 1.0
        while now < 61:
            lengths = {n: step_s * share * rng.lognormal(0, jitter) for n, share in SHARES.items()}
            start, marks = now, []
            for name, length in lengths.items():
                marks.append([name, round(now * S)])
                self.watts.append((length, WATTS[name]))
                now += length
            self.lines.append(
                {"kind": "step", "t": round(start * S), "t_end": round(now * S), "step": len(self.lines) + 1,
                 "tokens": 512, "loss": 1.0, "phases": marks, "learning_rate": 0.1, "grad_norm": 1.0}
            )  # fmt: skip
        for name in [*PARTS] * 3 if blocks else []:
            self.watts += [(0.5, 150.0), (5.0, PARTS[name])]
            self.lines.append({"kind": "block", "t": round((now + 0.5) * S), "t_end": round((now + 5.5) * S),
                               "name": name, "repetitions": round(5 / LENGTHS[name] / step_s)})  # fmt: skip
            now += 5.5
        self._counter(now)

    def _counter(self, end: float) -> None:
        t = np.concatenate([[0.0], np.cumsum([length for length, _ in self.watts])])
        joules = np.concatenate([[0.0], np.cumsum([length * w for length, w in self.watts])])
        for tick in np.arange(0.35, end, 0.1):
            seen = round((tick + 0.004) * S)
            value = round(float(np.interp(tick - 0.03, t, joules)), 3)
            since = round((tick - 0.004) * S)
            self.lines.append({"kind": "tick", "t": seen, "sensor": "gpu0", "value": value, "since": since})
        self.lines.sort(key=lambda line: line.get("t_end", line["t"]))


@pytest.fixture
def record(journal: Callable[..., Any], info: Callable[..., Any]) -> Callable[..., Any]:
    def build(run: _Run) -> Any:
        return assemble(journal(run.lines, sensors=[info(tick_s=None, u_relative=0.0)], absent=[])).energy

    return build


def _shares(energy: Any) -> dict[str, float]:
    whole = sum(energy.phases[name].value for name in ("data+forward", "backward", "optimizer"))
    return {name: energy.phases[name].value / whole for name in ("data+forward", "backward", "optimizer")}


EXPECTED = {"data+forward": 92 / 328, "backward": 200 / 328, "optimizer": 36 / 328}


def test_ordinary_training_gives_joules_by_phase(record: Callable[..., Any]) -> None:
    energy = record(_Run(0.37, 0.03, blocks=False))
    assert energy.attribution.startswith("least squares on")
    assert _shares(energy) == pytest.approx(EXPECTED, rel=0.02)
    assert energy.phase_power["backward"].low <= 400 <= energy.phase_power["backward"].high
    assert energy.closure.low <= 1 <= energy.closure.high


def test_blocks_answer_where_steps_are_too_short(record: Callable[..., Any]) -> None:
    energy = record(_Run(0.02, 0.03, blocks=True))
    assert energy.attribution.startswith("12 blocks of the parts of the step")
    assert _shares(energy) == pytest.approx(EXPECTED, rel=0.02)
    assert sum(q.value for q in energy.phases.values()) == pytest.approx(energy.total.value, rel=1e-6)
    assert energy.closure.value == pytest.approx(1.0, abs=0.02)


def test_blocks_that_were_not_needed_are_named(record: Callable[..., Any]) -> None:
    attribution = record(_Run(0.37, 0.03, blocks=True)).attribution
    assert attribution.startswith("least squares on")
    assert "; the blocks were not needed" in attribution


def test_without_blocks_they_are_offered(record: Callable[..., Any]) -> None:
    energy = record(_Run(0.02, 0.03, blocks=False))
    assert not any(q.present for q in energy.phases.values())
    assert "--phase-energy blocks" in energy.attribution
    assert "no model of modules and ops" in energy.attribution


def test_a_training_that_is_only_watched_is_offered_no_blocks(journal: Any, info: Any) -> None:
    run = _Run(0.02, 0.03, blocks=False)
    energy = assemble(journal(run.lines, sensors=[info(tick_s=None)], absent=[], corpus={})).energy
    assert "phases were not told apart" in energy.attribution
    assert "--phase-energy" not in energy.attribution


def test_blocks_that_were_cut_off_are_named(record: Callable[..., Any]) -> None:
    run = _Run(0.02, 0.03, blocks=True)
    run.lines = [line for line in run.lines if line["kind"] != "block"] + [
        line for line in run.lines if line["kind"] == "block"
    ][:3]
    energy = record(run)
    assert "blocks: phases were not told apart: the run ended before" in energy.attribution
    assert "--phase-energy" not in energy.attribution
