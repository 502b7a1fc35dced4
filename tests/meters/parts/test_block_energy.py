"""Joules by phase from blocks whose energy per repetition is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from efftrain.meters.parts.block_energy import PARTS, block_energy
from efftrain.meters.parts.timeline import Timeline, timeline
from efftrain.record.quantities import Quantity, estimate, exact, missing

S = 1_000_000_000
JOULES = {"data": 0.01, "forward": 2.0, "forward+backward": 5.5, "optimizer": 1.0}
"""Of one repetition; a step is 0.01 + 5.5 + 1 = 6.51 J."""

STEPS = 1000


class _Machine:
    """1000 steps of 20 ms from 0 s, an evaluation of 1 s at 100 W, and from 30 s on three blocks of each part."""

    def __init__(self, scatter: float, *, drift: float = 1.0) -> None:
        rng = np.random.default_rng(3)
        starts = np.arange(STEPS) * S // 50
        self.steps = [
            {"t": int(t), "t_end": int(t + S // 50),
             "phases": [["data", int(t)], ["forward", int(t + S // 1000)], ["backward", int(t + 7 * S // 1000)],
                        ["optimizer", int(t + 16 * S // 1000)]]}
            for t in starts
        ]  # fmt: skip
        self.spans = [{"name": "evaluate", "t": 20 * S, "t_end": 21 * S}]
        self.blocks: list[dict[str, Any]] = []
        self.energies: dict[int, float] = {20 * S: 100.0}
        for i, name in enumerate(PARTS * 3):
            start = (30 + 6 * i) * S
            self.blocks.append({"name": name, "repetitions": 250, "t": start, "t_end": start + 5 * S})
            self.energies[start] = 250 * JOULES[name] * rng.lognormal(0.0, scatter)
        self.whole = exact(drift * 6.51 * STEPS + 100, "J", source="known")

    @property
    def line(self) -> Timeline:
        return timeline(self.steps, self.spans, [(0, 21 * S)])

    def energy_of(self, windows: Sequence[tuple[int, int]]) -> Quantity:
        joules = sum(self.energies[start] for start, _ in windows)
        return estimate(joules, "J", method="measured", source="known", u_random=0.001 * joules)

    def answer(self) -> Any:
        return block_energy(self.blocks, self.line, self.spans, self.energy_of, self.whole)


def test_the_backward_pass_is_the_difference_and_all_is_per_step() -> None:
    answer = _Machine(0.0).answer()
    assert list(answer.phases) == ["data+forward", "backward", "optimizer", "evaluate"]
    assert answer.phases["data+forward"].value == pytest.approx(2010.0)
    assert answer.phases["backward"].value == pytest.approx(3500.0)
    assert answer.phases["optimizer"].value == pytest.approx(1000.0)
    assert answer.phases["evaluate"].value == pytest.approx(100.0)
    assert answer.power["backward"].value == pytest.approx(3500 / 9.0)
    assert answer.closure.value == pytest.approx(1.0)
    assert "12 blocks" in answer.attribution


def test_scatter_between_blocks_is_in_the_interval() -> None:
    narrow, wide = _Machine(0.0).answer(), _Machine(0.02).answer()
    for name, true in {"data+forward": 2010.0, "backward": 3500.0, "optimizer": 1000.0}.items():
        assert wide.phases[name].low <= true <= wide.phases[name].high
        assert wide.phases[name].high - wide.phases[name].low > 2 * (narrow.phases[name].high - narrow.phases[name].low)


def test_what_does_not_close_is_spread_over_the_phases_and_widens_them() -> None:
    answer = _Machine(0.0, drift=1.1).answer()
    assert sum(q.value for q in answer.phases.values()) == pytest.approx(1.1 * 6510 + 100)
    assert answer.closure.value == pytest.approx((6510 + 100) / (1.1 * 6510 + 100))
    assert answer.phases["backward"].low < 3500


def test_parts_without_blocks_or_readings_are_refused() -> None:
    machine = _Machine(0.0)
    machine.blocks = machine.blocks[:5]
    assert "before each part of the step had two blocks" in machine.answer().attribution
    machine = _Machine(0.0)
    answer = block_energy(
        machine.blocks, machine.line, machine.spans, lambda _: missing("J", source="gone"), machine.whole
    )
    assert not answer.power
    assert "no energy was read in the blocks" in answer.attribution
