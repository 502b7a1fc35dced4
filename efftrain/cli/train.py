"""`efftrain train`: one training, with the same figures as a study."""

from pathlib import Path
from typing import Annotated

import typer

from efftrain.cli import options


def train(
    context: typer.Context,
    *,
    variant: Annotated[str, typer.Option(help="What to train; see --variants of efftrain bench.")] = "baseline",
    seed: Annotated[int, typer.Option(help="Of weights, batches and dropout.")] = 0,
    preset: options.Preset = "quick",
    model: options.Model = None,
    data: options.Data = None,
    steps: options.Steps = None,
    tokens: options.Tokens = None,
    device: options.Device = "auto",
    attention: options.Attention = "sdpa",
    optimizer: options.Optimizer = "torch",
    country: options.Country = None,
    region: options.Region = None,
    intensity: options.Intensity = None,
    pue: options.Pue = None,
    phase_energy: options.PhaseEnergy = "regression",
    node_overhead_w: options.NodeOverhead = None,
    market_intensity: options.MarketIntensity = None,
    intensity_profile: options.IntensityProfile = None,
    wue: options.Wue = None,
    lifetime_years: options.LifetimeYears = None,
    utilization: options.Utilization = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """Train once and report what it cost."""
    from efftrain.cli.study import run_new, run_on
    from efftrain.hardware.probe import available_device
    from efftrain.meters.carbon.footprint import resolve
    from efftrain.study.plan import Request

    out = out or Path("reports/train")
    with options.usage_errors():
        if resume:
            options.nothing_beside_resume(context)
            run_on(out)
        request = Request(
            preset=preset, variants=(variant,), model=model, data=data, seeds=1, first_seed=seed, steps=steps,
            tokens=tokens, device=available_device(device), attention=options.attention(attention),
            optimizer=options.optimizer(optimizer),
        )  # fmt: skip
        carbon = resolve(
            country, region, intensity, pue, market_intensity=market_intensity, wue=wue, profile=intensity_profile,
            lifetime_years=lifetime_years, utilization=utilization,
        )  # fmt: skip
        overhead = options.watts(node_overhead_w, "--node-overhead-w")
        settings = {
            "carbon": carbon, "node_overhead_w": overhead, "phase_energy": options.phase_energy(phase_energy),
        }  # fmt: skip
        run_new(request, settings, out, force=force)
