"""`efftrain bench`: compare variants of a training on this machine."""

from pathlib import Path

import typer

from efftrain.cli import options
from efftrain.cli.groups import BillOptions, StudyOptions, TrainingOptions, grouped


@grouped
def bench(
    context: typer.Context,
    *,
    preset: options.Preset = "quick",
    variants: options.Variants = None,
    seeds: options.Seeds = None,
    training: TrainingOptions,
    bill: BillOptions,
    study: StudyOptions,
) -> None:
    """Train variants on the same tokens, each run in a fresh process, and compare what they cost."""
    from efftrain.cli.study import run_new, run_on, settings, wish

    out = study.out or Path("reports") / preset
    with options.usage_errors():
        if study.resume:
            options.nothing_beside_resume(context)
            run_on(out)
        names = options.names(variants, "--variants")
        request = wish(training, preset=preset, variants=names, seeds=seeds)
        run_new(request, settings(bill, study, training.text), out, force=study.force)
