"""Carbon for other tools: a model card's front matter, and a table as codecarbon writes it.

Both want what they define: grams in a model card, kilograms and kilowatt-hours in codecarbon's table. Both take the
operational, location-based part, because that is what other tools put there; what is embodied stands in our reports.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from efftrain.comparison.verdicts import COUNTED
from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run, Study
from efftrain.report.format import figure
from efftrain.version import __version__

JOULES_PER_KWH = 3.6e6
BYTES_PER_GB = 1024**3
"""codecarbon's GB."""

CODECARBON_COLUMNS: tuple[str, ...] = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude",
    "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent",
    "ram_utilization_percent", "ram_used_gb", "on_cloud", "pue", "wue",
)  # fmt: skip
"""Of codecarbon 3.3.2, in its order."""

_COMPONENTS = {"cpu": "cpu", "gpu": "gpu", "ram": "dram"}
"""codecarbon's names and ours."""


def main_run(study: Study, runs: Sequence[Run]) -> Run | None:
    """The run that stands for a study: the baseline's first that ended as planned, or else another's."""
    done = [run for run in runs if run.status in COUNTED]
    return min(done, key=lambda run: (run.variant != study.baseline, run.seed), default=None)


def write_model_card(path: Path, study: Study, runs: Sequence[Run]) -> None:
    """Write the `co2_eq_emissions` of the study's main run as YAML front matter for a Hugging Face model card.

    Emissions are in grams. What training was of what kind is said only where efftrain's own trainer did it.

    Raises:
        OSError: `path` cannot be written.
    """
    run = main_run(study, runs)
    path.write_text("\n".join(["---", *(_card(run) if run else ["# no run ended as planned"]), "---", ""]), "utf-8")


def write_codecarbon_csv(path: Path, study: Study, runs: Sequence[Run]) -> None:
    """Write one row a run with codecarbon's columns, energies and powers with PUE in them as codecarbon has them.

    What is not known is an empty cell, never 0. `energy_consumed` is the whole bill: it exceeds the sum of its three
    parts by the rest of the node.

    Raises:
        OSError: `path` cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CODECARBON_COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_codecarbon_row(study, run) for run in runs)


def _card(run: Run) -> list[str]:
    carbon = run.carbon
    how = f"efftrain {__version__}: energy {run.energy.total.method}, location-based, PUE {figure(carbon.pue)}"
    if carbon.operational.lower_bound:
        how += ", a lower bound"
    if carbon.embodied.present:
        how += f"; embodied {figure(carbon.embodied, interval=False)} besides"
    facts = {
        "emissions": carbon.operational.value,
        "source": how,
        "training_type": "pre-training" if "model" in run.config else None,
        "geographical_location": carbon.location,
        "hardware_used": _hardware(run),
    }
    # JSON's strings and numbers are YAML's too.
    lines = [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items() if value is not None]
    if not carbon.operational.present:
        lines.append(f"  # emissions: missing, {_one_line(carbon.operational.source)}")
    return [f"# {run.run_id} of {_one_line(run.study_id)}; emissions in g", "co2_eq_emissions:", *lines]


def _hardware(run: Run) -> str:
    gpus = _gpus(run)
    cpu = run.environment.get("cpu") or {}
    return gpus or f"{cpu.get('model', 'unknown processor')}, {cpu.get('threads', '?')} threads"


def _gpus(run: Run) -> str:
    """Boards by name as codecarbon writes them: `2 x NVIDIA H100`."""
    names = [str(device.get("name", "unnamed")) for device in run.environment.get("devices") or []]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _codecarbon_row(study: Study, run: Run) -> dict[str, Any]:
    carbon, seconds = run.carbon, run.time.total.value
    grams = carbon.operational.value
    row = {
        "timestamp": _timestamp(study.created),
        "project_name": "efftrain",
        "run_id": run.run_id,
        "experiment_id": run.study_id,
        "duration": seconds,
        "emissions": None if grams is None else grams / 1000,
        "emissions_rate": grams / 1000 / seconds if grams is not None and seconds else None,
        "energy_consumed": _site_kwh(run, run.energy.total),
        "water_consumed": carbon.water.value if carbon.water else None,
        "country_name": carbon.location,
        "country_iso_code": carbon.country,
        "region": carbon.region,
        "pue": carbon.pue.value,
        "wue": carbon.wue.value if carbon.wue else None,
        **_codecarbon_parts(run, seconds),
        **_codecarbon_machine(run.environment),
        "gpu_model": _gpus(run),
    }
    return {name: "" if value is None else value for name, value in row.items()}


def _codecarbon_parts(run: Run, seconds: float | None) -> dict[str, float | None]:
    cells: dict[str, float | None] = {}
    for theirs, ours in _COMPONENTS.items():
        kwh = _site_kwh(run, run.energy.components.get(ours))
        cells[f"{theirs}_energy"] = kwh
        cells[f"{theirs}_power"] = kwh * JOULES_PER_KWH / seconds if kwh is not None and seconds else None
    return cells


def _codecarbon_machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    cpu, memory = environment.get("cpu") or {}, environment.get("memory_bytes")
    return {
        "os": environment.get("platform"),
        "python_version": environment.get("versions", {}).get("python"),
        "codecarbon_version": f"efftrain {__version__}",
        "cpu_count": cpu.get("threads"),
        "cpu_model": cpu.get("model"),
        "gpu_count": len(environment.get("devices") or []),
        "ram_total_size": None if memory is None else memory / BYTES_PER_GB,
    }


def _site_kwh(run: Run, part: Quantity | None) -> float | None:
    pue = run.carbon.pue.value
    return None if part is None or part.value is None or pue is None else part.value * pue / JOULES_PER_KWH


def _timestamp(created: str) -> str | None:
    """In codecarbon's form, without a zone; None where a study does not say when it was made."""
    try:
        return datetime.fromisoformat(created).strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
