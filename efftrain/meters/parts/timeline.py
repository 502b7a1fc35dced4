"""Which part of a run each moment belongs to: a phase of a step, a span, what lies between, or nothing on the bill.

A regression of a counter on the parts of a run needs, for thousands of windows and many guesses of a lag, the seconds
of each window by part. So the run is cut once into stretches of one part each, and their lengths are summed up: the
seconds of any window are then a difference of two points of those sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from efftrain.meters.windows import Window
from efftrain.record.journal import Line

Floats = NDArray[np.float64]

OTHER: Final = "other"
"""Billed time in no step's phase and no span: what a loop does between two steps."""

_UNBILLED: Final = -1


@dataclass(frozen=True)
class Timeline:
    """A run as stretches of one part each.

    Attributes:
        names: the parts: the phases in the order of a step, then the spans, then `other`.
        phases: how many of the names are phases.
        steps: [n, 2] start and end in ns of each step.
        bounds: [m + 1] times in ns at which one stretch ends and the next begins.
        labels: [m] index into `names` of each stretch; −1 is not on the bill.
    """

    names: tuple[str, ...]
    phases: int
    steps: NDArray[np.int64]
    bounds: NDArray[np.int64]
    labels: NDArray[np.int64]

    @cached_property
    def seconds(self) -> Floats:
        """[parts] s of each part over the whole run."""
        return self._sums[-1, :-1]

    def occupancy(self, start: Floats, end: Floats) -> Floats:
        """[n, parts + 1] s by part of n windows from `start` to `end` in ns; the last column is not on the bill."""
        return self._until(end) - self._until(start)

    def positions(self, t: Floats) -> tuple[NDArray[np.bool_], Floats]:
        """[n] whether each time in ns lies in a step, and [of those] how far into it, 0 to 1."""
        index = np.searchsorted(self.steps[:, 0], t, side="right") - 1
        inside = (index >= 0) & (t < self.steps[index, 1])
        start, end = self.steps[index[inside]].T
        return inside, (t[inside] - start) / (end - start)

    @property
    def mean_step_s(self) -> float:
        """Mean length of a step in s."""
        return float((self.steps[:, 1] - self.steps[:, 0]).mean()) / 1e9

    @cached_property
    def _padded(self) -> tuple[Floats, NDArray[np.int64]]:
        """Bounds, and the label of what lies before, between and after them."""
        outside = np.array([_UNBILLED])
        return self.bounds.astype(float), np.concatenate([outside, self.labels, outside])

    @cached_property
    def _sums(self) -> Floats:
        """[m + 1, parts + 1] s by part from the first bound to each."""
        lengths = np.zeros((len(self.bounds), len(self.names) + 1))
        lengths[np.arange(1, len(self.bounds)), self.labels] = np.diff(self.bounds) / 1e9
        return np.cumsum(lengths, axis=0)

    def _until(self, t: Floats) -> Floats:
        """[n, parts + 1] s by part from the first bound to each time; negative before it."""
        bounds, labels = self._padded
        index = np.searchsorted(bounds, t, side="right")
        known = np.clip(index - 1, 0, len(bounds) - 1)
        sums = self._sums[known]
        sums[np.arange(len(t)), labels[index]] += (t - bounds[known]) / 1e9
        return sums


def timeline(steps: Sequence[Line], spans: Sequence[Line], windows: Sequence[Window]) -> Timeline:
    """The stretches of a run.

    Args:
        steps: step lines with their marks.
        spans: span lines; of those that are on no bill nothing is kept.
        windows: the billed stretches, disjoint and in order.
    """
    marked = [interval for step in steps for interval in _phases(step)]
    phases = list(dict.fromkeys(name for name, _, _ in marked))
    named = [(s["name"], s["t"], s["t_end"]) for s in spans if s["name"] != "whole"]
    names = [*phases, *dict.fromkeys(name for name, _, _ in named if name not in phases), OTHER]
    index = {name: i for i, name in enumerate(names)}
    times = [t for _, start, end in (*marked, *named) for t in (start, end)]
    bounds = np.unique(np.array([*times, *(t for window in windows for t in window)], dtype=np.int64))
    labels = np.full(max(len(bounds) - 1, 0), _UNBILLED)
    for start, end in windows:
        labels[slice(*np.searchsorted(bounds, (start, end)))] = index[OTHER]
    on_bill = labels != _UNBILLED
    for name, start, end in (*named, *marked):
        labels[slice(*np.searchsorted(bounds, (start, end)))] = index[name]
    labels[~on_bill] = _UNBILLED
    kept = [name for name in names if name in phases or name == OTHER or (labels == index[name]).any()]
    new = np.array([*(kept.index(name) if name in kept else _UNBILLED for name in names), _UNBILLED])
    outline = np.array([(s["t"], s["t_end"]) for s in steps], dtype=np.int64).reshape(-1, 2)
    return Timeline(tuple(kept), len(phases), outline, bounds, new[labels])


def _phases(step: Line) -> list[tuple[str, int, int]]:
    """(phase, start, end) in ns; a phase ends where the next one begins; none where a foreign loop marks none."""
    starts = step["phases"]
    ends = [t for _, t in starts[1:]] + [step["t_end"]]
    return [(name, start, end) for (name, start), end in zip(starts, ends, strict=False) if end > start]
