"""Trainings with known watts by phase, and what a counter with a lag and an averaging window would have shown of them.

Power is constant within each phase of each step, so its integral is a line between known points and every reading is
exact. Nothing here is shared with the code under test.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Line = dict[str, Any]

S = 1_000_000_000
PHASES = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is simulated; times in s, shares of one.

    Attributes:
        step_s: mean step.
        seconds: length of the training.
        shares: of the step, by phase.
        watts: by phase.
        jitter: relative standard deviation of a step's length; each phase has half of it besides.
        noise: relative standard deviation of a phase's power from one step to the next.
        wander: relative amplitude of a slow drift of the power.
        lag_s: how late the counter is.
        window_s: how much of each tick it averages.
        inertia_s: time constant with which it follows the power.
        tick_s: its period.
        poll_s: how often it is read.
        evaluate_every: steps between evaluations of 0.4 s; 0: none.
        pause_s: between two steps.
    """

    step_s: float = 0.3
    seconds: float = 60.0
    shares: tuple[float, ...] = (0.02, 0.32, 0.48, 0.18)
    watts: tuple[float, ...] = (90.0, 300.0, 350.0, 200.0)
    jitter: float = 0.02
    noise: float = 0.01
    wander: float = 0.01
    lag_s: float = 0.02
    window_s: float = 0.1
    inertia_s: float = 0.0
    tick_s: float = 0.1
    poll_s: float = 0.02
    evaluate_every: int = 0
    pause_s: float = 0.0003
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A training: its journal's lines, its counter's tick lines as (t, J, since), and the truth by part."""

    steps: list[Line]
    spans: list[Line]
    windows: list[tuple[int, int]]
    raw: list[tuple[int, float, int | None]]
    joules: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)


def simulate(setup: Setup) -> Simulated:
    """One training, every random number from its seed."""
    rng = np.random.default_rng(setup.seed)
    names, lengths, watts, steps, spans = _stretches(setup, rng)
    bounds = np.concatenate([[0.0], np.cumsum(lengths)])
    energy = np.concatenate([[0.0], np.cumsum(lengths * watts)])

    def joules(t: Floats) -> Floats:
        return np.interp(t, bounds, energy)

    billed = [n != "before" for n in names]
    sums = {n: float((lengths * watts)[[m == n for m in names]].sum()) for n in dict.fromkeys(names) if n != "before"}
    times = {n: float(lengths[[m == n for m in names]].sum()) for n in sums}
    ns = np.round(bounds * S).astype(np.int64) + S
    first, last = billed.index(True), len(billed) - billed[::-1].index(True)
    for line, marks, (i, j) in steps:
        line.update(t=int(ns[i]), t_end=int(ns[j]), phases=[[n, int(ns[k])] for n, k in marks])
    for line, (i, j) in spans:
        line.update(t=int(ns[i]), t_end=int(ns[j]))
    return Simulated(
        steps=[line for line, _, _ in steps], spans=[line for line, _ in spans],
        windows=[(int(ns[first]), int(ns[last]))], raw=_polled(setup, rng, joules, bounds[-1]), joules=sums,
        seconds=times,
    )  # fmt: skip


def _stretches(setup: Setup, rng: np.random.Generator) -> Any:
    """Every stretch of constant power in order, with the steps and spans that they make up."""
    names: list[str] = ["before"]
    lengths, watts = [2.0], [80.0]
    steps: list[Any] = []
    spans: list[Any] = []
    while sum(lengths) < setup.seconds + 2:
        step = len(steps) + 1
        begin = len(names)
        stretch = rng.lognormal(0.0, setup.jitter)
        drift = 1 + setup.wander * np.sin(2 * np.pi * sum(lengths) / 23.0)
        marks = []
        for name, share, power in zip(PHASES, setup.shares, setup.watts, strict=True):
            marks.append((name, len(names)))
            names.append(name)
            lengths.append(setup.step_s * share * stretch * rng.lognormal(0.0, setup.jitter / 2))
            watts.append(power * drift * rng.lognormal(0.0, setup.noise))
        steps.append(({"kind": "step", "step": step, "tokens": 1}, marks, (begin, len(names))))
        if setup.evaluate_every and step % setup.evaluate_every == 0:
            spans.append(({"kind": "span", "name": "evaluate"}, (len(names), len(names) + 1)))
            names.append("evaluate")
            lengths.append(0.4 * rng.lognormal(0.0, 0.02))
            watts.append(250.0 * rng.lognormal(0.0, setup.noise))
        elif setup.pause_s:
            names.append("other")
            lengths.append(setup.pause_s * rng.lognormal(0.0, 0.5))
            watts.append(100.0)
    names.append("before")
    lengths.append(1.0)
    watts.append(80.0)
    return names, np.array(lengths), np.array(watts), steps, spans


def _polled(setup: Setup, rng: np.random.Generator, joules: Any, end: float) -> list[tuple[int, float, int | None]]:
    """What polling the counter showed, written on change with the time of the reading before."""
    ticks = np.arange(rng.uniform(0.2, 0.3), end - 0.01, setup.tick_s)
    until = ticks - setup.lag_s
    # A first-order low pass is a mean over exponentially distributed delays; 40 quantiles stand for them.
    delays = -np.log(1 - (np.arange(40) + 0.5) / 40) * setup.inertia_s if setup.inertia_s else [0.0]
    seen = np.mean([joules(until - d) - joules(until - d - setup.window_s) for d in delays], axis=0)
    shown = np.cumsum(seen * setup.tick_s / setup.window_s) + 1000.0
    shown = np.round(shown, 3)
    polls = np.arange(rng.uniform(0.0, 0.05), end, setup.poll_s)
    polls = np.sort(polls + rng.exponential(0.0005, len(polls)))
    at = np.searchsorted(ticks, polls, side="right") - 1
    raw: list[tuple[int, float, int | None]] = []
    before: tuple[int, int] | None = None
    for poll, k in zip(np.round(polls * S).astype(np.int64) + S, at, strict=True):
        if k >= 0 and (before is None or k != before[1]):
            raw.append((int(poll), float(shown[k]), None if before is None else before[0]))
        before = (int(poll), int(k)) if k >= 0 else None
    return raw
