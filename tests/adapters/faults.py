"""A toy training that is hit by a fault, for the tests that inject them."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.toys import toy_training

import efftrain
from efftrain.adapters.measure import Measurement
from efftrain.record.journal import JournalWriter


def journal_of(run: Measurement) -> JournalWriter:
    monitor = run._keeping._monitor
    assert monitor is not None
    assert monitor._journal is not None
    return monitor._journal


def train(out: Path, fault: Callable[[Measurement], Any] = lambda _: None, *, steps: int = 12, **options: Any):
    """A toy training, hit by a fault after its third step, a longer one after its tenth, and after each later step."""
    weight, losses = 1.0, []
    with efftrain.measure("toy", out=out, **{"device": "cpu", **options}) as run:
        for step in range(1, steps + 1):
            with run.phase("forward"):
                losses.append((weight - 0.3) ** 2)
                time.sleep(0.03)
            weight -= 0.1 * 2 * (weight - 0.3) / step
            run.step(tokens=64, loss=losses[-1])
            if step >= (3 if steps < 30 else 10):
                fault(run)
    assert (losses, weight) == toy_training(steps)
    return run


def once(deed: Callable[..., Any]) -> Callable[..., None]:
    """Done the first time only."""
    done: list[bool] = []

    @functools.wraps(deed)
    def first(*args: Any) -> None:
        if not done:
            done.append(True)
            deed(*args)

    return first


def notes(run: Measurement) -> str:
    assert run.record is not None
    return "\n".join([*run.record.notes, *run.problems])
