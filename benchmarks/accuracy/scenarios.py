"""The worlds that all tools are shown, and the windows that they measure in them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pynvml

from nvml_driver import Curve, Device, Rule, World, bursts, constant, ramp, square

FULL = {0.5: 50, 1.0: 50, 2.0: 20, 5.0: 8, 10.0: 4, 30.0: 2, 60.0: 1}
"""How many windows of about each length in s."""
QUICK = {0.5: 10, 1.0: 8, 2.0: 5, 5.0: 2, 10.0: 1}

TICK_S = 0.1
LAG_S = 0.5
"""Windows begin that long after a world has its faults."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Boards, and what happens to them.

    Attributes:
        name: a row's title.
        devices: the boards.
        fault: what befalls board 0 once in every window.
        limit: why no reader of these boards could know better; such a row is shown, and is no part of the targets.
    """

    name: str
    devices: tuple[Device, ...]
    fault: Literal["", "reset", "drop-out"] = ""
    limit: str = ""


def _eight() -> tuple[Device, ...]:
    """Boards whose power, ticks and gains differ; gains within ±5 %, as between real boards."""
    chance = random.Random(8)
    return tuple(
        Device(
            square(0.31 + 0.05 * i, 90, 380 + 30 * i, duty=0.6, phase_s=chance.random()),
            tick_phase_s=TICK_S * chance.random(), gain=1 + chance.uniform(-0.05, 0.05),
        )
        for i in range(8)
    )  # fmt: skip


def _part_time(curve: Curve) -> tuple[Device, ...]:
    """As on an A100, where power readings look at 25 of 100 ms (SC '24); whether counters do, nobody has shown."""
    return (Device(curve, counter_window_s=0.025, average_window_s=0.025, tick_phase_s=0.03),)


_BURSTS = bursts(80, 650, [(0.4, 0.43), (1.1, 1.4), (2.0, 2.9), (3.5, 3.61), (5.2, 6.0), (7.7, 7.75)], 9.0)
_UNEVEN = Device(square(0.37, 100, 500), tick_phase_s=0.02, lag_s=0.02, jitter_s=0.01)

SCENARIOS = (
    Scenario("constant", (Device(constant(300), tick_phase_s=0.03),)),
    Scenario("constant, gain 1.04", (Device(constant(300), tick_phase_s=0.06, gain=1.04),)),
    Scenario("square, 2 ticks", (Device(square(0.2, 100, 500), tick_phase_s=0.03),)),
    Scenario("square, 3.7 ticks", (Device(square(0.37, 100, 500), tick_phase_s=0.05),)),
    Scenario("square, 21.3 ticks", (Device(square(2.13, 80, 600, duty=0.7), tick_phase_s=0.01),)),
    Scenario("ramp", (Device(ramp(80, 600, 20, repeat=True), tick_phase_s=0.04),)),
    Scenario("bursts", (Device(_BURSTS, tick_phase_s=0.07),)),
    Scenario("late, uneven ticks", (_UNEVEN,)),
    Scenario("8 GPUs, gains ±5 %", _eight()),
    Scenario("reset in each window", (Device(square(0.37, 100, 500), tick_phase_s=0.05),), "reset"),
    Scenario("drop-out in each window", (Device(square(0.37, 100, 500), tick_phase_s=0.05),), "drop-out"),
    Scenario("part-time, 3.7 ticks", _part_time(square(0.37, 100, 500))),
    Scenario(
        "part-time, phase lock", _part_time(square(0.1, 100, 500)),
        limit="the counter looks at the same 25 ms of every 100 ms, in which the board always draws its higher power",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a scenario's time in s, and the row of the table that it belongs to: its length, about."""

    row_s: float
    start_s: float
    end_s: float


def plan(counts: Mapping[float, int], seed: int) -> list[Window]:
    """Windows in random order, with random gaps and lengths within 10 % of their row's.

    So no clock is in step with them: a window of a whole number of ticks would hold a whole number of them however
    badly it is cut.
    """
    chance = random.Random(seed)
    rows = [row_s for row_s, n in counts.items() for _ in range(n)]
    chance.shuffle(rows)
    windows, now = [], 0.0
    for row_s in rows:
        start = now + chance.uniform(0.15, 0.45)
        now = start + row_s * chance.uniform(0.9, 1.1)
        windows.append(Window(row_s, start, now))
    return windows


def befall(world: World, scenario: Scenario, windows: Sequence[Window], begin_s: float, seed: int) -> None:
    """Put a scenario's faults into a running world, one in each window; `begin_s`: where its 0 s is in the world."""
    chance = random.Random(seed)
    for window in windows:
        moment = begin_s + chance.uniform(window.start_s, window.end_s)
        if scenario.fault == "reset":
            world.reset_counter(0, moment)
        elif scenario.fault == "drop-out":
            until = moment + chance.uniform(0.2, 1.5)
            world.fail(Rule("*", pynvml.NVML_ERROR_GPU_IS_LOST, 0, start_s=moment, end_s=until))
