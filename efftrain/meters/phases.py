"""Where the time of a run goes: by step, by phase of a step, by span.

Phase boundaries are marks that training put into the journal; a phase ends where the next one begins.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from efftrain.meters.windows import BOUNDARY, Window, seconds
from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import Quantity, estimate, exact, missing
from efftrain.record.schema import PHASES, Time

NO_STEPS = "the run has no training step"


def time_section(journal: Journal, windows: Sequence[Window]) -> Time:
    """Seconds of a run: over the billed windows, by step, by phase and by span."""
    steps = journal.of("step")
    length = exact(seconds(windows), "s", source="monotonic clock", boundary=BOUNDARY)
    return Time(
        total=length if windows else missing("s", source=NO_STEPS, boundary=BOUNDARY),
        step=_mean([duration_s(step) for step in steps], "duration of training steps"),
        tokens_per_second=tokens_per_second(steps),
        phases=phase_times(steps),
        spans=_spans(journal.of("span")),
    )


def duration_s(step: Line) -> float:
    """Length of one step in s."""
    return (step["t_end"] - step["t"]) / 1e9


def phase_times(steps: Sequence[Line]) -> dict[str, Quantity]:
    """Mean seconds a step by phase; a phase that a step goes through several times is added up within the step."""
    by_step = [_phases_of(step) for step in steps]
    marked = {name: None for phases in by_step for name in phases}  # a set that keeps its order
    names = [name for name in dict.fromkeys((*PHASES, *marked)) if name in marked]  # a foreign loop may name its own
    return {name: _mean([p.get(name, 0.0) for p in by_step], f"marks of the phase {name!r}") for name in names}


def tokens_per_second(steps: Sequence[Line]) -> Quantity:
    """Tokens over the seconds of all training steps.

    The interval is that of a ratio estimator: with r = tokens − rate · seconds of each step, u = √(n/(n−1) Σ r²) over
    the sum of seconds (Cochran, Sampling Techniques, 6.4: the delta method for a ratio of two means).
    """
    if not steps:
        return missing("token/s", source=NO_STEPS)
    tokens, durations = [s["tokens"] for s in steps], [duration_s(s) for s in steps]
    length = sum(durations)
    if not length:
        return missing("token/s", source="the steps have no length")
    rate = sum(tokens) / length
    residuals = [count - rate * s for count, s in zip(tokens, durations, strict=True)]
    n = len(steps)
    spread = math.sqrt(n / (n - 1) * math.fsum(r * r for r in residuals)) / length if n > 1 else None
    return _with_spread(rate, "token/s", spread, f"{sum(tokens)} tokens over {n} training steps")


def _phases_of(step: Line) -> dict[str, float]:
    starts = step["phases"]  # none where a foreign loop marks no phases
    ends = [t for _, t in starts[1:]] + [step["t_end"]]
    lengths: defaultdict[str, float] = defaultdict(float)
    for (name, start), end in zip(starts, ends, strict=False):
        lengths[name] += (end - start) / 1e9
    return dict(lengths)


def _spans(spans: Sequence[Line]) -> dict[str, Quantity]:
    lengths: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        if span["t_end"] > span["t"]:
            lengths[span["name"]] += duration_s(span)
    return {name: exact(s, "s", source="monotonic clock", boundary="sum over spans") for name, s in lengths.items()}


def _mean(values: Sequence[float], what: str) -> Quantity:
    """Mean in s with the standard error sd / √n of independent steps."""
    if not values:
        return missing("s", source=NO_STEPS)
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return _with_spread(mean, "s", spread, f"{what}, mean of {n}")


def _with_spread(value: float, unit: str, spread: float | None, source: str) -> Quantity:
    """An estimate, or a figure that claims no interval where there is but one step to go by."""
    if spread is None:
        return Quantity(value=value, unit=unit, method="measured", source=source)
    return estimate(value, unit, method="measured", source=source, u_random=spread)
