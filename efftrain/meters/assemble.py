"""The record of a run from its journal: one function, the same for runs that ended well, badly, or not at all."""

import math
from collections.abc import Sequence

from scipy.stats import t as student

from efftrain.meters.carbon.footprint import run_carbon
from efftrain.meters.classification import accuracy_of, classification
from efftrain.meters.energy.consistency import consistency
from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.memory import memory_section
from efftrain.meters.parts.attribution import attribute
from efftrain.meters.parts.energy_model import modelled
from efftrain.meters.phases import time_section
from efftrain.meters.utilization import cost_stages, flops_section, work_done
from efftrain.meters.windows import BOUNDARY, Window, billed_windows, clip, seconds
from efftrain.record.journal import Journal, Line
from efftrain.record.quantities import COVERAGE_FACTOR, Quantity, missing, scaled
from efftrain.record.recorder import ENDED_WELL
from efftrain.record.schema import RUN_SCHEMA, Energy, Loss, Origin, Run, Teacher, Validation

_LARGEST_EXPONENT = 700.0
"""exp of more is beyond a double."""


def assemble(journal: Journal) -> Run:
    """The whole record. What the journal does not hold is missing in it; `checks` holds those of the sensors."""
    header, steps = journal.header, journal.of("step")
    windows = billed_windows(journal.lines)
    ledger = Ledger(header)
    for line in journal.lines:
        ledger.feed(line)
    tokens = sum(step["tokens"] for step in steps)
    energy = _energy(journal, ledger, windows, tokens)
    work = work_done(cost_stages(journal.of("cost")), steps)
    model_flops = work.model if work else None
    return Run(
        schema=RUN_SCHEMA,
        run_id=header["run_id"],
        study_id=header["study_id"],
        variant=header["variant"],
        seed=header["seed"],
        status=journal.status,
        steps=len(steps),
        tokens=tokens,
        parameters=header["parameters"],
        config=header["config"],
        environment={**header["environment"], "corpus": header["corpus"]},
        loss=_loss(journal, ledger, windows),
        energy=energy,
        carbon=run_carbon(header, energy.total, windows, ledger.total, tokens=tokens, model_flops=model_flops),
        flops=flops_section(journal),
        memory=memory_section(journal),
        time=time_section(journal, windows),
        checks=consistency(ledger, windows, steps, header["environment"]),
        notes=[line["text"] for line in journal.of("note")] + journal.defects + _last_words(journal),
        teacher=_teacher(header),
        origin=_origin(header),
        classification=classification(journal),
        trainable_parameters=header.get("trainable_parameters"),
        ranks=header.get("ranks", 1),
    )


def _last_words(journal: Journal) -> list[str]:
    """What a failed run's process said at its end."""
    return [f"{line['status']}: {line['detail']}" for line in journal.of("end") if line.get("detail")]


def _energy(journal: Journal, ledger: Ledger, windows: Sequence[Window], tokens: int) -> Energy:
    whole = ledger.total(windows)
    parts = attribute(journal, ledger, windows, whole)
    idle = ledger.idle(windows)
    spread = modelled(parts, journal.of("cost"), journal.of("step"), idle)
    no_tokens = missing("J/token", source="no token was trained", boundary=BOUNDARY)
    return Energy(
        components=ledger.components(windows),
        devices=ledger.devices(windows),
        total=whole,
        idle=idle,
        above_idle=ledger.above_idle(windows),
        per_token=scaled(whole, 1 / tokens, "J/token") if tokens else no_tokens,
        phases=parts.phases,
        phase_power=parts.power,
        closure=parts.closure,
        attribution="; ".join(filter(None, (parts.attribution, spread.reason))),
        modules=spread.modules,
        ops=spread.ops,
        model=spread.model,
    )


def _loss(journal: Journal, ledger: Ledger, windows: Sequence[Window]) -> Loss:
    evaluations = journal.of("evaluation")
    final = _final(evaluations, journal.status, _loss_unit(journal.header))
    return Loss(
        train=[step["loss"] for step in journal.of("step")],
        validation=[_validation(line, ledger, clip(windows, line["t"])) for line in evaluations],
        final_validation=final,
        perplexity=_perplexity(final),
    )


def _validation(line: Line, ledger: Ledger, windows: Sequence[Window]) -> Validation:
    """One evaluation, with the energy and time on the bill by then."""
    return Validation(
        step=line["step"],
        tokens=line["tokens"],
        loss=line["loss"],
        energy_j=ledger.total(windows).value,
        time_s=seconds(windows) if windows else None,
        accuracy=accuracy_of(line),
    )


def _loss_unit(header: Line) -> str:
    """What a run's losses are in: a prediction is the next token, a masked token, or the class of a document."""
    return {"masked": "nat/masked token", "classification": "nat/document"}.get(
        header["config"].get("task", "causal"), "nat/token"
    )


def _final(evaluations: Sequence[Line], status: str, unit: str) -> Quantity:
    """The last validation loss; of a run that did not end well, the last one there is, and the source says so."""
    boundary = "validation split"
    if not evaluations:
        return missing(unit, source=f"no evaluation; the run ended as {status}", boundary=boundary)
    last = evaluations[-1]
    source = f"evaluation after step {last['step']}"
    if status not in ENDED_WELL:
        source += f", the last one of a run that ended as {status}"
    if last["loss"] is None:
        return missing(unit, source=f"{source}: the loss was not finite", boundary=boundary)
    if last["stderr"] is None:
        return Quantity(value=last["loss"], unit=unit, method="measured", source=source, boundary=boundary)
    # A spread between few micro-batches is known poorly itself, which Student's distribution accounts for.
    batches = last.get("batches")
    factor = COVERAGE_FACTOR if batches is None else float(student.ppf(0.975, batches - 1))
    half = factor * last["stderr"]
    return Quantity(
        value=last["loss"], unit=unit, low=max(0.0, last["loss"] - half), high=last["loss"] + half,
        u_random=last["stderr"], u_systematic=0.0, method="measured", source=source, boundary=boundary,
    )  # fmt: skip


def _perplexity(loss: Quantity) -> Quantity:
    """Exp of a loss, its interval carried along; the exponential keeps order, so ends map to ends."""
    source = f"exp of: {loss.source}"
    if loss.value is None or loss.value > _LARGEST_EXPONENT:
        return missing("1", source=source if loss.value is None else f"{source}: too large", boundary=loss.boundary)
    low, high = (None if end is None else math.exp(min(end, _LARGEST_EXPONENT)) for end in (loss.low, loss.high))
    value = math.exp(loss.value)
    spread = None if loss.u_random is None else value * loss.u_random
    return Quantity(
        value=value, unit="1", low=low, high=high, u_random=spread, u_systematic=loss.u_systematic, method=loss.method,
        source=source, boundary=loss.boundary,
    )  # fmt: skip


def _teacher(header: Line) -> Teacher | None:
    teacher = header["teacher"]
    if teacher is None:
        return None
    return Teacher(run_id=teacher["run_id"], training_energy=Quantity(**teacher["energy"]))


def _origin(header: Line) -> Origin | None:
    origin = header.get("origin")
    if origin is None:
        return None
    return Origin(**{**origin, "training_energy": Quantity(**origin["training_energy"])})
