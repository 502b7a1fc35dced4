"""What the readings say: pure functions from series to findings, held against simulated counters in the tests."""

import itertools
import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_truth.sensors import COUNTER
from efftrain.meters.energy.series import Series
from efftrain.meters.energy.ticks import Track
from efftrain.meters.windows import Window
from efftrain.record.journal import Line

ALL_THE_TIME = 0.1
"""A swing below this is taken for none: jitter of the load and of the ticks makes some."""


def tick_facts(track: Track | None) -> dict[str, Any]:
    """Period, jitter and resolution of a counter from its re-timed updates."""
    if track is None or len(track.t) < 4:
        return {"period_s": None, "why": "fewer than three updates were seen"}
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(track.t[1:])]
    steps = [b - a for a, b in itertools.pairwise(track.joules) if b > a]
    return {
        "period_s": None if track.period is None else track.period / 1e9, "u_t_s": track.u_t / 1e9,
        "updates": len(gaps) + 1, "median_gap_s": statistics.median(gaps), "shortest_gap_s": min(gaps),
        "longest_gap_s": max(gaps), "resolution_j": _resolution(steps),
    }  # fmt: skip


def rhythms(ticks: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """How often and how finely each reading changed, from the tick lines of a fast record."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(line["sensor"] for line in ticks):
        own = [line for line in ticks if line["sensor"] == name]
        moments = [(line["t"] + line["since"]) / 2e9 for line in own if "since" in line]
        gaps = [b - a for a, b in itertools.pairwise(moments)]
        steps = [abs(b["value"] - a["value"]) for a, b in itertools.pairwise(own) if b["value"] != a["value"]]
        found[name] = {
            "changes": len(moments), "median_gap_s": statistics.median(gaps) if gaps else None,
            "gap_sd_s": statistics.stdev(gaps) if len(gaps) > 1 else None, "smallest_step": min(steps, default=None),
        }  # fmt: skip
    return found


def mean_watts(series: Mapping[str, Series], window: Window) -> dict[str, float | None]:
    """Mean power in W of each sensor over a window, a counter's between its own updates inside the window."""
    return {name: _mean(one, window) for name, one in series.items()}


def ratios(watts: Mapping[str, float | None]) -> dict[str, float | None]:
    """Each power over the counter's."""
    counter = watts.get(COUNTER)
    return {name: w / counter if w and counter else None for name, w in watts.items() if name != COUNTER}


def part_time(means: Sequence[float], duties: Sequence[float], low_w: float, high_w: float) -> dict[str, Any]:
    """Whether a counter looks all the time, from its mean power under one load in step with its ticks.

    The load is a square wave of one tick's period whose phase against the ticks was moved on; its true mean does not
    depend on the phase. A counter that looks during a share f of each tick sees, for f up to a half, everything between
    only idle and only load, and above that between (f − 1/2)/f and (1/2)/f of the load: a swing of (1 − f)/f.

    Args:
        means: W by the counter, one for each phase; eight phases an eighth of a tick apart, at least four.
        duties: share of the time in which the load truly ran in each phase: what they differ by is not the counter's.
        low_w: W by the counter when idle.
        high_w: W by the counter under the load all the time.

    Returns:
        Keys: swing, share (of the time, from the swing), full_time, verdict (a sentence).
    """
    if len(means) < 4 or not high_w > low_w:
        return {"swing": None, "full_time": None, "verdict": _UNDECIDED}
    seen_more = [(mean - low_w) / (high_w - low_w) - duty for mean, duty in zip(means, duties, strict=True)]
    swing = max(seen_more) - min(seen_more)
    share = 1 / (1 + swing)
    full_time = swing < ALL_THE_TIME
    seen = f"moving the load against the ticks moves the counter's mean by {swing:.1%} of what the load adds"
    if full_time:
        verdict = f"the counter looks all the time: {seen}, less than {ALL_THE_TIME:.0%}"
    elif swing > 0.7:  # eight phases miss the extremes by a sixteenth of a tick, an eighth of the swing at most
        verdict = f"the counter looks part of the time, perhaps half or less of each tick: {seen}"
    else:
        verdict = f"the counter looks part of the time, about {share:.0%} of each tick: {seen}"
    return {"swing": swing, "share": share, "full_time": full_time, "verdict": verdict}


_UNDECIDED = "not decided: four phases, and a load that the counter sees, are needed"


def windows_at_ticks(track: Track, length_s: float, between: Window) -> list[tuple[Window, float]]:
    """Disjoint windows of at least `length_s` from tick to tick, with the J that the counter gives them exactly."""
    found: list[tuple[Window, float]] = []
    i = bisect_left(track.t, between[0])
    while i < len(track.t):
        j = bisect_left(track.t, track.t[i] + round(length_s * 1e9))
        if j >= len(track.t) or track.t[j] > between[1]:
            break
        found.append(((track.t[i], track.t[j]), track.joules[j] - track.joules[i]))
        i = j
    return found


def joules_per_step(windows: Sequence[tuple[Window, float]], step_ends: Sequence[int]) -> list[float]:
    """J per training step in each window; a step that is cut counts by the share of its time inside.

    Args:
        windows: see `windows_at_ticks`.
        step_ends: moments in ns at which steps ended, the first being where the first step began.
    """
    order = np.arange(len(step_ends))
    steps = [float(np.diff(np.interp(window, step_ends, order))[0]) for window, _ in windows]
    return [joules / count for (_, joules), count in zip(windows, steps, strict=True) if count > 0]


def scatter(values: Sequence[float]) -> dict[str, Any]:
    """Mean, relative standard deviation, and the latter's own relative uncertainty (GUM, E.4.3: 1/√(2(n − 1)))."""
    if len(values) < 2:
        return {"windows": len(values), "mean": None, "relative_sd": None, "u_of_sd": None}
    mean, n = statistics.fmean(values), len(values)
    return {
        "windows": n, "mean": mean, "relative_sd": statistics.stdev(values) / mean,
        "u_of_sd": 1 / math.sqrt(2 * (n - 1)),
    }  # fmt: skip


def _mean(series: Series, window: Window) -> float | None:
    track = series.track
    if track is None:
        return series.watts(*window)
    inside = [i for i, t in enumerate(track.t) if window[0] <= t <= window[1]]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    return (track.joules[last] - track.joules[first]) / (track.t[last] - track.t[first]) * 1e9


def _resolution(steps: Sequence[float]) -> float | None:
    """The largest unit, in whole mJ, of which all steps are multiples."""
    counts = [round(step * 1000) for step in steps]
    unit = math.gcd(*counts) if counts else 0
    return unit / 1000 if unit else None
