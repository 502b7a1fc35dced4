"""One bill for a training that took several processes: stopped or killed, and resumed from a checkpoint.

Each attempt's journal is a run of its own, with its own clock and its own sensors: a reboot or another machine may lie
between two. Records are therefore added, not journals. Energy, time and grams count whatever was used, steps that were
done twice included; steps, tokens and losses count each step once, as it was made last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from efftrain.meters.assemble import assemble
from efftrain.meters.attempts_energy import add_energy
from efftrain.meters.attempts_means import added_up, common_sum, same, weighted
from efftrain.meters.carbon.footprint import carbon_section
from efftrain.meters.utilization import flops_section
from efftrain.meters.windows import BOUNDARY
from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import Quantity, missing, total
from efftrain.record.schema import Attempt, Carbon, Check, Flops, Loss, Memory, Run, Time, Validation


@dataclass(frozen=True, slots=True)
class Part:
    """One attempt: its record, and the lines of its steps; (step, tokens) of steps whose lines are gone."""

    run: Run
    header: Line
    steps: Sequence[Line]

    @property
    def seconds(self) -> float:
        """Length of its steps."""
        return sum((step["t_end"] - step["t"]) / 1e9 for step in self.steps)


def assemble_attempts(journals: Sequence[Journal]) -> Run:
    """The record of a run from the journals of its attempts, in order; of a single one, what `assemble` makes of it.

    An attempt that came to no step has nothing on its bill and is only listed. Where journals of earlier attempts are
    gone, what the next header that is left knew (`before`) stands for all that went before it.
    """
    parts: list[Part] = []
    for journal in journals:
        part = Part(assemble(journal), journal.header, journal.of("step"))
        before = journal.header.get("before")
        if before and before.get("attempts", 1) > len(parts):
            parts = [_from_checkpoint(part, before, known=parts)]
        parts.append(part)
    if len(parts) == 1:
        return parts[0].run
    return combine(parts, [line for journal in journals for line in journal.of("cost")])


def combine(parts: Sequence[Part], costs: Sequence[Line]) -> Run:
    """One record from those of several attempts.

    Args:
        parts: the attempts in order, two or more.
        costs: cost lines of all of them; those of one stage are the same in each.
    """
    last = parts[-1].run
    made = [part for part in parts if part.steps] or [parts[-1]]
    runs = [part.run for part in made]
    steps = {step["step"]: step for part in made for step in part.steps}
    ordered = [steps[number] for number in sorted(steps)]
    tokens = sum(step["tokens"] for step in ordered)
    energy = add_energy(runs, tokens)
    flops = _flops(made, costs, ordered)
    return last.model_copy(
        update={
            "steps": len(ordered),
            "tokens": tokens,
            "loss": _loss(made, ordered),
            "energy": energy,
            "carbon": _carbon(made, energy.total, tokens, flops.model_per_step, len(ordered)),
            "flops": flops,
            "memory": _memory(runs),
            "time": _time(made),
            "checks": [_said_by(number, check) for number, part in enumerate(parts, 1) for check in part.run.checks],
            "notes": _notes(parts),
            "attempts": [_attempt(part) for part in parts],
            "classification": next((r.classification for r in reversed(runs) if r.classification), None),
        }
    )


def _attempt(part: Part) -> Attempt:
    run, numbers = part.run, [step["step"] for step in part.steps]
    return Attempt(
        status=run.status, first_step=min(numbers, default=0), last_step=max(numbers, default=0),
        energy=run.energy.total, time=run.time.total,
    )  # fmt: skip


def _said_by(number: int, check: Check) -> Check:
    return check.model_copy(update={"detail": f"attempt {number}: {check.detail}"})


def _notes(parts: Sequence[Part]) -> list[str]:
    """Each with its attempt, but for the last words, which tell how the whole run ended."""
    last = parts[-1].run
    said = [(number, note) for number, part in enumerate(parts, 1) for note in part.run.notes]
    ended = f"{last.status}: "
    return [
        note if number == len(parts) and note.startswith(ended) else f"attempt {number}: {note}"
        for number, note in said
    ]


def _loss(parts: Sequence[Part], steps: Sequence[Line]) -> Loss:
    """Losses of each step as it was made last; energy and time of evaluations from the very beginning."""
    validation: dict[int, Validation] = {}
    spent_j: float | None = 0.0
    spent_s: float | None = 0.0
    for part in parts:
        for found in part.run.loss.validation:
            update = {"energy_j": _plus(found.energy_j, spent_j), "time_s": _plus(found.time_s, spent_s)}
            validation[found.step] = found.model_copy(update=update)
        spent_j = _plus(part.run.energy.total.value, spent_j)
        spent_s = _plus(part.run.time.total.value, spent_s)
    final = next((part.run.loss for part in reversed(parts) if part.run.loss.validation), parts[-1].run.loss)
    return Loss(
        train=[step["loss"] for step in steps],
        validation=[validation[step] for step in sorted(validation)],
        final_validation=final.final_validation,
        perplexity=final.perplexity,
    )


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _carbon(parts: Sequence[Part], energy: Quantity, tokens: int, flop_per_step: Quantity, steps: int) -> Carbon:
    """Grams of all joules, under the intensity of each attempt's own hours, and of all seconds of the hardware."""
    sections = [part.run.carbon for part in parts]
    joules = [part.run.energy.total.value or 0.0 for part in parts]
    intensities = [section.intensity for section in sections]
    made = common_sum([section.embodied for section in sections])
    return carbon_section(
        energy, parts[-1].header["carbon"], tokens,
        None if flop_per_step.value is None else flop_per_step.value * steps,
        intensity=intensities[-1] if same(intensities) else weighted(intensities, joules), hardware=made,
    )  # fmt: skip


