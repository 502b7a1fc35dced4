"""`efftrain train`: one training, and what it cost."""

from pathlib import Path
from typing import Annotated

import typer

from efftrain.cli import options
from efftrain.cli.groups import BillOptions, StudyOptions, TrainingOptions, grouped


@grouped
def train(
    context: typer.Context,
    *,
    variant: options.Variant = "baseline",
    seed: Annotated[int, typer.Option(help="Of weights, batches and dropout.")] = 0,
    preset: options.Preset = "quick",
    training: TrainingOptions,
    bill: BillOptions,
    study: StudyOptions,
) -> None:
    """Train once and report what it cost."""
    from efftrain.cli.study import run_new, run_on, settings, wish

    out = study.out or Path("reports/train")
    with options.usage_errors():
        if study.resume:
            options.nothing_beside_resume(context)
            run_on(out)
        request = wish(training, preset=preset, variants=(variant,), seeds=1, first_seed=seed)
        run_new(request, settings(bill, study, training.text), out, force=study.force)
