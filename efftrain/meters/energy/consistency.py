"""Do the sensors agree with themselves, with each other and with the run that they watched?

What can only be told from raw readings is told here; what figures can tell stands in efftrain.comparison.checks.
"""

import cmath
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.energy.series import Series
from efftrain.meters.windows import Window
from efftrain.record.journal import Line
from efftrain.record.schema import Check

MAX_DISAGREEMENT: Final = 0.05
"""Of counter and integrated power; at idle 75 % were seen (zeus issue 181), under load 1 %."""

MAX_HARMONIC: Final = 8
"""Ticks that fall on at most this many places of a step are a beat; on more they sample it."""

MAX_RESULTANT: Final = 0.5
"""Length of the mean of unit vectors at the ticks' places (Rayleigh): 0 where they fall anywhere, 1 at one place."""

MIN_TICKS: Final = 20

MIN_STEPS: Final = 8

MAX_LOST: Final = 0.1
"""Share of the training time that may lie beyond twice the usual step."""


def consistency(ledger: Ledger, windows: Sequence[Window], steps: Sequence[Line], environment: Line) -> list[Check]:
    """The checks on the raw readings of a run, in a fixed order; of sensors only where there is an energy counter.

    Args:
        ledger: filled with the run's ticks.
        windows: what is billed.
        steps: step lines.
        environment: of the journal's header.
    """
    counters = [s for s in ledger.series.values() if s.info["kind"] == "energy"]
    if not counters:
        return [_steady(steps)]
    return [
        _steady(steps),
        _agreement([s for s in counters if s.witness is not None], windows),
        _phase_lock(counters, steps),
        _alone(environment),
    ]


def _steady(steps: Sequence[Line]) -> Check:
    """Whether the run had the machine for itself, as far as its steps can tell.

    A step may take twice as long as the quickest quarter of them, because a model shrinks on the way or a batch is
    longer. The time beyond that, over all steps, is time that something else took: threads that wait for each other on
    cores that others use, a clock that was throttled, data that was late.
    """
    name = "steps_steady"
    lengths = sorted((step["t_end"] - step["t"]) / 1e9 for step in steps)
    if len(lengths) < MIN_STEPS or not math.fsum(lengths):
        return Check(name=name, status="skipped", detail=f"fewer than {MIN_STEPS} steps")
    usual = lengths[len(lengths) // 4]
    lost = math.fsum(max(0.0, length - 2 * usual) for length in lengths) / math.fsum(lengths)
    detail = f"{lost:.0%} of the training time lies beyond twice the usual step of {usual * 1e3:.3g} ms"
    if lost > MAX_LOST:
        return Check(
            name=name, status="warning",
            detail=f"{detail} (longest {lengths[-1] * 1e3:.3g} ms): something else used the machine, or data was late; "
            "times and joules hold that too",
        )  # fmt: skip
    return Check(name=name, status="passed", detail=detail)


def _agreement(counters: Sequence[Series], windows: Sequence[Window]) -> Check:
    name = "counter_against_power"
    told: list[str] = []
    worst = 0.0
    for series in counters:
        ratio = _power_over_counter(series, windows)
        if ratio is not None:
            told.append(f"{series.info['name']} {ratio - 1:+.1%}")
            worst = max(worst, abs(ratio - 1))
    if not told:
        return Check(name=name, status="skipped", detail="no power was read beside a counter all the time")
    detail = f"integrated power against the energy counter: {', '.join(told)}"
    if worst > MAX_DISAGREEMENT:
        return Check(name=name, status="failed", detail=f"{detail}; one of them is wrong, so distrust the joules")
    return Check(name=name, status="passed", detail=detail)


def _power_over_counter(series: Series, windows: Sequence[Window]) -> float | None:
    counted = series.energy_over(windows).value
    parts = [series.witness.joules_between(*window) if series.witness else None for window in windows]
    if not counted or not parts or any(part is None for part in parts):
        return None
    return math.fsum(part or 0.0 for part in parts) / counted


def _phase_lock(counters: Sequence[Series], steps: Sequence[Line]) -> Check:
    name = "phase_lock"
    beats: list[str] = []
    judged = False
    for series in counters:
        places = _places(series, steps)
        if len(places) < MIN_TICKS:
            continue
        judged = True
        beat = next((h for h in range(1, MAX_HARMONIC + 1) if _resultant(places, h) > MAX_RESULTANT), None)
        if beat is not None:
            beats.append(f"{series.info['name']} ticks at {'one place' if beat == 1 else f'{beat} places'} of the step")
    if not judged:
        return Check(name=name, status="skipped", detail=f"fewer than {MIN_TICKS} ticks of a counter fall into steps")
    if beats:
        return Check(
            name=name, status="warning",
            detail=f"{'; '.join(beats)}, over and over: a sensor that looks only a part of the time would be wrong in "
            "the same way however long it runs; a run with another batch size tells, and so do jittered blocks "
            "(--phase-energy blocks) in a training of efftrain's own",
        )  # fmt: skip
    return Check(name=name, status="passed", detail="ticks fall anywhere in a step")


def _places(series: Series, steps: Sequence[Line]) -> list[float]:
    """Where in its step each tick of a counter falls, 0 to 1."""
    track = series.track
    starts = [step["t"] for step in steps]
    places: list[float] = []
    if track is None or track.period is None:
        return places
    for t in track.t:
        i = bisect_right(starts, t) - 1
        if i >= 0 and t < steps[i]["t_end"]:
            places.append((t - steps[i]["t"]) / (steps[i]["t_end"] - steps[i]["t"]))
    return places


def _resultant(places: Sequence[float], harmonic: int) -> float:
    return abs(sum(cmath.exp(2j * math.pi * harmonic * place) for place in places)) / len(places)


def _alone(environment: Line) -> Check:
    """Whether the run had its devices for itself; what a counter counts is everybody's."""
    name = "devices_alone"
    devices: list[dict[str, Any]] = [d for d in environment.get("devices") or [] if isinstance(d, dict)]
    crowded = [f"{d.get('uuid')}: {why}" for d in devices if (why := _shared_with(d))]
    if crowded:
        return Check(
            name=name, status="warning", detail=f"{'; '.join(crowded)}: the counter counts their energy too"
        )  # fmt: skip
    unknown = [str(d.get("uuid")) for d in devices if d.get("other_processes") is None]
    if unknown or not devices:
        return Check(name=name, status="skipped", detail="the driver does not tell which processes use the device")
    return Check(name=name, status="passed", detail="no other process was on the devices at the start")


def _shared_with(device: dict[str, Any]) -> str:
    others = device.get("other_processes") or 0
    known = ", ".join(map(str, device.get("other_process_ids") or []))
    reasons = [
        f"{others} other process{'' if others == 1 else 'es'}{f' ({known})' if known else ''}" if others else "",
        "split by MIG" if device.get("mig") else "",
        "a virtual GPU" if device.get("vgpu") else "",
    ]
    return ", ".join(filter(None, reasons))
