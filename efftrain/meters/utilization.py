"""FLOPs of a step, and how near to the device's peak they ran.

Costs are counted before the steps that they hold for; a run whose model changes on the way, by pruning say, has
several stages, each valid from a step on. Figures of a step are then means over the run's steps.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from efftrain.meters.phases import NO_STEPS, duration_s
from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import Quantity, estimate, exact, missing, weakest
from efftrain.record.schema import PHASES, CostRow, Flops, PhaseCost

CONVENTION = (
    "model FLOPs = (6N + 12·L·H·Q·T) per token (PaLM, arXiv:2204.02311, appendix B): N = weights of all linear "
    "layers, the output head included once, without norms and embedding lookup; causal attention counted in full; "
    "recomputation and a teacher's passes not counted; hardware FLOPs add what is computed again"
)


@dataclass(frozen=True, slots=True)
class Work:
    """FLOP that all steps of a run did: by the model's convention, and as the hardware did them."""

    model: float
    hardware: float


def flops_section(journal: Journal) -> Flops:
    """Cost of a step by phase, module and op, MFU and HFU."""
    stages, steps = cost_stages(journal.of("cost")), journal.of("step")
    weighted = [] if journal.status == "killed" and not steps else _weighted(stages, steps)
    work = work_done(stages, steps)
    peak = peak_rate(journal.header)
    return Flops(
        convention=CONVENTION,
        model_per_step=_per_step(weighted, lambda row: row["model_flops"], "FLOP"),
        hardware_per_step=_per_step(weighted, lambda row: row["flops"], "FLOP"),
        mfu=utilization(work, "model", steps, peak),
        hfu=utilization(work, "hardware", steps, peak),
        peak_rate=peak,
        phases=_phases(weighted),
        modules=_rows(weighted, "module"),
        ops=_rows(weighted, "op"),
    )


def cost_stages(costs: Sequence[Line]) -> dict[int, list[Line]]:
    """Cost rows by the step from which they hold, in order."""
    stages: dict[int, list[Line]] = {}
    for line in costs:
        if "phase" in line:
            stages.setdefault(line["from_step"], []).append(line)
    return dict(sorted(stages.items()))


def stage_of(stages: dict[int, list[Line]], step: int) -> int | None:
    """The stage that holds for a step, or None before the first."""
    starts = list(stages)
    index = bisect_right(starts, step) - 1
    return starts[index] if index >= 0 else None


def work_done(stages: dict[int, list[Line]], steps: Sequence[Line]) -> Work | None:
    """FLOP of all steps, or None where no costs were counted for one of them."""
    counts = Counter(stage_of(stages, step["step"]) for step in steps)
    if not counts or None in counts:
        return None
    model = sum(n * sum(row["model_flops"] for row in stages[s]) for s, n in counts.items() if s is not None)
    hardware = sum(n * sum(row["flops"] for row in stages[s]) for s, n in counts.items() if s is not None)
    return Work(model=model, hardware=hardware)


def peak_rate(header: Line) -> Quantity:
    """The rate in FLOP/s that the device could reach, as the header has it; a lower bound if measured on a busy one."""
    peak = header["peak"]
    boundary = f"{peak['device']}, {peak['dtype']}"
    if peak["flops_per_s"] is None:
        return missing("FLOP/s", source=peak["source"], boundary=boundary)
    return Quantity(
        value=peak["flops_per_s"], unit="FLOP/s", method=peak["method"], source=peak["source"], boundary=boundary,
        lower_bound=peak.get("lower_bound", False),
    )  # fmt: skip


def utilization(
    work: Work | None, kind: Literal["model", "hardware"], steps: Sequence[Line], peak: Quantity
) -> Quantity:
    """FLOP over the seconds of the steps and the peak rate; the interval is that of the mean step time.

    An error of the peak rate itself is common to all runs on the device and is not in the interval. Where the hardware
    did more than its peak rate allows, neither utilization is known, for it cannot have: the source says by how much.
    """
    if peak.value is None or work is None or not steps:
        why = (
            peak.source if peak.value is None else "no FLOPs were counted for some of the steps" if steps else NO_STEPS
        )
        return missing("1", source=why, boundary=CONVENTION)
    durations = [duration_s(step) for step in steps]
    length, n = math.fsum(durations), len(durations)
    if not length:
        return missing("1", source="the steps have no length", boundary=CONVENTION)
    reached = max(work.hardware, work.model) / length / peak.value
    if reached > 1:
        why = f"the steps ran at {reached:.1%} of the peak rate, which cannot be: {peak.source}"
        return missing("1", source=why, boundary=CONVENTION)
    flop = work.model if kind == "model" else work.hardware
    value = flop / length / peak.value
    method = weakest(["measured", peak.method])
    source = f"FLOPs of {n} steps over their seconds and the peak rate ({peak.source})"
    if n == 1:
        return Quantity(value=value, unit="1", method=method, source=source, boundary=CONVENTION)
    # The sum of n independent step times has the standard deviation sd · √n.
    spread = math.sqrt(n / (n - 1) * math.fsum((d - length / n) ** 2 for d in durations)) / length
    return estimate(value, "1", method=method, source=source, boundary=CONVENTION, u_random=value * spread)


_COUNTS = ("calls", "flops", "model_flops", "bytes")

_Weighted = Sequence[tuple[float, Line]]
"""Cost rows with the share of the run's steps for which each holds."""


def _weighted(stages: dict[int, list[Line]], steps: Sequence[Line]) -> _Weighted:
    counts = Counter(stage_of(stages, step["step"]) for step in steps)
    counts.pop(None, None)
    if not steps and stages:
        counts[next(iter(stages))] = 1
    total = counts.total()
    return [(counts[stage] / total, row) for stage, rows in stages.items() if counts[stage] for row in rows]


def _per_step(weighted: _Weighted, read: Callable[[Line], float], unit: str) -> Quantity:
    if not weighted:
        return missing(unit, source="no FLOPs were counted")
    stages = len({row["from_step"] for _, row in weighted})
    source = "counted per op on fake tensors" if stages == 1 else f"counted per op, mean over steps of {stages} models"
    # One stage has the weight 1, so that its sum stays an exact integer.
    return exact(sum(read(row) * weight for weight, row in weighted), unit, source=source)


def _phases(weighted: _Weighted) -> dict[str, PhaseCost]:
    by_phase = {name: [(w, row) for w, row in weighted if row["phase"] == name] for name in PHASES}
    return {
        name: PhaseCost(
            hardware=_per_step(rows, lambda row: row["flops"], "FLOP"),
            model=_per_step(rows, lambda row: row["model_flops"], "FLOP"),
            bytes=_per_step(rows, lambda row: row["bytes"], "B"),
        )
        for name, rows in by_phase.items()
        if rows
    }


def _rows(weighted: _Weighted, key: str) -> list[CostRow]:
    """Plain counts by module or by op, the costliest first."""
    sums: dict[str, dict[str, float]] = {}
    for weight, row in weighted:
        cell = sums.setdefault(row[key], dict.fromkeys(_COUNTS, 0.0))
        for name in _COUNTS:
            cell[name] += row[name] * weight
    rows = [
        CostRow(
            name=name, calls=round(c["calls"]), hardware_flops=round(c["flops"]),
            model_flops=round(c["model_flops"]), bytes=round(c["bytes"]),
        )
        for name, c in sums.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row.hardware_flops, -row.bytes, row.name))
