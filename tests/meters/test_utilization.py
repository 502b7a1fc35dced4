import pytest

from efftrain.meters.utilization import flops_section

S = 1_000_000_000


def cost(from_step, phase, module, op, flops, *, model=None):
    return {
        "kind": "cost", "t": 0, "from_step": from_step, "phase": phase, "module": module, "op": op, "calls": 2,
        "flops": flops, "model_flops": flops if model is None else model, "bytes": 3,
    }  # fmt: skip


def steps_of(*durations):
    starts = [sum(durations[:i]) for i in range(len(durations))]
    return [
        {"kind": "step", "t": round(t * S), "t_end": round((t + d) * S), "step": i + 1, "tokens": 1, "phases": []}
        for i, (t, d) in enumerate(zip(starts, durations, strict=True))
    ]


ONE = [
    cost(1, "forward", "a", "mm", 100),
    cost(1, "recompute", "a", "mm", 60, model=0),
    cost(1, "backward", "b", "bmm", 200),
]
END = {"kind": "end", "t": 0, "status": "complete"}
PEAK = {"device": "D", "dtype": "float32", "flops_per_s": 1000.0, "method": "measured", "source": "calibrated"}


def test_one_stage_counts_exactly(journal):
    flops = flops_section(journal([*ONE, *steps_of(1, 1)], peak=PEAK))
    assert flops.model_per_step.value == flops.model_per_step.low == flops.model_per_step.high == 300
    assert flops.hardware_per_step.value == 360
    assert list(flops.phases) == ["forward", "recompute", "backward"]
    assert flops.phases["recompute"].model.value == 0
    assert flops.phases["recompute"].hardware.value == 60
    assert [(r.name, r.calls, r.hardware_flops, r.model_flops, r.bytes) for r in flops.modules] == [
        ("b", 2, 200, 200, 3), ("a", 4, 160, 100, 6),
    ]  # fmt: skip
    assert [(r.name, r.hardware_flops) for r in flops.ops] == [("bmm", 200), ("mm", 160)]
    assert "2204.02311" in flops.convention


def test_utilization(journal):
    flops = flops_section(journal([*ONE, *steps_of(1, 1, 1.2)], peak=PEAK))
    assert flops.mfu.value == pytest.approx(3 * 300 / 3.2 / 1000)
    assert flops.hfu.value == pytest.approx(3 * 360 / 3.2 / 1000)
    # Relative standard error of the mean of 1, 1, 1.2.
    assert flops.mfu.u_random / flops.mfu.value == pytest.approx(0.11547 / 3**0.5 / (3.2 / 3), rel=1e-4)
    assert flops.mfu.method == "measured"


def test_a_pruned_run_is_weighted_by_its_steps(journal):
    lines = [*ONE, cost(4, "forward", "a", "mm", 40), *steps_of(1, 1, 1, 1)]
    flops = flops_section(journal(lines, peak=PEAK))
    assert flops.model_per_step.value == pytest.approx((3 * 300 + 40) / 4)
    assert flops.mfu.value == pytest.approx((3 * 300 + 40) / 4 / 1000)
    assert {r.name: r.model_flops for r in flops.modules} == {"a": 85, "b": 150}


def test_a_stage_that_no_step_reached_does_not_count(journal):
    lines = [*ONE, *steps_of(1, 1), cost(3, "forward", "a", "mm", 40)]
    assert flops_section(journal(lines)).model_per_step.value == 300


def test_an_unknown_peak_gives_no_utilization(journal):
    peak = {"device": "X", "dtype": "float32", "flops_per_s": None, "method": "missing", "source": "X is not listed"}
    flops = flops_section(journal([*ONE, *steps_of(1, 1)], peak=peak))
    assert (flops.mfu.value, flops.hfu.value, flops.peak_rate.value) == (None, None, None)
    assert flops.mfu.source == "X is not listed"
    assert flops.model_per_step.value == 300


def test_an_assumed_peak_makes_an_assumed_utilization(journal):
    flops = flops_section(journal([*ONE, *steps_of(1, 1)], peak=PEAK | {"method": "assumed"}))
    assert flops.mfu.method == "assumed"


def test_without_costs_all_is_missing(journal):
    flops = flops_section(journal(steps_of(1, 1)))
    assert [q.value for q in (flops.model_per_step, flops.hardware_per_step, flops.mfu)] == [None] * 3
    assert (flops.phases, flops.modules, flops.ops) == ({}, [], [])


def test_a_run_that_ended_before_its_first_step_still_knows_its_cost(journal):
    assert flops_section(journal([*ONE, END])).model_per_step.value == 300
    # A journal that was cut off may hold a part of the rows.
    assert flops_section(journal(ONE)).model_per_step.value is None


def test_steps_before_the_first_counted_model_have_no_utilization(journal):
    lines = [cost(3, "forward", "a", "mm", 40), *steps_of(1, 1, 1, 1)]
    flops = flops_section(journal(lines, peak=PEAK))
    assert flops.mfu.value is None
    assert flops.mfu.source == "no FLOPs were counted for some of the steps"
    assert flops.model_per_step.value == 40  # of the steps for which it is known


@pytest.mark.parametrize(("rate", "known"), [(361.0, True), (359.0, False), (200.0, False)])
def test_more_than_the_peak_is_no_utilization(journal, rate, known):
    # Two steps of 1 s with 300 FLOP of the model and 360 of the hardware.
    flops = flops_section(journal([*ONE, *steps_of(1, 1)], peak=PEAK | {"flops_per_s": rate}))
    assert flops.mfu.value == (pytest.approx(300 / rate) if known else None)
    assert flops.hfu.value == (pytest.approx(360 / rate) if known else None)
    if not known:
        assert f"{360 / rate:.1%} of the peak rate, which cannot be: calibrated" in flops.mfu.source


def test_a_peak_of_a_busy_machine_is_a_lower_bound(journal):
    lines = [*ONE, *steps_of(1, 1)]
    assert flops_section(journal(lines, peak=PEAK | {"lower_bound": True})).peak_rate.lower_bound
    assert not flops_section(journal(lines, peak=PEAK)).peak_rate.lower_bound
