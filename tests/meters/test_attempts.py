"""A training that was cut twice, on a simulated counter whose joules are known: the bill is all that was used."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftrain.meters.assemble import assemble
from efftrain.meters.attempts import Part, assemble_attempts, combine
from efftrain.record.journal import Journal
from efftrain.record.quantities import COVERAGE_FACTOR, correlated, estimate, missing, total
from efftrain.record.schema import Run, dumps, load
from efftrain.sensors.simulated import Habits, SimulatedCounter, constant

S = 1_000_000_000
STEP = S // 2
TOKENS = 512
Line = dict[str, Any]


class Clock:
    """Moved by hand."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def attempt(
    first: int, last: int, *, watts: float, boot: int, status: str | None = None, gain: float = 1.0
) -> list[Line]:
    """Steps of half a second on a machine that draws `watts`; every fifth is evaluated, for one second.

    Args:
        first: the first step.
        last: the last one.
        watts: all the time.
        boot: what the monotonic clock shows when the process begins, ns: each machine and each boot has its own.
        status: of the end; None: killed.
        gain: of the counter.
    """
    clock = Clock(boot)
    counter = SimulatedCounter(constant(watts), clock=clock, habits=Habits(tick_s=0.1, gain=gain))
    lines: list[Line] = [{"kind": "span", "t": boot, "t_end": boot + 2 * S, "name": "warmup"}]
    now = boot + 2 * S
    for step in range(first, last + 1):
        marks = [["forward", now], ["backward", now + STEP // 4]]
        lines.append({"kind": "step", "t": now, "t_end": now + STEP, "step": step, "tokens": TOKENS, "phases": marks,
                      "loss": 7 - step / 10 + boot / 1e15, "learning_rate": 1e-3, "grad_norm": 1.0})  # fmt: skip
        now += STEP
        if step % 5 == 0:
            lines.append({"kind": "span", "t": now, "t_end": now + S, "name": "evaluate"})
            now += S
            lines.append({"kind": "evaluation", "t": now, "step": step, "tokens": step * TOKENS,
                          "loss": 7 - step / 10, "stderr": 0.01})  # fmt: skip
    if status:
        lines.append({"kind": "end", "t": now, "status": status})
    for tick in range((now - boot) // (S // 10) + 1):
        clock.now = boot + tick * S // 10
        lines.append({"kind": "tick", "t": clock.now, "sensor": "gpu0", "value": counter.read()})
    return sorted(lines, key=lambda line: line.get("t_end", line["t"]))


def joules(first: int, last: int, watts: float) -> float:
    """On the bill of such an attempt: steps, and evaluations."""
    return watts * seconds(first, last)


def seconds(first: int, last: int) -> float:
    return 0.5 * (last - first + 1) + sum(1.0 for step in range(first, last + 1) if step % 5 == 0)


Build = Callable[..., Journal]


@pytest.fixture(scope="session")
def made(journal: Build, info: Callable[..., Line]) -> Build:
    """A journal of one attempt, read by one counter."""

    def build(lines: Sequence[Line], **changed: Any) -> Journal:
        return journal(lines, **{"sensors": [info()], "absent": [], "idle": {}, "config": {"steps": 20}, **changed})

    return build


# Killed in step 13, after the checkpoint of step 10; resumed, interrupted after step 17; resumed to the end.
CUTS = ((1, 12, 200.0, 7 * S, None), (11, 17, 300.0, 900 * S, "interrupted"), (18, 20, 250.0, 3 * S, "complete"))
TRUE_JOULES = sum(joules(first, last, watts) for first, last, watts, _, _ in CUTS)


@pytest.fixture(scope="session")
def cut_run(made: Build) -> Run:
    return assemble_attempts([
        made(attempt(first, last, watts=watts, boot=boot, status=status)) for first, last, watts, boot, status in CUTS
    ])  # fmt: skip


def test_the_bill_is_the_sum_of_known_joules_steps_done_twice_included(cut_run: Run):
    assert TRUE_JOULES == 200 * 8 + 300 * 4.5 + 250 * 2.5
    assert cut_run.energy.total.value == pytest.approx(TRUE_JOULES, rel=1e-9)
    assert cut_run.energy.components["gpu"].value == pytest.approx(TRUE_JOULES, rel=1e-9)
    assert sum(q.value or 0 for q in cut_run.energy.devices.values()) == pytest.approx(TRUE_JOULES, rel=1e-9)
    assert cut_run.energy.total.method == "measured"
    assert not cut_run.energy.total.lower_bound
    assert cut_run.time.total.value == pytest.approx(8 + 4.5 + 2.5)


def test_steps_tokens_and_losses_count_each_step_once_as_it_was_made_last(cut_run: Run):
    assert (cut_run.steps, cut_run.tokens, cut_run.status) == (20, 20 * TOKENS, "complete")
    resumed_at = {step: boot for first, last, _, boot, _ in CUTS for step in range(first, last + 1)}
    assert cut_run.loss.train == [7 - step / 10 + resumed_at[step] / 1e15 for step in range(1, 21)]
    assert cut_run.energy.per_token.value == pytest.approx(TRUE_JOULES / (20 * TOKENS))
    assert cut_run.loss.final_validation.value == 7 - 20 / 10


def test_energy_and_time_of_evaluations_go_on_from_the_very_beginning(cut_run: Run):
    found = {point.step: (point.energy_j, point.time_s) for point in cut_run.loss.validation}
    before = joules(1, 12, 200), seconds(1, 12)
    later = before[0] + joules(11, 17, 300), before[1] + seconds(11, 17)
    truth = {
        5: (joules(1, 5, 200), seconds(1, 5)),
        10: (joules(1, 10, 200), seconds(1, 10)),
        15: (before[0] + joules(11, 15, 300), before[1] + seconds(11, 15)),
        20: (later[0] + joules(18, 20, 250), later[1] + seconds(18, 20)),
    }
    assert found == {step: pytest.approx(value) for step, value in truth.items()}
    energies = [energy for energy, _ in found.values() if energy is not None]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(TRUE_JOULES)


def test_each_attempt_is_listed(cut_run: Run):
    listed = [(a.status, a.first_step, a.last_step) for a in cut_run.attempts]
    assert listed == [("killed", 1, 12), ("interrupted", 11, 17), ("complete", 18, 20)]
    for found, (first, last, watts, _, _) in zip(cut_run.attempts, CUTS, strict=True):
        assert found.energy.value == pytest.approx(joules(first, last, watts))
        assert found.time.value == pytest.approx(seconds(first, last))


def test_a_counter_that_reads_too_much_does_so_each_time(made: Build, cut_run: Run):
    one = assemble(made(attempt(1, 12, watts=200, boot=0, status="complete"))).energy.total
    relative = (one.u_systematic or 0) / (one.value or 1)
    assert relative == pytest.approx(0.0255)  # of the sensor of `info`
    assert cut_run.energy.total.u_systematic == pytest.approx(relative * TRUE_JOULES)
    wrong = assemble_attempts([
        made(attempt(first, last, watts=watts, boot=boot, status=status, gain=1.04))
        for first, last, watts, boot, status in CUTS
    ]).energy.total  # fmt: skip
    assert wrong.low is not None
    assert wrong.low <= TRUE_JOULES <= (wrong.high or 0)


def test_attempts_on_two_machines_err_independently(made: Build):
    def board(uuid: str) -> Line:
        return {"python": "3.11", "devices": [{"uuid": uuid, "name": "D"}]}

    lines = attempt(1, 10, watts=200, boot=0), attempt(11, 20, watts=200, boot=0, status="complete")
    same = assemble_attempts([made(part, environment=board("GPU-1")) for part in lines]).energy.total
    moved = [made(part, environment=board(f"GPU-{i}")) for i, part in enumerate(lines)]
    apart = assemble_attempts(moved).energy.total
    assert apart.value == pytest.approx(same.value)
    assert apart.u_systematic == pytest.approx((same.u_systematic or 0) / math.sqrt(2))


def test_grams_are_those_of_all_joules(cut_run: Run):
    carbon = cut_run.carbon
    assert carbon.operational.value == pytest.approx(TRUE_JOULES / 3.6e6 * (carbon.intensity.value or 0))
    assert carbon.per_token.value == pytest.approx((carbon.total.value or 0) / (20 * TOKENS))


def test_means_are_over_all_steps_that_were_made(cut_run: Run):
    assert cut_run.time.step.value == pytest.approx(0.5)
    assert cut_run.time.tokens_per_second.value == pytest.approx(TOKENS / 0.5)
    assert cut_run.time.spans["evaluate"].value == pytest.approx(4)
    assert cut_run.time.phases["forward"].value == pytest.approx(0.125)


def test_flops_and_memory_are_those_of_the_same_run_in_one_piece(journal: Build, run_lines: list[Line]):
    whole = assemble(journal(run_lines))
    first = [line for line in run_lines if line.get("step", 0) <= 12 and line["kind"] != "end"]
    second = [line for line in run_lines if line.get("step", 99) > 12]
    run = assemble_attempts([journal(first), journal(second)])
    assert (run.steps, run.loss.train) == (20, whole.loss.train)
    assert run.flops.model_per_step == whole.flops.model_per_step
    assert run.flops.phases == whole.flops.phases
    assert run.flops.modules == whole.flops.modules
    assert run.flops.mfu.value == pytest.approx(whole.flops.mfu.value)
    assert run.memory == whole.memory
    assert run.carbon.per_exaflop.value == pytest.approx((run.carbon.total.value or 0) / (20 * 3e9 / 1e18))


def test_an_attempt_that_came_to_no_step_is_listed_and_costs_nothing(made: Build):
    first, again = made(attempt(1, 10, watts=200, boot=0)), made(attempt(11, 10, watts=200, boot=9 * S))
    run = assemble_attempts([first, again])
    assert run.energy.total.value == pytest.approx(joules(1, 10, 200))
    assert not run.energy.total.lower_bound
    assert [(a.first_step, a.last_step) for a in run.attempts] == [(1, 10), (0, 0)]


def divided(run: Run, **joules: float) -> Run:
    """The run with such phases; none where they could not be told apart."""
    known = {name: estimate(j, "J", method="measured", source="s", u_random=j / 10) for name, j in joules.items()}
    phases = known or {"forward": missing("J", source="too short"), "backward": missing("J", source="too short")}
    power = {name: estimate(j / 2, "W", method="measured", source="s") for name, j in joules.items()}
    closure = estimate(0.99, "1", method="measured", source="s") if joules else missing("1", source="too short")
    return run.model_copy(
        update={"energy": run.energy.model_copy(update={"phases": phases, "phase_power": power, "closure": closure})}
    )


def test_joules_of_an_attempt_whose_phases_nobody_knows_stand_apart(made: Build):
    journals = [made(attempt(1, 10, watts=200, boot=0)), made(attempt(11, 20, watts=100, boot=0, status="complete"))]
    whole, short = (assemble(one) for one in journals)
    parts = [
        Part(run, journal.header, journal.of("step"))
        for run, journal in zip((divided(whole, forward=400, backward=986), divided(short)), journals, strict=True)
    ]
    energy = combine(parts, []).energy
    assert {name: q.value for name, q in energy.phases.items()} == {
        "forward": 400, "backward": 986, "unattributed": pytest.approx(joules(11, 20, 100)),
    }  # fmt: skip
    assert energy.phase_power.keys() == energy.phases.keys()
    assert energy.phase_power["unattributed"].value == pytest.approx(100)
    assert energy.phase_power["forward"].value == pytest.approx(200)
    both_joules = joules(1, 10, 200), joules(11, 20, 100)
    assert energy.closure.value == pytest.approx((0.99 * both_joules[0] + both_joules[1]) / sum(both_joules))
    both = combine([parts[0], dataclasses.replace(parts[1], run=divided(short, forward=100, backward=600))], []).energy
    assert {name: q.value for name, q in both.phases.items()} == {"forward": 500, "backward": 1586}
    neither = combine([dataclasses.replace(part, run=divided(part.run)) for part in parts], []).energy
    assert {q.value for q in neither.phases.values()} == {None}


def test_notes_and_checks_say_whose_they_are_and_last_words_stay_last_words(made: Build):
    first = [*attempt(1, 10, watts=200, boot=0), {"kind": "note", "t": 9, "text": "something"}]
    again = [*attempt(11, 12, watts=200, boot=0), {"kind": "end", "t": 1, "status": "failed", "detail": "no disk"}]
    run = assemble_attempts([made(first), made(again)])
    assert run.notes == ["attempt 1: something", "failed: no disk"]
    assert {check.detail.partition(":")[0] for check in run.checks} <= {"attempt 1", "attempt 2"}


def test_one_journal_alone_is_what_it_always_was(journal: Build, run_lines: list[Line]):
    one = journal(run_lines)
    assert assemble_attempts([one]) == assemble(one)
    assert assemble(one).attempts == []


def test_where_old_journals_are_gone_the_bill_holds_what_was_known_of_them(made: Build):
    known = estimate(1234.5, "J", method="modelled", source="a meter", u_random=3.0, u_systematic=40.0)
    before = {"attempts": 2, "step": 10, "tokens": 10 * TOKENS, "energy": asdict(known), "grams": 2.0, "seconds": 77.0}
    run = assemble_attempts([made(attempt(11, 20, watts=300, boot=0, status="complete"), before=before)])
    assert run.energy.total.value == pytest.approx(1234.5 + joules(11, 20, 300))
    assert run.energy.total.method == "modelled"
    assert "their journals are gone" in run.energy.components["earlier_attempts"].source
    assert (run.steps, run.tokens) == (20, 20 * TOKENS)
    assert run.loss.train[:10] == [None] * 10
    assert run.time.total.value == pytest.approx(77 + seconds(11, 20))
    assert run.loss.validation[0].energy_j == pytest.approx(1234.5 + joules(11, 15, 300))
    assert len(run.attempts) == 2


def test_where_a_journal_in_the_middle_is_gone_the_bill_is_whole_and_known_losses_stay(made: Build, cut_run: Run):
    def as_known(journals: list[Journal]) -> Line:
        run = assemble_attempts(journals)
        known = {"attempts": max(len(run.attempts), 1), "step": run.steps, "tokens": run.tokens, "grams": None}
        return {**known, "energy": asdict(run.energy.total), "seconds": run.time.total.value}

    journals: list[Journal] = []
    for first, last, watts, boot, status in CUTS:
        before = as_known(journals) if journals else None
        journals.append(made(attempt(first, last, watts=watts, boot=boot, status=status), before=before))
    assert assemble_attempts(journals) == cut_run, "where all are there, nobody is believed"
    run = assemble_attempts([journals[0], journals[2]])
    assert run.energy.total.value == pytest.approx(TRUE_JOULES, rel=1e-9)
    assert run.time.total.value == pytest.approx(cut_run.time.total.value)
    assert (run.steps, run.tokens) == (20, 20 * TOKENS)
    begun, ended = ([step["loss"] for step in journals[index].of("step")] for index in (0, 2))
    assert run.loss.train == [*begun, *[None] * 5, *ended]
    energies = {point.step: point.energy_j for point in cut_run.loss.validation if point.step != 15}
    assert {point.step: point.energy_j for point in run.loss.validation} == pytest.approx(energies)
    assert [(a.first_step, a.last_step) for a in run.attempts] == [(1, 17), (18, 20)]


def test_where_nothing_was_known_of_them_the_bill_is_a_lower_bound(made: Build):
    before = {"attempts": 1, "step": 10, "tokens": 10 * TOKENS, "energy": None, "grams": None, "seconds": None}
    run = assemble_attempts([made(attempt(11, 20, watts=300, boot=0, status="complete"), before=before)])
    assert run.energy.total.value == pytest.approx(joules(11, 20, 300))
    assert run.energy.total.lower_bound
    assert run.loss.validation[-1].energy_j is None


def test_the_record_of_a_cut_run_is_a_record(cut_run: Run, tmp_path):
    (tmp_path / "run.json").write_text(dumps(cut_run))
    assert load(tmp_path / "run.json", Run) == cut_run


@given(st.integers(1, 12), st.floats(0.1, 1e6), st.floats(0, 1e3), st.floats(0, 1e3))
def test_n_equal_parts_scale_their_common_error_by_n_and_the_random_one_by_its_root(n, value, random, common):
    part = estimate(value, "J", method="measured", source="s", u_random=random, u_systematic=common)
    whole = correlated([part] * n, boundary="b")
    assert whole.value == pytest.approx(n * value)
    assert whole.u_random == pytest.approx(math.sqrt(n) * random)
    assert whole.u_systematic == pytest.approx(n * common)
    half = COVERAGE_FACTOR * math.hypot(math.sqrt(n) * random, n * common)
    assert (whole.high or 0) - (whole.value or 0) == pytest.approx(half, rel=1e-6, abs=1e-6 * value)


@given(st.floats(1, 100), st.floats(0.1, 0.9), st.floats(1.1, 4))
def test_asymmetric_limits_keep_their_shape(value, low, high):
    parts = [
        estimate(v, "J", method="assumed", source="s", limits=(v * low, v * high))
        for v in (value, 2 * value, 0.5 * value)
    ]
    whole = correlated(parts, boundary="b")
    assert whole.low == pytest.approx(3.5 * value * low)
    assert whole.high == pytest.approx(3.5 * value * high)


def test_a_common_error_is_never_less_than_an_independent_one_and_a_missing_part_bounds_the_sum():
    parts = [
        estimate(10.0 * k, "J", method="measured", source="s", u_random=1.0, u_systematic=0.5 * k) for k in (1, 2, 3)
    ]
    for a, b in itertools.combinations(parts, 2):
        together, apart = correlated([a, b], boundary="b"), total([a, b], boundary="b")
        assert (together.low or 0) <= (apart.low or 0)
        assert (together.high or 0) >= (apart.high or 0)
    bounded = correlated([*parts, missing("J", source="gone")], boundary="b")
    assert (bounded.value, bounded.lower_bound, bounded.high) == (60.0, True, None)
