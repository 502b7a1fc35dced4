"""What a report says about a study, before it is laid out.

Terminal, Markdown and HTML say the same things in the same order; this file decides what those are. Means are over the
runs that ended as planned; a run that did not is named, with how far it came.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from efftrain.comparison.checks import TOKENS_PER_PARAMETER
from efftrain.comparison.statistics import MIN_PAIRS, mean_of
from efftrain.comparison.verdicts import COUNTED, METRICS, counted
from efftrain.record.quantities import Quantity, missing
from efftrain.record.schema import Ratio, Run, Study, VariantSummary, Verdict
from efftrain.report.attempts_view import attempt_lines
from efftrain.report.carbon_exports import main_run
from efftrain.report.carbon_view import CarbonRow, carbon_legend, carbon_rows, region_rows
from efftrain.report.figures import FIGURES
from efftrain.report.flags import Flag, run_flags, study_flags
from efftrain.report.format import change, figure, number
from efftrain.report.origin_view import origin_lines

VERDICTS: tuple[Verdict, ...] = ("better", "worse", "equivalent", "inconclusive")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantView:
    """A variant that ran: its summary, its runs, and the means of its finished runs by the names of `FIGURES`."""

    summary: VariantSummary
    runs: list[Run]
    finished: int
    means: dict[str, Quantity]
    energy_like: float | None = None
    """J/token whose prefix the energies of all variants take."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.summary.name

    @property
    def runs_ok(self) -> str:
        """Finished and all runs: `2/2`."""
        return f"{self.finished}/{len(self.runs)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything that a report says, in order."""

    study: Study
    subtitle: str
    flags: list[Flag]
    variants: list[VariantView]
    findings: list[str]
    legend: list[str]
    not_run: list[tuple[str, str]]
    unfinished: list[str]
    notes: list[str]
    provenance: list[tuple[str, str]]
    carbon_of: str
    carbon: list[CarbonRow]
    regions: list[tuple[str, str, str]]

    def flagged(self, *statuses: str) -> list[Flag]:
        """Flags of the statuses given, in that order."""
        return [flag for status in statuses for flag in self.flags if flag.status == status]


def overview(study: Study, runs: Sequence[Run]) -> Overview:
    """What there is to say about `study` and its `runs`."""
    variants = _alike([_variant(s, runs) for s in study.variants if not s.skipped])
    shown = main_run(study, runs) or next(iter(_shown(runs)), None)
    return Overview(
        study=study,
        subtitle="; ".join([_subtitle(variants, runs), *_skipped(study, variants)]),
        flags=[*study_flags(study.checks), *run_flags(runs)],
        variants=variants,
        findings=_findings(variants),
        legend=_legend(study, variants, runs),
        not_run=[(s.name, s.reason or "no reason was recorded") for s in study.variants if s.skipped or s.reason],
        unfinished=[_unfinished(r) for r in runs if r.status not in COUNTED],
        notes=[f"{r.run_id}: {note}" for r in runs for note in r.notes],
        provenance=_provenance(study, runs),
        carbon_of=shown.run_id if shown else "",
        carbon=carbon_rows(shown),
        regions=region_rows(shown),
    )


def _shown(runs: Sequence[Run]) -> list[Run]:
    """The runs whose figures are shown: those that ended as planned, and a single one whatever its end."""
    return [run for run in runs if run.status in COUNTED] or list(runs if len(runs) == 1 else ())


def devices_of(run: Run) -> str:
    """The names of the accelerators that a run used, or of its processor where it used none."""
    devices = run.environment.get("devices")
    names = [str(d.get("name", "unnamed")) for d in devices or [] if isinstance(d, dict)]
    cpu = run.environment.get("cpu")
    if not names and isinstance(cpu, dict):
        names = [f"{cpu.get('model', 'an unnamed processor')}, {_count(cpu.get('threads', 0), 'thread')}"]
    return ", ".join(names) or "an unnamed device"


def _variant(summary: VariantSummary, runs: Sequence[Run]) -> VariantView:
    own = sorted((r for r in runs if r.variant == summary.name), key=lambda r: r.seed)
    done = counted(own, summary.name)
    none = missing("1", source="no run of this variant ended as planned")
    means = {name: mean_of([f.take(r) for r in done]) if done else none for name, f in FIGURES.items()}
    return VariantView(summary=summary, runs=own, finished=len(done), means=means)