def _flops(parts: Sequence[Part], costs: Sequence[Line], steps: Sequence[Line]) -> Flops:
    """Costs of a step over the steps that count; how near to the peak all steps ran, those done twice included."""
    seen: dict[Any, Line] = {(c["from_step"], c.get("phase"), c.get("module"), c.get("op")): c for c in costs}
    known = [{"t": 0, "kind": "cost", **cost} for cost in seen.values()]
    section = flops_section(Journal(parts[-1].header, [*known, *(s for s in steps if s["t_end"] > s["t"])], []))
    seconds = [part.seconds for part in parts]
    return section.model_copy(
        update={
            "mfu": weighted([part.run.flops.mfu for part in parts], seconds),
            "hfu": weighted([part.run.flops.hfu for part in parts], seconds),
        }
    )


def _memory(runs: Sequence[Run]) -> Memory:
    def largest(of: Callable[[Memory], Quantity]) -> Memory:
        return max((run.memory for run in runs), key=lambda memory: of(memory).value or 0.0)

    process = largest(lambda memory: memory.process_peak).process_peak
    return largest(lambda memory: memory.peak).model_copy(update={"process_peak": process})


def _time(parts: Sequence[Part]) -> Time:
    """All seconds; means over all steps that were made."""
    times = [part.run.time for part in parts]
    counts, seconds = [float(len(part.steps)) for part in parts], [part.seconds for part in parts]
    phases = dict.fromkeys(name for time in times for name in time.phases)
    spans = dict.fromkeys(name for time in times for name in time.spans)
    absent = missing("s", source="no such phase")
    return Time(
        total=_sum([time.total for time in times], BOUNDARY),
        step=weighted([time.step for time in times], counts),
        tokens_per_second=weighted([time.tokens_per_second for time in times], seconds),
        phases={name: weighted([time.phases.get(name, absent) for time in times], counts) for name in phases},
        spans={
            name: _sum([time.spans[name] for time in times if name in time.spans], "sum over spans") for name in spans
        },
    )


def _sum(parts: Sequence[Quantity], boundary: str) -> Quantity:
    return total(parts, boundary=boundary, source=added_up(parts))


def _from_checkpoint(part: Part, before: dict[str, Any], known: Sequence[Part]) -> Part:
    """Earlier attempts of which journals are gone, as the attempt after them knew them.

    Losses, which it did not know, are those of the journals that are left (`known`).
    """
    run, said = part.run, "earlier attempts, as the next one knew them; their journals are gone"
    energy = missing("J", source=f"{said}: no energy", boundary=BOUNDARY)
    if before["energy"]:
        stored = Quantity(**before["energy"])
        energy = replace(stored, source=f"{said}: {stored.source}")
    absent = missing("s", source=said)
    seconds = absent if before["seconds"] is None else Quantity(
        value=before["seconds"], unit="s", method="measured", source=said, boundary=BOUNDARY
    )  # fmt: skip
    nothing = missing("J", source=said)
    each = before["tokens"] // max(before["step"], 1)
    losses = {step["step"]: step["loss"] for other in known for step in other.steps}
    steps = [
        {"kind": "step", "t": 0, "t_end": 0, "step": step, "tokens": each, "loss": losses.get(step), "phases": []}
        for step in range(1, before["step"] + 1)
    ]
    bill = run.energy.model_copy(
        update={
            "components": {"earlier_attempts": energy}, "devices": {}, "total": energy, "idle": nothing,
            "above_idle": nothing, "phases": {}, "phase_power": {}, "modules": [], "ops": [], "model": None,
            "closure": missing("1", source=said), "attribution": "",
        }
    )  # fmt: skip
    time = Time(total=seconds, step=absent, tokens_per_second=missing("token/s", source=said), phases={})
    loss = _loss(known, ()) if known else run.loss.model_copy(update={"train": [], "validation": []})
    gone = run.model_copy(
        update={
            "status": "unknown", "energy": bill, "time": time, "loss": loss, "checks": [], "notes": [said],
            "carbon": run.carbon.model_copy(update={"embodied": missing("g", source=said)}),
        }
    )  # fmt: skip
    return Part(gone, part.header, steps)
