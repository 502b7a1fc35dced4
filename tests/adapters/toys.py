"""Loops and sensors of known power for the tests of adapters."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import efftrain
from efftrain.sensors.protocol import SensorInfo

WATTS = 100.0


@dataclass
class Meter:
    """A counter of a constant 100 W that can be made to fail."""

    name: str = "gpu0"
    began: float = field(default_factory=time.monotonic)
    fails: Any = None  # what reading does instead, from when it is set
    closed: bool = False
    kind: Any = "energy"

    @property
    def info(self) -> SensorInfo:
        return SensorInfo(
            name=self.name, component="gpu", device=f"GPU-{self.name}", kind=self.kind, unit="J", period_s=0.01,
            tick_s=0.0, method="measured", source="a counter of 100 W", boundary="the board",
        )  # fmt: skip

    def read(self) -> float:
        if isinstance(self.fails, BaseException):
            raise self.fails
        if self.fails is not None:
            return self.fails(WATTS * (time.monotonic() - self.began))
        return WATTS * (time.monotonic() - self.began)

    def close(self) -> None:
        self.closed = True


def toy_training(steps: int = 5) -> tuple[list[float], float]:
    """A computation that stands for a training: its losses and its final weight, the same each time."""
    weight, losses = 1.0, []
    for step in range(1, steps + 1):
        losses.append((weight - 0.3) ** 2)
        weight -= 0.1 * 2 * (weight - 0.3) / step
    return losses, weight


def measured_training(out: Path, steps: int = 5, between: Any = None, **options: Any):
    """The same training, measured; its result and the measurement."""
    weight, losses = 1.0, []
    with efftrain.measure("toy", out=out, device="cpu", **options) as run:
        for step in range(1, steps + 1):
            with run.phase("forward"):
                losses.append((weight - 0.3) ** 2)
                time.sleep(0.01)
            with run.phase("backward"):
                gradient = 2 * (weight - 0.3)
                time.sleep(0.02)
            with run.phase("optimizer"):
                weight -= 0.1 * gradient / step
                time.sleep(0.005)
            run.step(tokens=64, loss=losses[-1])
            if between:
                between(step)
        run.evaluation(loss=losses[-1])
    return (losses, weight), run
