"""What is measured, held against sensors and clocks whose answer is known."""

import itertools
import math

import pytest
import torch

from efftrain_kernels.evidence import cases, measure
from efftrain_kernels.evidence.energy import EnergyCounter, find_counter, missing
from efftrain_kernels.evidence.table import number, table


class Board:
    """A board that draws `idle` watts, and `load` watts while a call runs; its counter moves every `tick` seconds."""

    def __init__(self, idle=100.0, load=400.0, tick=0.1, *, poll=1e-4):
        self.idle, self.load, self.tick, self.poll = idle, load, tick, poll
        self.now = 0.0
        self.spent = self.shown = self.ticked = 0.0

    def advance(self, seconds, watts):
        end = self.now + seconds
        while self.ticked + self.tick <= end:
            self.ticked += self.tick
            self.shown = self.spent + (self.ticked - self.now) * watts
        self.spent += seconds * watts
        self.now = end

    def read(self):
        self.advance(self.poll, self.idle)
        return self.shown

    def call(self):
        self.advance(0.003, self.load)

    def rest(self, seconds):
        self.advance(seconds, self.idle)


@pytest.mark.parametrize("tick", [0.02, 0.1, 0.37])
def test_joules_of_a_call_are_those_above_idle(tick):
    board = Board(tick=tick)
    found = EnergyCounter(board.read, lambda: board.now, board.rest).joules(board.call, seconds=0.003)
    # 0.003 s at 400 W, of which 100 W would have been drawn anyway.
    assert found.value == pytest.approx(0.9, rel=0.01)
    assert found.total == pytest.approx(1.2, rel=0.05)
    assert found.idle_watts == pytest.approx(100.0, rel=1e-3)
    assert found.seconds >= 5.0
    assert "counter" in found.method


def test_readings_between_ticks_would_be_wrong():
    """The slowest board of the test above, read at arbitrary moments, is off by more than is allowed there."""

    def naive(start):
        board = Board(tick=0.37)
        board.advance(start, 100.0)
        began, before, calls = board.now, board.read(), 0
        while board.now - began < 5.0:
            board.call()
            calls += 1
        return (board.read() - before - 100.0 * (board.now - began)) / calls

    assert max(abs(naive(start) / 0.9 - 1) for start in (0.05, 0.15, 0.25, 0.35)) > 0.02


def test_a_counter_that_stands_still_is_an_error():
    clock = itertools.count()
    with pytest.raises(RuntimeError, match="did not move"):
        EnergyCounter(lambda: 5.0, lambda: float(next(clock)), lambda _: None).measure_idle()


def test_what_is_not_measured_is_none_and_says_why():
    counter, why = find_counter(torch.device("cpu"))
    assert counter is None
    assert missing(why).value is None
    assert missing(why).method == "missing: the device has no energy counter"


def test_quantiles_are_those_of_the_times():
    found = measure.quantiles([0.1 * n for n in range(11)])
    assert (found.p20_s, found.p50_s, found.p80_s) == pytest.approx((0.2, 0.5, 0.8))
    assert found.calls == 11


def test_latency_counts_its_calls():
    calls = []
    found = measure.latency(lambda: calls.append(1), torch.device("cpu"), budget_s=0.01)
    assert measure.MIN_CALLS <= found.calls <= measure.MAX_CALLS
    assert len(calls) == measure.WARMUP_CALLS + 3 + found.calls
    assert measure.latency(lambda: calls.append(1), torch.device("cpu"), calls=1).calls == 1


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("Tesla V100-PCIE-16GB", "v100-pcie-16gb"),
        ("CPU x86_64, 2 threads", "cpu"),
        ("NVIDIA", "device"),
    ],
)
def test_folders_of_devices(name, folder):
    assert measure.slug(name) == folder


@pytest.mark.parametrize("length", [1, 2, 7, 33])
@pytest.mark.parametrize("band", [(None, None), (None, 0), (3, None), (4, 2), (0, 0), (100, 100)])
def test_visible_pairs_are_those_that_the_reference_sees(length, band):
    left, right = (math.inf if side is None else side for side in band)
    seen = sum(-left <= key - query <= right for query in range(length) for key in range(length))
    assert cases.visible_pairs(length, *band) == seen


def test_flops_of_causal_attention_are_half_of_full_in_the_limit():
    causal, full = cases.gpu_cases(128)[3], cases.gpu_cases(128)[7]
    assert full.flops() == 4 * 128 * 16 * 16384**2
    assert causal.flops() / full.flops() == pytest.approx(0.5, rel=1e-4)
    packed = next(case for case in cases.feature_cases() if case.packed)
    assert sum(packed.packed) == packed.length
    assert packed.flops() < 4 * 128 * 16 * packed.length**2


def test_cases_hold_as_many_tokens_as_they_say():
    for case in (*cases.gpu_cases(64), *cases.gpu_cases(128)):
        assert case.batch * case.length == cases.TOKENS
        assert case.heads * case.head_dim == cases.HIDDEN
    assert {case.length for case in cases.gpu_cases(64)} == {2048, 4096, 8192, 16384}


def test_a_shortened_case_keeps_its_features():
    for case in cases.feature_cases():
        short = case.shortened(512)
        assert short.length <= 512
        assert sum(short.packed) == (short.length if short.packed else 0)
        assert (short.window, short.softcap, short.sinks) == (case.window, case.softcap, case.sinks)


def test_tables_align_and_name_what_is_missing():
    text = table(("name", "ms"), [("a", number(1.5)), ("long", number(None)), ("b", number(12.25, ".4g"))])
    assert text.splitlines() == ["name       ms", "-" * 13, "a         1.5", "long  missing", "b       12.25"]
