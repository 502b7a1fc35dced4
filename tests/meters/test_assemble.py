"""The run of `run_lines` (conftest) has round figures; see there."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efftrain.meters.assemble import assemble
from efftrain.record.journal import read_journal
from efftrain.record.schema import Run, dumps

S = 1_000_000_000


def figures(value, path=""):
    """Every Quantity of a record, as (path, dict)."""
    if isinstance(value, dict):
        if "method" in value:
            yield path, value
        else:
            for name, item in value.items():
                yield from figures(item, f"{path}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from figures(item, f"{path}[{i}]")


def no_missing_figure_is_zero(run):
    found = list(figures(json.loads(dumps(run))))
    assert len(found) > 30
    for path, q in found:
        assert (q["method"] == "missing") == (q["value"] is None), path
        assert q["source"], path


def without(lines, *kinds):
    return [line for line in lines if line["kind"] not in kinds]


def test_a_complete_run(journal, run_lines):
    run = assemble(journal(run_lines))
    assert (run.status, run.steps, run.tokens, run.parameters) == ("complete", 20, 10240, 1000)
    assert run.energy.components["gpu"].value == pytest.approx(2800)
    assert run.energy.components["cpu"].value == pytest.approx(112)
    assert run.energy.components["dram"].value is None
    assert run.energy.total.value == pytest.approx(2912)
    assert run.energy.total.lower_bound  # dram
    assert run.energy.total.method == "assumed"  # cpu
    assert run.energy.per_token.value == pytest.approx(2912 / 10240)
    assert run.energy.idle.value == pytest.approx(30 * 14)
    assert run.energy.above_idle.value == pytest.approx(170 * 14)
    assert {q.value for q in run.energy.phases.values()} == {None}
    assert run.energy.closure.value is None
    assert run.time.total.value == 14
    assert run.flops.model_per_step.value == 3e9
    assert run.flops.mfu.value == pytest.approx(3e9 / 0.5 / 1e12)
    assert run.flops.hfu.value == pytest.approx(4e9 / 0.5 / 1e12)
    assert run.memory.unexplained.value == 100
    assert run.carbon.operational.value == pytest.approx(2912 / 3.6e6 * 480.6, rel=1e-3)
    assert run.carbon.per_exaflop.value == pytest.approx(run.carbon.operational.value / (20 * 3e9 / 1e18))
    said = {check.name: check.status for check in run.checks}
    assert said.pop("steps_steady") == "passed"
    assert said == {"counter_against_power": "skipped", "phase_lock": "warning", "devices_alone": "skipped"}
    assert (run.notes, run.teacher) == ([], None)
    assert run.energy.devices["d"] == run.energy.components["gpu"]
    assert run.environment["corpus"]["name"] == "c"
    no_missing_figure_is_zero(run)
    assert Run.model_validate_json(dumps(run)) == run


def test_losses(journal, run_lines):
    run = assemble(journal(run_lines))
    assert len(run.loss.train) == 20
    # Compilation 2 s, then 5 s of steps and 1 s of evaluation each, at 200 W + 2 · 4 W.
    assert [(v.step, v.tokens, v.time_s) for v in run.loss.validation] == [(10, 5120, 8.0), (20, 10240, 14.0)]
    assert [v.energy_j for v in run.loss.validation] == [pytest.approx(8 * 208), pytest.approx(14 * 208)]
    final = run.loss.final_validation
    assert (final.value, final.u_random, final.unit) == (5.0, 0.01, "nat/token")


@pytest.mark.parametrize("status", ["oom", "diverged", "failed", "interrupted"])
def test_a_run_that_ended_badly_has_a_record_and_says_so(journal, run_lines, status):
    lines = [line for line in run_lines if line.get("t_end", line["t"]) <= 11 * S]
    run = assemble(journal([*lines, {"kind": "end", "t": 12 * S, "status": status}]))
    assert (run.status, run.steps) == (status, 10)
    assert run.loss.final_validation.value == 6.0
    assert status in run.loss.final_validation.source
    no_missing_figure_is_zero(run)


def test_a_run_without_steps_is_missing_throughout(journal, run_lines):
    run = assemble(
        journal([*without(run_lines, "step", "evaluation", "end"), {"kind": "end", "t": 1, "status": "oom"}])
    )
    assert (run.steps, run.tokens) == (0, 0)
    figures = [run.energy.total, run.energy.per_token, run.energy.idle, run.carbon.total, run.time.total,
               run.time.step, run.flops.mfu, run.loss.final_validation]  # fmt: skip
    assert [q.value for q in figures] == [None] * 8
    assert run.flops.model_per_step.value == 3e9
    no_missing_figure_is_zero(run)


def test_an_empty_journal(journal):
    run = assemble(journal([]))
    assert run.status == "killed"
    no_missing_figure_is_zero(run)


def test_a_sensor_that_vanishes_makes_a_lower_bound_from_then_on(journal, run_lines):
    lines = [line for line in run_lines if line.get("sensor") != "gpu0" or line["t"] <= 12 * S]
    note = {"kind": "note", "t": 12 * S, "text": "gpu0 was lost", "sensor": "gpu0", "lost": True}
    run = assemble(journal([*lines, note], absent=[]))
    assert run.notes == ["gpu0 was lost"]
    assert run.energy.components["gpu"].value == pytest.approx(200 * 9.15)  # not missed before 1.5 of its ticks
    assert run.energy.total.lower_bound
    assert run.carbon.operational.lower_bound
    assert run.loss.validation[0].energy_j == pytest.approx(8 * 208)


def test_a_loss_that_is_not_finite_is_null(journal, run_lines):
    lines = [line | {"loss": float("nan")} if line["kind"] in ("step", "evaluation") else line for line in run_lines]
    run = assemble(journal(lines))
    assert set(run.loss.train) == {None}
    assert run.loss.validation[-1].loss is None
    assert run.loss.final_validation.value is None


def test_a_teacher_is_shown_apart(journal, run_lines):
    energy = {"value": 5.0, "unit": "J", "method": "measured", "source": "its record"}
    run = assemble(journal(run_lines, teacher={"run_id": "t", "energy": energy}))
    assert run.teacher is not None
    assert (run.teacher.run_id, run.teacher.training_energy.value) == ("t", 5.0)
    assert run.energy.total.value == pytest.approx(2912)


def test_where_a_run_began_is_shown_apart(journal, run_lines):
    energy = {"value": 5.0, "unit": "J", "method": "measured", "source": "its record"}
    origin = {"path": "/c", "run_id": "r0", "steps": 7, "tokens": 3584, "training_energy": energy}
    run = assemble(journal(run_lines, origin=origin, trainable_parameters=10))
    assert run.origin is not None
    assert (run.origin.run_id, run.origin.steps, run.origin.training_energy.value) == ("r0", 7, 5.0)
    assert (run.trainable_parameters, run.parameters) == (10, 1000)
    assert run.energy.total.value == pytest.approx(2912)
    assert (assemble(journal(run_lines)).origin, assemble(journal(run_lines)).trainable_parameters) == (None, None)


def test_damage_is_among_the_notes(tmp_path, run_bytes):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(run_bytes[:-3])
    run = assemble(read_journal(path))
    assert "cut off" in run.notes[-1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_killed_at_any_byte(tmp_path, run_bytes, share):
    first = run_bytes.index(b"\n") + 1
    path = tmp_path / "journal.jsonl"
    path.write_bytes(run_bytes[: first + int(share * (len(run_bytes) - first))])
    run = assemble(read_journal(path))
    no_missing_figure_is_zero(run)
    assert run.tokens <= 10240
    assert run.tokens == 512 * run.steps
    if run.steps:
        # The true bill at 208 W; all but what lies within one and a half tick intervals of the cut was read.
        assert run.energy.total.value == pytest.approx(208 * run.time.total.value, abs=0.15 * 208 + 1e-6)
        assert run.energy.per_token.value == pytest.approx(run.energy.total.value / run.tokens)


@pytest.mark.parametrize(("batches", "factor"), [(16, 2.131), (3, 4.303), (2, 12.71), (None, 1.96)])
def test_few_batches_tell_their_own_spread_poorly(journal, run_lines, batches, factor):
    # Factors: Student's t, 97.5 %, at 15, 2 and 1 degrees of freedom, as tables have them; the last loss is 5 ± 0.01.
    lines = [line | {"batches": batches} if line["kind"] == "evaluation" else line for line in run_lines]
    final = assemble(journal(lines)).loss.final_validation
    assert (final.value, final.u_random) == (5.0, 0.01)
    assert final.low == pytest.approx(5 - factor * 0.01, rel=1e-4)
    assert final.high == pytest.approx(5 + factor * 0.01, rel=1e-4)
