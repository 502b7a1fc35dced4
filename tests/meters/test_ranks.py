"""The journals of several ranks as one run: tokens, work and joules against sums by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efftrain.meters.assemble import assemble
from efftrain.meters.ranks import of_all_ranks, with_ranks
from efftrain.record.journal import SCHEMA, Journal, JournalWriter

S = 1_000_000_000
Build = Callable[..., Journal]


def write(path: Path, lines: list[dict[str, Any]], **header: Any) -> Path:
    writer = JournalWriter(path, clock=lambda: 0)
    for line in ({**header, "kind": "header", "t": 0, "schema": SCHEMA}, *lines):
        writer.write(**line)
    writer.close()
    return path


def steps(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] in ("step", "end")]


def later(lines: list[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    """The same on a machine whose clock is `by` ns ahead."""
    return [{**line, **{key: line[key] + by for key in ("t", "t_end") if key in line}} for line in lines]


def test_two_ranks_of_a_machine_double_tokens_and_work_and_leave_joules(
    journal: Build, run_lines: list[dict[str, Any]], tmp_path: Path
):
    one = assemble(journal(run_lines))
    other = write(tmp_path / "rank-1.jsonl", steps(run_lines), sensors=[])
    two = assemble(with_ranks(journal(run_lines, ranks=2, hosts=1), [other]))
    assert (two.ranks, two.tokens, two.steps) == (2, 2 * one.tokens, one.steps)
    assert two.loss.validation[-1].tokens == 20 * 1024
    assert two.energy.total.value == one.energy.total.value
    assert two.energy.per_token.value == pytest.approx((one.energy.per_token.value or 0) / 2)
    assert two.flops.model_per_step.value == 2 * 3e9
    assert two.flops.hardware_per_step.value == 2 * 4e9
    # 6 GFLOP in steps of 0.5 s on what reaches 1 TFLOP/s
    assert two.flops.mfu.value == pytest.approx(0.012)


def test_evaluations_after_a_resume_count_the_tokens_of_all_attempts(
    journal: Build, run_lines: list[dict[str, Any]], tmp_path: Path
):
    """The second attempt begins after step 8 of 20; each of two ranks trains 512 tokens a step."""
    resumed = [line for line in run_lines if line["kind"] != "step" or line["step"] > 8]
    other = write(tmp_path / "rank-1.jsonl", steps(resumed), sensors=[])
    whole = with_ranks(journal(resumed, ranks=2, hosts=1), [other])
    assert [line["tokens"] for line in whole.of("evaluation")] == [2 * 10 * 512, 2 * 20 * 512]


def test_joules_of_a_second_machine_with_another_clock_are_added(
    journal: Build, run_lines: list[dict[str, Any]], header: Callable[..., Any], tmp_path: Path
):
    """Both machines draw 200 W for 14 s, and twice 14 CPU seconds at 4 W."""
    ahead = 7000 * S
    there = header(
        clock={"monotonic_ns": ahead, "unix_s": 1000.0}, node=1, environment={"devices": [{"name": "B"}]},
        idle={"gpu0": {"watts": 20.0, "u_watts": 0.5}},
    )  # fmt: skip
    other = write(tmp_path / "rank-1.jsonl", later(run_lines, ahead), **there)
    here = journal(run_lines, ranks=2, hosts=2, clock={"monotonic_ns": 0, "unix_s": 1000.0})
    run = assemble(with_ranks(here, [other]))
    assert run.energy.components["gpu"].value == pytest.approx(2 * 2800, rel=1e-3)
    assert run.energy.components["cpu"].value == pytest.approx(2 * 112, rel=1e-3)
    assert run.energy.idle.value == pytest.approx((30 + 20) * 14)
    assert run.environment["hosts"] == 2
    assert run.environment["devices"] == [{"name": "B"}]
    assert run.tokens == 2 * 20 * 512


def test_a_machine_without_readings_makes_joules_a_lower_bound(journal: Build, run_lines: list[dict[str, Any]]):
    run = assemble(with_ranks(journal(run_lines, ranks=2, hosts=2, absent=[]), []))
    assert run.energy.total.lower_bound
    assert run.energy.components["cpu"].lower_bound
    assert any("1 of 2 ranks wrote no journal" in note for note in run.notes)


def test_a_line_of_one_rank_as_that_of_all():
    assert of_all_ranks({"kind": "step", "tokens": 7}, 3)["tokens"] == 21
    cost = {"kind": "cost", "phase": "forward", "calls": 1, "flops": 2, "model_flops": 3, "bytes": 4}
    assert of_all_ranks(cost, 2) == {**cost, "calls": 2, "flops": 4, "model_flops": 6, "bytes": 8}
    for line in ({"kind": "cost", "predicted_memory": {}}, {"kind": "tick", "value": 1.0}):
        assert of_all_ranks(line, 5) == line
