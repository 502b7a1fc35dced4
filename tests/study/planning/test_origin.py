"""What a checkpoint had cost: from the record beside it, from itself, from what came before, or missing."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from records import run_record

from efftrain.record.folder import write_text
from efftrain.record.quantities import Quantity, estimate, missing
from efftrain.record.schema import Attempt, Origin, Run, Teacher, dumps
from efftrain.study.planning.origin import origin_of, training_energy
from efftrain.training.checkpoints.folder import CheckpointInfo
from efftrain.training.config import RunConfig
from efftrain.workload.models.presets import PRESETS

CONFIG = RunConfig(model=PRESETS["nano"], steps=600, batch_size=4)
SO_FAR = estimate(120.0, "J", method="modelled", source="live", u_systematic=6.0)


def checkpoint(root: Path, *, step: int = 600, energy: Quantity | None = SO_FAR, **changes: Any) -> CheckpointInfo:
    info = CheckpointInfo(
        folder=root / "checkpoints" / f"step-{step:08d}", step=step, tokens=step * 512, config=CONFIG,
        run_id="baseline-s0", study_id="quick", model=CONFIG.model, energy=energy, facts={},
    )  # fmt: skip
    return dataclasses.replace(info, **changes)


def beside(root: Path, **changes: Any) -> Run:
    run = run_record(joules=200.0).model_copy(update=changes)
    write_text(root / "run.json", dumps(run))
    return run


def test_a_run_that_ended_with_the_checkpoint_is_taken_whole(tmp_path: Path):
    run = beside(tmp_path)
    found = training_energy(checkpoint(tmp_path))
    whole = run.energy.total
    assert (found.value, found.low, found.high, found.method) == (whole.value, whole.low, whole.high, whole.method)
    assert found.lower_bound, "the rest of the node has no meter"
    assert found.source.startswith("record of baseline-s0, 600 steps; ")


def test_of_a_run_that_went_on_it_counts_what_was_used_by_then(tmp_path: Path):
    beside(tmp_path)
    found = training_energy(checkpoint(tmp_path, step=300))
    assert (found.value, found.source) == (120.0, "checkpoint.json: baseline-s0 up to step 300; live")
    absent = training_energy(checkpoint(tmp_path, step=300, energy=None))
    assert absent == missing("J", source="baseline-s0 is recorded up to step 600, not up to step 300")


def test_a_resumed_run_is_known_by_its_last_step(tmp_path: Path):
    whole = run_record().energy.total
    attempts = [
        Attempt(status="killed", first_step=1, last_step=400, energy=whole, time=whole),
        Attempt(status="complete", first_step=301, last_step=600, energy=whole, time=whole),
    ]
    run = beside(tmp_path, steps=700, attempts=attempts)
    assert training_energy(checkpoint(tmp_path)).value == run.energy.total.value


def test_without_a_record_the_checkpoint_speaks_and_else_it_is_missing(tmp_path: Path):
    assert training_energy(checkpoint(tmp_path)).value == 120.0
    found = training_energy(checkpoint(tmp_path, energy=None))
    assert (found.value, found.source) == (None, "no record beside the checkpoint")


@pytest.mark.parametrize("changes", [{"run_id": "bf16-s0"}, {"study_id": "another"}])
def test_the_record_of_another_run_is_not_believed(tmp_path: Path, changes: dict[str, str]):
    beside(tmp_path, **changes)
    assert training_energy(checkpoint(tmp_path)).value == 120.0


def test_a_damaged_record_is_not_believed(tmp_path: Path):
    (tmp_path / "run.json").write_text("{")
    assert training_energy(checkpoint(tmp_path)).value == 120.0


def test_a_teacher_is_said_to_stand_apart(tmp_path: Path):
    beside(tmp_path, teacher=Teacher(run_id="t", training_energy=SO_FAR))
    assert "its teacher's training apart" in training_energy(checkpoint(tmp_path)).source


def test_what_came_before_is_added_with_its_errors(tmp_path: Path):
    first = estimate(1000.0, "J", method="measured", source="NVML", u_systematic=20.0, u_random=3.0)
    origin = Origin(path="p", run_id="first", steps=9, tokens=9, training_energy=first)
    own = estimate(50.0, "J", method="modelled", source="CPU time", u_systematic=5.0, u_random=4.0)
    run = run_record()
    beside(tmp_path, origin=origin, energy=run.energy.model_copy(update={"total": own}))
    found = training_energy(checkpoint(tmp_path))
    assert (found.value, found.method, found.lower_bound) == (1050.0, "modelled", False)
    # One sensor's gain is wrong in both runs: 20 + 5; noise is independent: √(3² + 4²).
    assert found.u_systematic == pytest.approx(25.0)
    assert found.u_random == pytest.approx(5.0)
    assert found.high == pytest.approx(1050.0 + 1.96 * math.hypot(25.0, 5.0))
    assert found.source == "record of baseline-s0, 600 steps; CPU time; and before it: NVML"


def test_without_records_a_chain_is_read_from_the_checkpoint_or_is_a_lower_bound(tmp_path: Path):
    config = dataclasses.replace(CONFIG, start="/models/first/checkpoints/step-00000009")
    kept = {"origin": {"training_energy": dataclasses.asdict(estimate(30.0, "J", method="measured", source="before"))}}
    assert training_energy(checkpoint(tmp_path, config=config, facts=kept)).value == 150.0
    found = training_energy(checkpoint(tmp_path, config=config))
    assert (found.value, found.high, found.lower_bound) == (120.0, None, True)
    assert "what /models/first/checkpoints/step-00000009 had cost is not known" in found.source
    nothing = training_energy(checkpoint(tmp_path, config=config, energy=None))
    assert (nothing.value, nothing.method) == (None, "missing")


def test_the_header_holds_plain_data(tmp_path: Path):
    import json

    info = checkpoint(tmp_path)
    told = json.loads(json.dumps(origin_of(info)))
    assert told | {"training_energy": ...} == {
        "path": str(info.folder), "run_id": "baseline-s0", "steps": 600, "tokens": 600 * 512, "training_energy": ...,
    }  # fmt: skip
    assert Quantity(**told["training_energy"]) == training_energy(info)
