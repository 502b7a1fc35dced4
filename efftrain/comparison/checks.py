"""Expectations held against the figures: what cannot be true, and what a reader must know before believing the rest.

A check is `failed` where a figure contradicts physics or the study contradicts its own rules, a `warning` where a
figure is weaker than it looks, `skipped` where what it needs is missing, and `passed` otherwise. Passed ones are kept:
a reader should see what was looked at.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from efftrain.comparison.corpora import corpus_of, differences
from efftrain.comparison.statistics import MIN_PAIRS
from efftrain.comparison.verdicts import COUNTED, METRICS
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Check, Run, VariantSummary

Outcome = tuple[Literal["passed", "warning", "failed", "skipped"], str]

TOKENS_PER_PARAMETER = 20.0
"""About what compute-optimal training takes (Hoffmann et al. 2022, arXiv:2203.15556, table 3)."""

PREDICTION_TOLERANCE = 0.05
IDLE_TOLERANCE = 0.1


def run_checks(run: Run) -> list[Check]:
    """All expectations on one run, in a fixed order."""
    return [_check(name, check(run)) for name, check in RUN_CHECKS.items()]


def study_checks(
    runs: Sequence[Run], summaries: Sequence[VariantSummary], settings: Mapping[str, Any] | None = None
) -> list[Check]:
    """All expectations on a study as a whole, in a fixed order.

    Args:
        runs: the study's runs, of whatever status.
        summaries: what `verdicts.compare` made of them.
        settings: the study's, with `idle_before` and `idle_after` where idle power was read.
    """
    done = [r for r in runs if r.status in COUNTED]
    return [
        _check("same_tokens", _same_tokens(done)),
        _check("same_corpus", _same_corpus(runs)),
        _check("same_devices", _same_devices(runs)),
        _check("enough_seeds", _enough_seeds(summaries)),
        _check("recompute_costs_energy", _recompute_costs(done, summaries)),
        _check("idle_steady", _idle_steady(settings or {})),
    ]


def _check(name: str, outcome: Outcome) -> Check:
    status, detail = outcome
    return Check(name=name, status=status, detail=detail)


def _complete(run: Run) -> Outcome:
    if run.status in COUNTED:
        return "passed", f"ended as {run.status}"
    why = "".join(f"; {note.splitlines()[-1]}" for note in run.notes if note.startswith(f"{run.status}: "))
    return "failed", f"ended as {run.status} after {run.steps} steps: it enters no mean and no ratio{why}"


def _below_peak(run: Run) -> Outcome:
    known = {"MFU": _share_of_peak(run, run.flops.mfu, "model"), "HFU": _share_of_peak(run, run.flops.hfu, "hardware")}
    figures = ", ".join(f"{name} {value:.1%}" for name, value in known.items() if value is not None)
    peak = run.flops.peak_rate
    if any(value is not None and value > 1 for value in known.values()):
        return "failed", (
            f"{figures}: above 100 %, so the peak rate, the FLOPs or the time is wrong; peak rate: {peak.source}"
            + ("; without peaks.json in efftrain's cache it is measured anew" if peak.method == "measured" else "")
        )
    if not figures:
        return "skipped", f"no MFU: {run.flops.mfu.source}"
    if peak.lower_bound:
        return "warning", f"{figures} at most: {peak.source}"
    return "passed", figures


def _share_of_peak(run: Run, utilization: Quantity, kind: Literal["model", "hardware"]) -> float | None:
    """A utilization, or the impossible one for which it was left out; None: not known."""
    if utilization.value is not None:
        return utilization.value
    flops = run.flops.model_per_step.value if kind == "model" else run.flops.hardware_per_step.value
    peak, seconds = run.flops.peak_rate.value, run.time.step.value
    reached = flops / seconds / peak if flops is not None and peak and seconds else 0.0
    return reached if reached > 1 else None


def _hfu_at_least_mfu(run: Run) -> Outcome:
    mfu, hfu = run.flops.mfu.value, run.flops.hfu.value
    if mfu is None or hfu is None:
        return "skipped", "MFU or HFU is missing"
    if hfu < mfu * (1 - 1e-9):
        return "failed", f"HFU {hfu:.1%} is below MFU {mfu:.1%}: the hardware cannot do less than the model asks for"
    return "passed", f"HFU {hfu:.1%}, MFU {mfu:.1%}"


def _energy_complete(run: Run) -> Outcome:
    if run.energy.total.value is None:
        return "warning", f"no energy at all: {run.energy.total.source}"
    absent = [f"{name} ({q.source})" for name, q in run.energy.components.items() if q.value is None]
    cut = [f"{name} (not read all the time)" for name, q in run.energy.components.items() if q.value and q.lower_bound]
    if absent or cut:
        return "warning", f"energy is a lower bound; missing: {', '.join(absent + cut)}"
    return "passed", "every component that the machine has was read"


def _energy_measured(run: Run) -> Outcome:
    weak = [f"{name}: {q.source}" for name, q in run.energy.components.items() if q.method == "assumed"]
    if weak:
        return "warning", f"energy is assumed, not measured: {'; '.join(weak)}"
    if run.energy.total.value is None:
        return "skipped", "no energy"
    return "passed", f"energy is {run.energy.total.method}"


def _energy_floor(run: Run) -> Outcome:
    """Energy of the GPUs against model FLOPs at the best rate for each watt of the power limit."""
    limits = [d.get("power_limit_w") for d in _devices(run)]
    watts = [float(w) for w in limits if isinstance(w, int | float) and w > 0]
    peak, flops, spent = run.flops.peak_rate.value, run.flops.model_per_step.value, run.energy.components.get("gpu")
    if not watts or not peak or flops is None or spent is None or spent.value is None:
        return "skipped", "it takes a peak rate, a power limit and the GPU's energy"
    floor = flops * run.steps / (peak / min(watts))
    if spent.value < floor and not spent.lower_bound:
        return "warning", (
            f"the GPU used {spent.value:.3g} J, less than the {floor:.3g} J that the model's FLOPs take at its peak "
            "rate and power limit: energy or FLOPs are wrong, or it runs far below its limit"
        )
    return "passed", f"{spent.value:.3g} J, at least the {floor:.3g} J of its peak rate at its power limit"


def _tokens_per_parameter(run: Run) -> Outcome:
    if not run.parameters:
        return "skipped", "the number of parameters is unknown"
    if run.origin:
        return "skipped", "the training began with a checkpoint, which these tokens are not all of"
    ratio = run.tokens / run.parameters
    if ratio < TOKENS_PER_PARAMETER:
        return "warning", f"{ratio:.2g} tokens per parameter; below about 20 they are too few for a verdict on quality"
    return "passed", f"{ratio:.3g} tokens per parameter"


def _memory_predicted(run: Run) -> Outcome:
    peak, predicted = run.memory.peak.value, run.memory.predicted_peak.value
    if not peak or predicted is None:
        return "skipped", "the peak or its prediction is missing"
    error = predicted / peak - 1
    if abs(error) > PREDICTION_TOLERANCE:
        return "warning", f"predicted peak memory is off by {error:+.1%}"
    return "passed", f"predicted peak memory is off by {error:+.1%}"


def _below_unigram(run: Run) -> Outcome:
    if run.classification is not None:
        return "skipped", "a classifier predicts classes, and no tokens"
    entropy, loss = corpus_of(run).get("unigram_entropy"), run.loss.final_validation.value
    if not isinstance(entropy, int | float) or loss is None:
        return "skipped", "the final loss or the unigram entropy of its tokens is missing"
    words = f"final loss {loss:.3f}, unigram entropy {entropy:.3f} nat/token"
    if loss > entropy:
        return "warning", f"{words}: the model has learnt less than how often each token occurs"
    return "passed", words


def _sensors_kept(run: Run) -> Outcome:
    lost = [
        note for note in run.notes if re.search(r"sensor", note, re.I) and re.search(r"\blost\b|vanish", note, re.I)
    ]
    if lost:
        return "warning", "; ".join(lost)
    return "passed", "no sensor was lost"


RUN_CHECKS: dict[str, Callable[[Run], Outcome]] = {
    "run_complete": _complete,
    "utilization_below_peak": _below_peak,
    "hfu_at_least_mfu": _hfu_at_least_mfu,
    "energy_above_device_floor": _energy_floor,
    "energy_complete": _energy_complete,
    "energy_measured": _energy_measured,
    "sensors_kept": _sensors_kept,
    "memory_as_predicted": _memory_predicted,
    "loss_below_unigram_entropy": _below_unigram,
    "tokens_per_parameter": _tokens_per_parameter,
}


def _same_tokens(done: Sequence[Run]) -> Outcome:
    tokens = {r.variant: r.tokens for r in done if r.status == "complete"}
    counts = {r.tokens for r in done if r.status == "complete"}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
        return "failed", f"finished runs were trained on different numbers of tokens: {listed}"
    return ("passed", f"{counts.pop():,} tokens each") if counts else ("skipped", "no finished run")


def _same_corpus(runs: Sequence[Run]) -> Outcome:
    """Whether what runs were trained on is the same: the files, and what was made of them."""
    known = [run for run in runs if corpus_of(run).get("sha256")]
    if not known:
        return "skipped", "no run names its corpus"
    if found := differences(known):
        return "failed", f"runs were trained on different data: {'; '.join(found)}; losses cannot be compared"
    return "passed", f"one text, sha256 {corpus_of(known[0])['sha256'][:12]}, prepared in one way"


def _same_devices(runs: Sequence[Run]) -> Outcome:
    sets = {_machine(r) for r in runs} - {""}
    if len(sets) > 1:
        return "failed", f"runs used different devices: {' | '.join(sorted(sets))}; gain errors do not cancel in ratios"
    return ("passed", sets.pop()) if sets else ("skipped", "no run names its devices")


def _enough_seeds(summaries: Sequence[VariantSummary]) -> Outcome:
    pairs = {s.name: s.ratios["energy_per_token"].pairs for s in summaries if "energy_per_token" in s.ratios}
    few = [f"{name} {count}" for name, count in pairs.items() if count < MIN_PAIRS]
    if few:
        return "warning", f"pairs of seeds: {', '.join(few)}; below {MIN_PAIRS} no difference reaches p < 0.05"
    return ("passed", f"at least {min(pairs.values())} pairs of seeds") if pairs else ("skipped", "nothing to compare")


def _recompute_costs(done: Sequence[Run], summaries: Sequence[VariantSummary]) -> Outcome:
    """Recomputation does more work on the same batch; if it looks cheaper, something else changed."""
    margin = METRICS["energy_per_token"].margin
    batch = {r.variant: r.tokens / r.steps for r in done if r.steps}
    base = {batch.get(s.name) for s in summaries if not s.ratios and not s.skipped}
    alike = {r.variant for r in done if _recomputes(r) and batch.get(r.variant) in base}
    known = {s.name: s.ratios["energy_per_token"].ratio for s in summaries if s.ratios and s.name in alike}
    ratios = {name: ratio for name, ratio in known.items() if ratio is not None}
    listed = ", ".join(f"{name} ×{ratio:.3f}" for name, ratio in ratios.items())
    if any(ratio < 1 - margin for ratio in ratios.values()):
        return "warning", f"recomputation seems to cost less energy per token than not, at the same batch: {listed}"
    if not ratios:
        return "skipped", "no variant recomputes at the baseline's batch"
    return "passed", f"recomputation's energy per token against the baseline, at the same batch: {listed}"


def _idle_steady(settings: Mapping[str, Any]) -> Outcome:
    """Idle power before and after a study: where it moved, so did what lies below every figure above idle."""
    before, after = settings.get("idle_before") or {}, settings.get("idle_after") or {}
    pairs = {name: (before[name]["watts"], after[name]["watts"]) for name in before if name in after}
    told = ", ".join(f"{name} {first:.3g} W before, {last:.3g} W after" for name, (first, last) in pairs.items())
    if not pairs:
        return "skipped", "no idle power was read before and after"
    if any(abs(last - first) > IDLE_TOLERANCE * first for first, last in pairs.values()):
        return "warning", f"idle power moved: {told}; energy above idle is that uncertain"
    return "passed", told


def _recomputes(run: Run) -> bool:
    cost = run.flops.phases.get("recompute")
    return bool(cost and cost.hardware.value)


def _machine(run: Run) -> str:
    """The accelerators of a run by UUID, or its processor by model and threads; empty where neither is named."""
    devices = ", ".join(sorted(str(d.get("uuid") or d.get("name")) for d in _devices(run)))
    cpu = run.environment.get("cpu")
    return devices or (f"{cpu.get('model')}, {cpu.get('threads')} threads" if isinstance(cpu, dict) else "")


def _devices(run: Run) -> list[dict[str, Any]]:
    devices = run.environment.get("devices")
    return [d for d in devices if isinstance(d, dict)] if isinstance(devices, list) else []
