"""Which stretches of a run are on the bill.

Preparing the text where that is measured, compilation, calibration, a teacher's passes, training, evaluation and
checkpoints are; warm-up and idle are not. The stretches are cut out of the journal's spans and steps here, once, so
that energy, idle energy and time are taken over the same seconds.
"""

from collections.abc import Iterable, Sequence

from efftrain.record.journal import Line

Window = tuple[int, int]
"""Start and end in monotonic nanoseconds."""

BOUNDARY = (
    "compilation, calibration, teacher passes, training, evaluation, checkpoints, and preparing the text where that "
    "was asked for; not warm-up, not idle; where no steps are known, all that was measured"
)

_BILLED = frozenset({"prepare", "compile", "calibrate", "teacher", "evaluate", "checkpoint"})
_UNBILLED = frozenset({"warmup", "idle", "load"})


def billed_windows(lines: Iterable[Line]) -> list[Window]:
    """The billed stretches of a run, in order and disjoint; without steps, its `whole` span or nothing."""
    lines = list(lines)
    steps = [line for line in lines if line["kind"] == "step"]
    spans = [line for line in lines if line["kind"] == "span"]
    if not steps:
        return _whole(spans, lines)
    return billed(spans, start=min(s["t"] for s in steps), end=max(s["t_end"] for s in steps))


def billed(spans: Sequence[Line], *, start: int, end: int) -> list[Window]:
    """Billed stretches, from the spans and the outline of the steps.

    Training is one window, from the first step to the end of the last step or evaluation, without the warm-up and
    idle spans in it. Spans of work before the first step are windows of their own; work inside a warm-up, a
    compilation say, is billed although the warm-up is not. What follows the window, a last checkpoint say, is not.

    Args:
        spans: span lines.
        start: start of the first step, ns.
        end: end of the last step, ns.
    """
    end = max([end, *(s["t_end"] for s in spans if s["name"] == "evaluate")])
    work = [(s["t"], min(s["t_end"], end)) for s in spans if s["name"] in _BILLED]
    pauses = [(s["t"], s["t_end"]) for s in spans if s["name"] in _UNBILLED]
    return _union([*_without((start, end), pauses), *work])


def clip(windows: Sequence[Window], until: int) -> list[Window]:
    """What of the windows lies before a moment, ns."""
    return [(start, min(end, until)) for start, end in windows if start < until]


def seconds(windows: Sequence[Window]) -> float:
    """Length of disjoint windows in s."""
    return sum(end - start for start, end in windows) / 1e9


def _whole(spans: Sequence[Line], lines: Sequence[Line]) -> list[Window]:
    """From the beginning of a `whole` span to its end, or to the last line where whatever it held was cut off.

    It is written twice: when it begins, without a length, and when it ends.
    """
    whole = [span for span in spans if span["name"] == "whole"]
    if not whole:
        return []
    cut_off = whole[-1]["t"] == whole[-1]["t_end"]
    last = max(line["t"] for line in lines) if cut_off else whole[-1]["t_end"]
    return _union([(whole[0]["t"], last)])


def _without(window: Window, holes: Sequence[Window]) -> list[Window]:
    start, end = window
    parts: list[Window] = []
    for hole_start, hole_end in sorted(holes):
        parts.append((start, min(hole_start, end)))
        start = max(start, hole_end)
    return [*parts, (start, end)]


def _union(windows: Sequence[Window]) -> list[Window]:
    merged: list[Window] = []
    for start, end in sorted(w for w in windows if w[0] < w[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
