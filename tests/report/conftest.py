"""Studies for the tests of this folder: small and inconclusive, large and damaged."""

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from efftrain.comparison.checks import run_checks, study_checks
from efftrain.comparison.verdicts import compare
from efftrain.record.schema import Run, Study

Case = tuple[Study, list[Run]]


@pytest.fixture(scope="session")
def run_record() -> Callable[..., Run]:
    """Builds a record from a few choices; tests/ is no package, so its module is loaded by path."""
    spec = importlib.util.spec_from_file_location("records", Path(__file__).parent.parent / "records.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.run_record


def study_of(runs: list[Run], skipped: dict[str, str] | None = None) -> Case:
    """A study as the study room would write it: checked, compared."""
    names: dict[str, tuple[str, bool, str | None]] = {r.variant: (SUMMARIES[r.variant], False, None) for r in runs}
    names |= {name: (SUMMARIES[name], True, reason) for name, reason in (skipped or {}).items()}
    checked = [r.model_copy(update={"checks": run_checks(r)}) for r in runs]
    variants = compare(checked, variants=names, baseline="baseline")
    study = Study(
        schema="efftrain.study/1",
        study_id="quick",
        created="2026-03-01T10:00:00Z",
        command="efftrain bench --preset quick --variants <all> --data 'a|b'",
        baseline="baseline",
        runs=[r.run_id for r in checked],
        variants=variants,
        checks=study_checks(checked, variants),
        settings={"preset": "quick", "seeds": 2},
    )
    return study, checked


SUMMARIES = {
    "baseline": "fp32, nothing changed",
    "bf16": "bf16 autocast",
    "recompute": "full activation recomputation",
    "pruned": "dense for a third of the tokens, then heads and channels removed",
    "distilled": "a smaller student taught by the finished baseline",
    "fp16": "fp16 autocast with loss scaling",
}

FIGURES = {
    "baseline": {"joules": 200, "final": 4.43},
    "bf16": {"joules": 174, "final": 4.435, "step_s": 0.036, "memory": 201 * 2**20, "mfu": 0.36, "hfu": 0.36},
    "recompute": {"joules": 252, "final": 4.43, "step_s": 0.053, "memory": 160 * 2**20, "recompute": True, "hfu": 0.4},
    "pruned": {"joules": 171, "final": 4.52, "step_s": 0.034, "parameters": 640_000},
    "distilled": {"joules": 213, "final": 4.40, "step_s": 0.041, "parameters": 430_000},
}


def _noise(name: str, seed: int, spread: float) -> float:
    return 1 + random.Random(f"{name} {seed}").gauss(0, spread)


@pytest.fixture(scope="session")
def small(run_record: Callable[..., Run]) -> Case:
    """Two seeds on a CPU whose energy is assumed: no verdict can be given."""
    runs = [
        run_record(variant=name, seed=seed, **{**choices, "joules": choices["joules"] * _noise(name, seed, 0.02)})
        for seed in range(2)
        for name, choices in FIGURES.items()
    ]
    return study_of(runs, {"fp16": "this CPU has no fp16 matrix product"})


@pytest.fixture(scope="session")
def large(run_record: Callable[..., Run]) -> Case:
    """Eight seeds on a measured GPU: verdicts of all kinds."""
    shared = {"gpu": True, "tokens_per_step": 131_072, "peak": 9.89e14}
    runs = [
        run_record(
            variant=name,
            seed=seed,
            **shared,
            **{
                **choices,
                "parameters": 3 * choices.get("parameters", 860_000),
                "joules": 150 * choices["joules"] * _noise(name, seed, 0.01),
                "final": choices["final"] * _noise("shared", seed, 0.004) * _noise(name, seed, 0.0005),
                "step_s": choices.get("step_s", 0.042) * _noise(name, seed + 100, 0.004),
            },
        )
        for seed in range(8)
        for name, choices in FIGURES.items()
    ]
    return study_of(runs)


@pytest.fixture(scope="session")
def damaged(run_record: Callable[..., Run]) -> Case:
    """A run killed, one out of memory at once, one diverged, one with an MFU above 100 % on another text."""
    runs = [
        run_record(seed=0),
        run_record(seed=1, status="killed", steps=250, notes=("sensor gpu0 was lost: Unknown Error",)),
        run_record(variant="bf16", seed=0, status="diverged", steps=300),
        run_record(variant="bf16", seed=1, mfu=1.3, hfu=1.2, corpus="cd" * 32),
        run_record(variant="recompute", seed=0, status="oom", steps=0, mfu=None, hfu=None, peak=None),
    ]
    return study_of(runs, {"distilled": "the baseline with seed 1 did not finish: <killed> [red]"})


@pytest.fixture(scope="session")
def empty() -> Case:
    """A study of which nothing ran."""
    return study_of([], {"baseline": "no memory for it"})