def _alike(variants: list[VariantView]) -> list[VariantView]:
    """The variants with one prefix for their energies: that of the smallest."""
    known = [q.value for view in variants if (q := view.means["energy_per_token"]).value]
    return [replace(view, energy_like=min(known, default=None)) for view in variants]


def _subtitle(variants: Sequence[VariantView], runs: Sequence[Run]) -> str:
    if not runs:
        return "no run was recorded"
    if len(runs) == 1:
        what = f"one run of {runs[0].ranks} ranks" if runs[0].ranks > 1 else "one run"
        return f"{what} on {devices_of(runs[0])}; it ended as {runs[0].status}"
    seeds = len({r.seed for r in runs})
    what = f"{_count(len(variants), 'variant')} × {_count(seeds, 'seed')} on {devices_of(runs[0])}"
    return f"{what}; {sum(v.finished for v in variants)} of {_count(len(runs), 'run')} ended as planned"


def _skipped(study: Study, variants: Sequence[VariantView]) -> list[str]:
    """How many of the variants have figures, and why others were never begun; nothing where none was left out."""
    why: dict[str, list[str]] = {}
    for summary in study.variants:
        if summary.skipped:
            why.setdefault(summary.reason or "no reason was recorded", []).append(summary.name)
    if not (why and variants):
        return []
    measured, asked = sum(v.finished > 0 for v in variants), _count(len(study.variants), "variant")
    listed = "; ".join(f"{', '.join(names)} skipped: {reason}" for reason, names in why.items())
    return [f"{measured} of {asked} measured, {listed}"]


def _findings(variants: Sequence[VariantView]) -> list[str]:
    """One sentence a variant; where no variant has pairs enough for a verdict, one sentence for all."""
    ratios = {v.name: v.summary.ratios for v in variants if v.summary.ratios}
    most = max((r.pairs for named in ratios.values() for r in named.values()), default=0)
    if not ratios:
        return ["Nothing to compare: no variant stands beside the baseline."]
    if not most:
        return ["No verdicts: no seed has both a finished run of a variant and a finished baseline."]
    if most < MIN_PAIRS:
        pairs = _count(most, "pair")
        return [f"No verdicts yet: {pairs} of seeds; at least {MIN_PAIRS} are needed (--seeds {MIN_PAIRS} or more)."]
    return [f"{name}: {_finding(named)}." for name, named in ratios.items()]


def _finding(ratios: dict[str, Ratio]) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for metric, ratio in ratios.items():
        detail = ratio.detail if ratio.verdict == "inconclusive" else ""
        groups.setdefault((ratio.verdict, detail), []).append(_judged(metric, ratio))
    ordered = sorted(groups.items(), key=lambda group: VERDICTS.index(group[0][0]))
    return "; ".join(
        f"{verdict} in {', '.join(said)}{f' ({detail})' if detail else ''}" for (verdict, detail), said in ordered
    )


def _judged(metric: str, ratio: Ratio) -> str:
    """A metric with its change, if it has one, and a word of caution if that is of no consequence."""
    known = METRICS[metric]
    if ratio.ratio is None or ratio.verdict not in ("better", "worse"):
        return known.label
    slight = f", less than {100 * known.margin:g} % matters little" if abs(ratio.ratio - 1) < known.margin else ""
    return f"{known.label} ({change(ratio)}{slight})"


def _legend(study: Study, variants: Sequence[VariantView], runs: Sequence[Run]) -> list[str]:
    done = _shown(runs)
    if not done:
        return []
    lines = [
        f"{'Figures are means over seeds; ' if len(runs) > 1 else ''}[ ] is a 95 % interval of what was read.",
        *_ratio_legend(study, variants),
        *_energy_legend(done),
        *_teacher_legend(variants),
        *attempt_lines(runs),
        *origin_lines(done),
    ]
    if any(v.summary.on_pareto_front for v in variants) and len(variants) > 1:
        lines.append("* no other variant has both less energy per token and a lower final loss.")
    shown = main_run(study, done) or done[0]
    return [*lines, *carbon_legend(shown), *_tokens_statement(variants)]


def _ratio_legend(study: Study, variants: Sequence[VariantView]) -> list[str]:
    pairs = {r.pairs for v in variants for r in v.summary.ratios.values() if r.pairs}
    if not pairs:
        return []
    count = f"{min(pairs)} to {max(pairs)} pairs" if len(pairs) > 1 else _count(max(pairs), "pair")
    return [
        f"× is the ratio to {study.baseline} with the same seed: geometric mean of {count}, its interval is "
        "Student's t on logarithms.",
        f"Energy to target: until the final validation loss of {study.baseline} is reached; ≥ where it never was.",
    ]


