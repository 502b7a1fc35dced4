"""Joules by module and op from phases that were made with known prices."""

from typing import Any

import pytest

from efftrain.meters.parts.energy_model import modelled
from efftrain.meters.parts.phase_energy import PhaseEnergy, refused
from efftrain.record.quantities import Quantity, estimate, exact, missing

FLOP_J, BYTE_J, BASE_W = 2e-12, 6e-11, 60.0
STEPS = [{"step": i, "t": 0, "t_end": 1} for i in range(1, 101)]
NO_IDLE = missing("J", source="not read")


def _cost(phase: str, module: str, op: str, flops: float, moved: float) -> dict[str, Any]:
    return {"kind": "cost", "from_step": 1, "phase": phase, "module": module, "op": op, "calls": 1, "flops": flops,
            "model_flops": flops, "bytes": moved}  # fmt: skip


COSTS = [
    _cost("forward", "attention", "mm", 4e12, 1e10), _cost("forward", "mlp", "mm", 8e12, 2e10),
    _cost("forward", "norm", "mul", 1e10, 3e10), _cost("backward", "attention", "mm", 8e12, 2e10),
    _cost("backward", "mlp", "mm", 16e12, 4e10), _cost("recompute", "mlp", "mm", 8e12, 2e10),
    _cost("optimizer", "", "addcdiv", 1e9, 2e11), _cost("optimizer", "", "view", 0, 0),
]  # fmt: skip
SECONDS = {"data+forward": 6.0, "backward": 15.0, "optimizer": 3.0}
INSIDE = {"data+forward": ("data", "forward"), "backward": ("backward", "recompute"), "optimizer": ("optimizer",)}


def _true(row: dict[str, Any]) -> float:
    return 100 * (FLOP_J * row["flops"] + BYTE_J * row["bytes"])


def _phases(*, u: float = 0.001, **more: float) -> PhaseEnergy:
    joules = {
        name: BASE_W * seconds + sum(_true(row) for row in COSTS if row["phase"] in INSIDE[name])
        for name, seconds in SECONDS.items()
    }
    found = {
        name: estimate(j * more.get(name, 1.0), "J", method="measured", source="known", u_random=u * j)
        for name, j in joules.items()
    }
    return PhaseEnergy(found, {n: exact(1.0, "W", source="w") for n in found}, NO_IDLE, "known", dict(SECONDS))


def _idle() -> Quantity:
    return estimate(BASE_W * 24, "J", method="measured", source="idle", u_random=1.0)


def test_known_prices_are_found_and_each_row_gets_its_share() -> None:
    answer = modelled(_phases(), COSTS, STEPS, _idle())
    assert answer.model is not None
    for price, true in ((answer.model.flop_j, FLOP_J), (answer.model.byte_j, BYTE_J), (answer.model.base_w, BASE_W)):
        assert price.value == pytest.approx(true, rel=1e-3)
        assert price.low <= true <= price.high
    assert answer.model.residual.value == pytest.approx(0.0, abs=1e-6)
    forward = _phases().phases["data+forward"].value
    inside = sum(_true(row) for row in COSTS if row["phase"] == "forward")
    norm = next(row for row in answer.modules if row.name == "norm")
    assert norm.energy.value == pytest.approx(forward * _true(COSTS[2]) / inside, rel=1e-3)
    assert norm.energy.method == "modelled"


def test_rows_close_on_the_phases() -> None:
    phases = _phases(backward=1.2)
    answer = modelled(phases, COSTS, STEPS, _idle())
    whole = sum(q.value for q in phases.phases.values())
    for rows in (answer.modules, answer.ops):
        assert sum(row.energy.value for row in rows) == pytest.approx(whole)
        values = [row.energy.value for row in rows]
        assert values == sorted(values, reverse=True)
    assert {row.name for row in answer.ops} == {"mm", "mul", "addcdiv"}


def test_what_prices_cannot_explain_is_the_residual_and_widens_the_rows() -> None:
    good, bad = (modelled(_phases(**more), COSTS, STEPS, _idle()) for more in ({}, {"backward": 1.5}))
    assert bad.model.residual.value > 0.05
    assert (
        bad.modules[0].energy.high - bad.modules[0].energy.low
        > good.modules[0].energy.high - good.modules[0].energy.low
    )


def test_as_many_prices_as_phases_leave_no_residual() -> None:
    answer = modelled(_phases(), COSTS, STEPS, NO_IDLE)
    assert answer.model.residual.value is None
    assert "nothing is left over" in answer.model.residual.source


def test_costs_of_a_run_that_prunes_count_by_the_steps_they_hold_for() -> None:
    later = [{**row, "from_step": 51, "flops": row["flops"] / 2, "bytes": row["bytes"] / 2} for row in COSTS]
    phases = _phases()
    once, twice = modelled(phases, COSTS, STEPS, NO_IDLE), modelled(phases, [*COSTS, *later], STEPS, NO_IDLE)
    assert twice.model.flop_j.value == pytest.approx(once.model.flop_j.value / 0.75, rel=1e-2)
    assert [r.energy.value for r in twice.modules] == pytest.approx([r.energy.value for r in once.modules], rel=1e-2)


def test_without_phases_or_costs_there_is_no_model_and_a_reason() -> None:
    answer = modelled(refused(["forward"], "too short"), COSTS, STEPS, NO_IDLE)
    assert (answer.modules, answer.ops, answer.model) == ([], [], None)
    assert "fitted to the joules of the phases" in answer.reason
    assert "fewer than two phases" in modelled(_phases(), COSTS[:3], STEPS, NO_IDLE).reason
