"""A journal's steps as a table."""

import itertools
from typing import Any

from efftrain.record.journal import Journal


def step_rows(journal: Journal) -> list[dict[str, Any]]:
    """One flat row a step for export: seconds by phase, loss in nat/token, learning rate, gradient norm."""
    header = journal.header
    rows: list[dict[str, Any]] = []
    for line in journal.of("step"):
        bounds = [*line["phases"], [None, line["t_end"]]]
        seconds: dict[str, float] = {}
        for (phase, start), (_, end) in itertools.pairwise(bounds):
            seconds[f"{phase}_s"] = seconds.get(f"{phase}_s", 0.0) + (end - start) / 1e9
        rows.append(
            {
                "run_id": header["run_id"], "variant": header["variant"], "seed": header["seed"], "step": line["step"],
                "tokens": line["tokens"], "loss": line["loss"], "t_ns": line["t"],
                "step_s": (line["t_end"] - line["t"]) / 1e9, **seconds, "learning_rate": line["learning_rate"],
                "grad_norm": line["grad_norm"],
            }
        )  # fmt: skip
    return rows
