"""Known watts of phases lie within their intervals as often as the intervals say, and designs that cannot tell refuse.

The median widths are printed: `pytest -s -m slow tests/meters/parts/test_phase_energy_coverage.py`.
"""

import importlib.util
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from efftrain.meters.energy.ticks import track
from efftrain.meters.parts.phase_energy import Metered, PhaseEnergy, phase_energy
from efftrain.record.quantities import exact

BAND = 0.91
"""A true 95 % interval covers at least this share of 200 trials in all but 1 % of the time (binomial)."""

SMALL_BAND = 20 / 24
"""The same for 24 trials."""

MEDIAN_HALF_WIDTH = 0.008
"""Measured: 0.5 % of a phase's joules."""


def _simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_training", Path(__file__).parent / "simulated_training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return _simulation()


def _setup(simulation: ModuleType, seed: int, **changed: Any) -> Any:
    """A training drawn at random: everything that the figures must hold for."""
    rng = np.random.default_rng(1000 + seed)
    shares = np.array(
        [rng.uniform(0.005, 0.05), rng.uniform(0.2, 0.35), rng.uniform(0.35, 0.55), rng.uniform(0.1, 0.2)]
    )
    drawn = {
        "step_s": rng.uniform(0.13, 0.7), "seconds": rng.uniform(60, 120), "shares": tuple(shares / shares.sum()),
        "watts": tuple(rng.uniform(80, 400, 4)), "jitter": rng.uniform(0.01, 0.05), "noise": rng.uniform(0.002, 0.03),
        "wander": rng.uniform(0, 0.02), "lag_s": rng.uniform(0, 0.05), "window_s": float(rng.choice([0.025, 0.1])),
        "poll_s": rng.uniform(0.02, 0.05), "evaluate_every": int(rng.choice([0, 40])), "seed": seed,
    }  # fmt: skip
    return simulation.Setup(**{**drawn, **changed})


def _measure(info: Any, training: Any) -> PhaseEnergy:
    whole = exact(sum(training.joules.values()), "J", source="simulated")
    meters = [Metered(info, track(info, training.raw), whole.value or 0.0)]
    return phase_energy(meters, training.steps, training.spans, training.windows, whole)


def _cover(simulation: ModuleType, info: Any, seeds: range, **changed: Any) -> tuple[float, float]:
    """Share of phases whose true joules lie in their interval, and the median half-width; printed by phase."""
    covered: defaultdict[str, list[bool]] = defaultdict(list)
    widths: defaultdict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        training = simulation.simulate(_setup(simulation, seed, **changed))
        answer = _measure(info, training)
        assert answer.power, f"seed {seed}: {answer.attribution}"
        assert answer.closure.low <= 1 <= answer.closure.high
        for name in answer.phases.keys() - {"evaluate", "other"}:
            quantity, true = answer.phases[name], sum(training.joules[part] for part in name.split("+"))
            covered[name].append(quantity.low <= true <= quantity.high)
            widths[name].append((quantity.high - quantity.low) / 2 / true)
    for name, hits in covered.items():
        print(
            f"{name}: {len(hits)} times, covered {np.mean(hits):.3f}, median half-width {np.median(widths[name]):.4f}"
        )
    hits, spread = np.concatenate(list(covered.values())), np.concatenate(list(widths.values()))
    print(f"all: covered {np.mean(hits):.3f} of {len(hits)}, median half-width {np.median(spread):.4f}")
    return float(np.mean(hits)), float(np.median(spread))


def test_known_watts_lie_within_their_intervals(simulation: ModuleType, info: Any) -> None:
    covered, half_width = _cover(simulation, info(u_relative=0.0, tick_s=0.1), range(500, 516))
    assert covered >= BAND
    assert half_width <= MEDIAN_HALF_WIDTH


def test_a_counter_that_follows_the_power_slowly_is_found_out(simulation: ModuleType, info: Any) -> None:
    changed = {"inertia_s": 0.01, "step_s": 0.37}
    covered, half_width = _cover(simulation, info(u_relative=0.0, tick_s=0.1), range(600, 608), **changed)
    assert covered >= SMALL_BAND
    assert half_width <= MEDIAN_HALF_WIDTH


def test_a_counter_of_20_ms_is_late_by_more_than_its_tick(simulation: ModuleType, info: Any) -> None:
    changed = {"tick_s": 0.02, "window_s": 0.01, "poll_s": 0.007, "lag_s": 0.045, "seconds": 40.0}
    covered, _ = _cover(simulation, info(u_relative=0.0, tick_s=0.02), range(700, 704), **changed)
    assert covered >= SMALL_BAND


@pytest.mark.slow
def test_known_watts_lie_within_their_intervals_in_200_trainings(simulation: ModuleType, info: Any) -> None:
    covered, half_width = _cover(simulation, info(u_relative=0.0, tick_s=0.1), range(200))
    assert covered >= BAND
    assert half_width <= MEDIAN_HALF_WIDTH


@pytest.mark.parametrize(
    ("step_s", "jitter"), [(0.2, 0.001), (0.1, 0.002), (0.3, 0.0), (0.4, 0.001), (0.15, 0.001), (0.25, 0.0)]
)
@pytest.mark.parametrize("window_s", [0.025, 0.1])
def test_a_step_commensurate_with_the_tick_is_refused(
    simulation: ModuleType, info: Any, step_s: float, jitter: float, window_s: float
) -> None:
    setup = _setup(simulation, 7, step_s=step_s, jitter=jitter, window_s=window_s, evaluate_every=0, pause_s=0.0)
    answer = _measure(info(tick_s=0.1), simulation.simulate(setup))
    assert not answer.power
    assert not any(q.present for q in (*answer.phases.values(), answer.closure))
    assert f"a step takes {1e3 * step_s:.3g} ms" in answer.attribution
    assert "--phase-energy blocks" in answer.attribution


def test_a_step_near_a_multiple_of_the_tick_that_jitters_enough_is_answered(simulation: ModuleType, info: Any) -> None:
    training = simulation.simulate(_setup(simulation, 7, step_s=0.2, jitter=0.04))
    answer = _measure(info(tick_s=0.1), training)
    for name in ("backward", "optimizer"):
        assert answer.phases[name].low <= training.joules[name] <= answer.phases[name].high


def test_steps_shorter_than_the_tick_are_refused(simulation: ModuleType, info: Any) -> None:
    answer = _measure(info(tick_s=0.1), simulation.simulate(_setup(simulation, 3, step_s=0.04, seconds=20.0)))
    assert not answer.power
    assert "less than the 100 ms between two updates" in answer.attribution


def test_a_short_run_is_refused(simulation: ModuleType, info: Any) -> None:
    answer = _measure(info(tick_s=0.1), simulation.simulate(_setup(simulation, 3, seconds=4.0)))
    assert not answer.power
    assert "of at least 60" in answer.attribution


def test_a_long_run_is_looked_at_in_stretches(simulation: ModuleType, info: Any) -> None:
    training = simulation.simulate(_setup(simulation, 11, seconds=500.0, step_s=0.53, window_s=0.1))
    answer = _measure(info(u_relative=0.0, tick_s=0.1), training)
    assert "(1699 updates" in answer.attribution  # every third stretch of 100, of 4999
    for name, quantity in answer.phases.items():
        assert quantity.low <= sum(training.joules[part] for part in name.split("+")) <= quantity.high
