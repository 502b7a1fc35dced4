"""Hand-written records for tests of comparison and report: a small CPU machine and a GPU server, whole or damaged."""

import math
from dataclasses import dataclass, replace
from typing import Any

from efftrain.record.quantities import Quantity, estimate, exact, missing, scaled, total
from efftrain.record.schema import (
    Carbon,
    CostRow,
    Energy,
    Flops,
    Loss,
    Memory,
    PhaseCost,
    RegionCarbon,
    Run,
    Time,
    Validation,
)

CPU_SECONDS = "process CPU time × 4 W (2 to 10) per busy thread"
BOUNDARY = "compilation, calibration, teacher passes, training and evaluation; not warm-up, not idle"
GRIDS = {"FRA": 56.0, "SWE": 36.0, "DEU": 381.0, "USA": 369.0, "CHN": 582.0, "IND": 713.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a test decides about a run; everything else follows."""

    variant: str = "baseline"
    seed: int = 0
    status: str = "complete"
    steps: int = 600
    tokens_per_step: int = 512
    parameters: int = 860_000
    step_s: float = 0.042
    joules: float = 200.0
    final: float = 4.43
    memory: float = 276 * 2**20
    recompute: bool = False
    gpu: bool = False
    corpus: str = "ab" * 32
    device: str = "GPU-1234"
    threads: int = 2
    mfu: float | None = 0.31
    hfu: float | None = 0.31
    peak: float | None = 1.2e11
    intensity: float = 481.0
    notes: tuple[str, ...] = ()
    power_limit_w: float | None = None
    predicted: float | None = None


def run_record(**choices: Any) -> Run:
    """A run that follows `Plan(**choices)`."""
    plan = Plan(**choices)
    energy = _energy(plan)
    tokens = plan.steps * plan.tokens_per_step
    return Run(
        schema="efftrain.run/1",
        run_id=f"{plan.variant}-s{plan.seed}",
        study_id="quick",
        variant=plan.variant,
        seed=plan.seed,
        status=plan.status,
        steps=plan.steps,
        tokens=tokens,
        parameters=plan.parameters,
        config={"steps": 600, "precision": "bf16" if plan.variant == "bf16" else "fp32"},
        environment=_environment(plan),
        loss=_loss(plan),
        energy=energy,
        carbon=_carbon(plan, energy.total, tokens),
        flops=_flops(plan),
        memory=_memory(plan),
        time=_time(plan, tokens),
        checks=[],
        notes=list(plan.notes),
    )


def _environment(plan: Plan) -> dict[str, Any]:
    limit = plan.power_limit_w or 700.0
    board = {"name": "NVIDIA H200", "uuid": plan.device, "power_limit_w": limit}
    return {
        "device": "cuda" if plan.gpu else "cpu",
        "devices": [board] if plan.gpu else [],
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "platform": "Linux x86_64",
        "cpu": {"model": "Intel(R) Xeon(R) Processor", "cores": 2, "threads": plan.threads, "guest": True},
        "memory_bytes": 25_276_502_016,
        "corpus": {
            "name": "Python standard library",
            "sha256": plan.corpus,
            "characters": 11_100_000,
            "tokens": 3_900_000,
            "vocab_size": 1024,
            "unigram_entropy": 5.95,
        },
    }


def loss_at(plan: Plan, step: int) -> float:
    """A smooth curve from about 6.9 nat to `plan.final` at the last planned step."""
    fall = 2.5
    return plan.final + fall * (math.exp(-step / 150) - math.exp(-600 / 150))


def _loss(plan: Plan) -> Loss:
    diverged = plan.status == "diverged"
    train = [None if diverged and s == plan.steps else loss_at(plan, s) for s in range(1, plan.steps + 1)]
    validation = [
        Validation(
            step=s, tokens=s * plan.tokens_per_step, loss=None if diverged and s == plan.steps else loss_at(plan, s),
            energy_j=plan.joules * s / 600, time_s=plan.step_s * s,
        )
        for s in range(100, plan.steps + 1, 100)
    ]  # fmt: skip
    last = validation[-1].loss if validation else None
    final = (
        missing("nat/token", source="no finite evaluation")
        if last is None
        else estimate(last, "nat/token", method="measured", source="mean over 64 validation batches", u_random=0.006)
    )
    return Loss(
        train=train,
        validation=validation,
        final_validation=final,
        perplexity=missing("1", source="no perplexity in this record"),
    )


def _energy(plan: Plan) -> Energy:
    spent = plan.joules * plan.steps / 600
    components = _gpu_components(spent) if plan.gpu else {"cpu": _assumed_cpu(spent)}
    components["rest_of_node"] = missing("J", source="no meter at the plug")
    whole = total(list(components.values()), boundary=BOUNDARY)
    tokens = plan.steps * plan.tokens_per_step
    per_token = scaled(whole, 1 / tokens, "J/token") if tokens else missing("J/token", source="no token was trained")
    absent = missing("J", source="a modelled sensor has no idle reading")
    return Energy(
        components=components, total=whole, idle=absent, above_idle=absent, per_token=per_token,
        phases={}, closure=missing("1", source="phase energy is not yet attributed"),
    )  # fmt: skip


def _assumed_cpu(joules: float) -> Quantity:
    limits = (joules / 2, joules * 2.5)
    return estimate(joules, "J", method="assumed", source=CPU_SECONDS, boundary="this process", limits=limits)


def _gpu_components(joules: float) -> dict[str, Quantity]:
    return {
        "gpu": estimate(
            joules * 0.9, "J", method="measured", source="NVML total energy counter", u_systematic=joules * 0.023,
            u_random=joules * 0.002,
        ),
        "cpu": estimate(
            joules * 0.1, "J", method="modelled", source="CPU time × TDP / cores", limits=(joules * 0.06, joules * 0.15)
        ),
        "dram": missing("J", source="RAPL dram: permission denied"),
    }  # fmt: skip


def _carbon(plan: Plan, energy: Quantity, tokens: int) -> Carbon:
    intensity = estimate(
        plan.intensity, "g/kWh", method="assumed", source="world average, generation-weighted, 2023, lifecycle",
        limits=(56.0, 713.0),
    )  # fmt: skip
    operational = scaled(energy, plan.intensity / 3.6e6, "g", source="energy × PUE × intensity")
    embodied = missing("g", source="embodied carbon is not counted yet")
    whole = total([operational, embodied], boundary="operational and embodied")
    flops = 1e18
    regions = [
        RegionCarbon(
            location=name,
            intensity=exact(grams, "g/kWh", source="yearly average, 2023, lifecycle", method="modelled"),
            total=scaled(energy, grams / 3.6e6, "g"),
        )
        for name, grams in GRIDS.items()
    ]
    return Carbon(
        location="world average",
        intensity=intensity,
        pue=exact(1.0, "1", source="no PUE given: facility overhead is not counted", method="assumed"),
        operational=operational,
        embodied=embodied,
        total=whole,
        per_token=scaled(whole, 1 / tokens, "g/token") if tokens else missing("g/token", source="no token"),
        per_exaflop=scaled(whole, 1e18 / flops, "g/EFLOP"),
        regions=regions,
    )


def _flops(plan: Plan) -> Flops:
    source = "counted on fake tensors"
    model = exact(2.9e9, "FLOP", source=source)
    forward, backward = 1e9, 1.9e9
    costs = {"forward": forward, "backward": backward} | ({"recompute": 0.9e9} if plan.recompute else {})
    absent = missing("1", source="the peak rate of this device is not known")
    return Flops(
        convention="6N + 12·L·H·Q·T per token (PaLM, arXiv:2204.02311, appendix B)",
        model_per_step=model,
        hardware_per_step=exact(sum(costs.values()), "FLOP", source=source),
        mfu=absent if plan.mfu is None else estimate(plan.mfu, "1", method="measured", source=source, u_random=0.004),
        hfu=absent if plan.hfu is None else estimate(plan.hfu, "1", method="measured", source=source, u_random=0.004),
        peak_rate=missing("FLOP/s", source="unknown device")
        if plan.peak is None
        else exact(plan.peak, "FLOP/s", source="calibrated: largest of 12 matrix products"),
        phases={
            name: PhaseCost(
                hardware=exact(flops, "FLOP", source=source),
                model=exact(0 if name == "recompute" else flops, "FLOP", source=source),
                bytes=exact(flops / 20, "B", source=source),
            )
            for name, flops in costs.items()
        },
        modules=[CostRow(name="blocks.0.mlp", calls=3, hardware_flops=10, model_flops=10, bytes=5)],
        ops=[CostRow(name="aten.mm", calls=40, hardware_flops=10, model_flops=10, bytes=5)],
    )


def _memory(plan: Plan) -> Memory:
    peak = exact(plan.memory, "B", source="allocations of two warm-up steps")
    predicted = plan.predicted or plan.memory
    return Memory(
        peak=peak,
        peak_phase="backward",
        predicted_peak=exact(predicted, "B", source="MemTracker on fake tensors", method="modelled"),
        categories={"parameters": exact(plan.parameters * 4, "B", source="MemTracker", method="modelled")},
        unexplained=exact(plan.memory - predicted, "B", source="peak − predicted peak"),
        process_peak=exact(761 * 2**20, "B", source="resident set high-water mark"),
    )


def _time(plan: Plan, tokens: int) -> Time:
    source = "step marks"
    if not plan.steps:
        absent = missing("s", source="no step was finished")
        return Time(total=absent, step=absent, tokens_per_second=replace(absent, unit="token/s"), phases={})
    shares = {"data": 0.01, "forward": 0.33, "backward": 0.58, "optimizer": 0.08}
    step = estimate(plan.step_s, "s", method="measured", source=source, u_random=plan.step_s * 0.004)
    rate = plan.tokens_per_step / plan.step_s
    return Time(
        total=exact(plan.step_s * plan.steps, "s", source=source),
        step=step,
        tokens_per_second=estimate(rate, "token/s", method="measured", source=source, u_random=rate * 0.004),
        phases={
            name: estimate(plan.step_s * share, "s", method="measured", source=source, u_random=1e-5)
            for name, share in shares.items()
        },
        spans={"evaluate": exact(1.3, "s", source="span marks")},
    )