def _energy_legend(done: Sequence[Run]) -> list[str]:
    """What the joules are made of, and what they lack."""
    sources: dict[str, None] = {}  # a set that keeps its order
    for name, q in (item for r in done for item in r.energy.components.items()):
        if q.value is not None:
            sources[f"Energy of {_words(name)}: {q.method}, {q.source}."] = None
    absent = _absent(done)
    return [*sources, *([f"≥ is a lower bound; not read here: {', '.join(absent)}."] if absent else [])]


def _teacher_legend(variants: Sequence[VariantView]) -> list[str]:
    """What the teachers of each taught variant cost to train: apart, because one teacher may serve many students."""
    lines: list[str] = []
    for view in variants:
        taught = [(r.teacher.training_energy, r.energy.total) for r in view.runs if r.teacher and r.status in COUNTED]
        if not taught:
            continue
        training, own = (mean_of(list(parts)) for parts in zip(*taught, strict=True))
        lines.append(
            f"{view.name}: its teacher's passes are in its bill; training the teacher took "
            f"{figure(training, interval=False)} a run besides its own {figure(own, interval=False)}."
        )
    return lines


def _absent(runs: Sequence[Run]) -> list[str]:
    names = {name for r in runs for name, q in r.energy.components.items() if q.value is None}
    embodied = ["embodied carbon"] if any(r.carbon.embodied.value is None for r in runs) else []
    return [*sorted(_words(name) for name in names), *embodied]


def _tokens_statement(variants: Sequence[VariantView]) -> list[str]:
    afresh = [
        r
        for v in variants
        for r in v.runs
        if r.status in COUNTED and r.parameters and not (r.origin or r.classification)
    ]
    shares = [r.tokens / r.parameters for r in afresh]
    if not shares:
        return []
    least, most = number(min(shares), 2), number(max(shares), 2)
    verdict = (
        "that is too few here: read the losses as a check that training works, not as quality"
        if min(shares) < TOKENS_PER_PARAMETER
        else "that is met"
    )
    return [
        f"Trained on {least if least == most else f'{least} to {most}'} tokens per parameter; about "
        f"{TOKENS_PER_PARAMETER:.0f} are needed before the final loss says something about quality "
        f"(Hoffmann et al. 2022); {verdict}."
    ]


def _unfinished(run: Run) -> str:
    said = [note.removeprefix(f"{run.status}: ") for note in run.notes if note.startswith(f"{run.status}: ")]
    how = f"{run.status} ({said[-1].splitlines()[-1]})" if said else run.status
    done = f" after {run.steps:,} steps and {run.tokens:,} tokens" if run.steps or not said else ""
    return f"{run.run_id}: {how}{done}"


def _provenance(study: Study, runs: Sequence[Run]) -> list[tuple[str, str]]:
    facts = [("command", study.command), ("study", study.study_id), ("created", study.created)]
    if not runs:
        return facts
    run = runs[0]
    settings = {name: value for name, value in study.settings.items() if not isinstance(value, dict | list)}
    known = {**settings, **run.environment, f"configuration of {run.run_id}": run.config}
    return [
        *facts,
        ("trained on", devices_of(run) + (f", {run.ranks} ranks" if run.ranks > 1 else "")),
        *((_words(name), text) for name, value in known.items() if (text := _inline(value))),
        ("peak rate", f"{figure(run.flops.peak_rate)}; {run.flops.peak_rate.source}"),
        ("FLOPs convention", run.flops.convention),
        ("energy counts", run.energy.total.boundary or "not said"),
        ("carbon location", run.carbon.location),
        ("carbon intensity", f"{figure(run.carbon.intensity, tag=True)}; {run.carbon.intensity.source}"),
        ("PUE", f"{figure(run.carbon.pue, tag=True)}; {run.carbon.pue.source}"),
    ]


def _inline(value: Any) -> str:
    """Nested facts on one line, without those that say nothing."""
    match value:
        case dict():
            said = {key: _inline(item) for key, item in value.items()}
            return ", ".join(f"{_words(key)} {text}" for key, text in said.items() if text)
        case list() | tuple():
            return "; ".join(filter(None, map(_inline, value)))
        case None:
            return ""
        case _:
            return str(value)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
