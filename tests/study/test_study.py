"""A whole study, end to end, held against its own journals by arithmetic that shares no code with the meters."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest

from efftrain.hardware import probe
from efftrain.record.schema import SCHEMA_FOLDER

VARIANTS = ("baseline", "bf16", "recompute", "pruned", "distilled")


def lines(study: Path, run: str, kind: str) -> list[dict[str, Any]]:
    text = (study / "runs" / run / "journal.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


def record(study: Path, run: str) -> dict[str, Any]:
    return json.loads((study / "runs" / run / "run.json").read_text())


def quantities(tree: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if "lower_bound" in tree:
            yield path, tree
            return
        for key, value in tree.items():
            yield from quantities(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from quantities(value, f"{path}[{index}]")


def reading(study: Path, run: str, sensor: str, t: int) -> float:
    """What a sensor showed at `t`, by linear interpolation between the two nearest readings."""
    ticks = [(line["t"], line["value"]) for line in lines(study, run, "tick") if line["sensor"] == sensor]
    before = max((tick for tick in ticks if tick[0] <= t), key=lambda tick: tick[0])
    after = min((tick for tick in ticks if tick[0] >= t), key=lambda tick: tick[0], default=before)
    if before[0] == after[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (t - before[0]) / (after[0] - before[0])


def test_the_folder_holds_what_it_should(small_study: Path):
    for name in ("study.json", "report.html", "report.md", "runs.csv", "steps.parquet"):
        assert (small_study / name).stat().st_size > 0
    for variant in VARIANTS:
        run = small_study / "runs" / f"{variant}-s0"
        assert {"journal.jsonl", "run.json", "log.txt"} <= {path.name for path in run.iterdir()}


def test_records_validate_against_the_committed_schemas(small_study: Path):
    run_schema = json.loads((SCHEMA_FOLDER / "run.schema.json").read_text())
    study_schema = json.loads((SCHEMA_FOLDER / "study.schema.json").read_text())
    jsonschema.validate(json.loads((small_study / "study.json").read_text()), study_schema)
    for variant in VARIANTS:
        jsonschema.validate(record(small_study, f"{variant}-s0"), run_schema)


def test_every_figure_says_how_it_was_obtained_and_none_missing_is_zero(small_study: Path):
    found = [pair for variant in VARIANTS for pair in quantities(record(small_study, f"{variant}-s0"), variant)]
    assert len(found) > 200
    for path, figure in found:
        assert figure["source"], path
        assert (figure["value"] is None) == (figure["method"] == "missing"), path
    missing = {path.split(".", 1)[1] for path, figure in found if figure["value"] is None}
    assert ("energy.components.rest_of_node" in missing) == probe.cpu().guest


@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_agree_with_the_journal_by_hand(small_study: Path, variant: str):
    run = f"{variant}-s0"
    figures = record(small_study, run)
    steps = lines(small_study, run, "step")
    tokens = sum(line["tokens"] for line in steps)
    assert figures["tokens"] == tokens == 8 * 4 * 128
    seconds = sum(line["t_end"] - line["t"] for line in steps) / 1e9
    assert figures["time"]["tokens_per_second"]["value"] == pytest.approx(tokens / seconds, rel=1e-9)
    evaluations = lines(small_study, run, "evaluation")
    assert figures["loss"]["final_validation"]["value"] == evaluations[-1]["loss"]
    assert figures["memory"]["peak"]["value"] == max(line["peak_bytes"] for line in lines(small_study, run, "memory"))
    spans = lines(small_study, run, "span")
    end = max([steps[-1]["t_end"], *(span["t_end"] for span in spans if span["name"] == "evaluate")])
    sensors = {s["name"]: s for s in lines(small_study, run, "header")[0]["sensors"]}
    joules = {
        name: sensor["watts_per_unit"][0]
        * (reading(small_study, run, name, end) - reading(small_study, run, name, steps[0]["t"]))
        for name, sensor in sensors.items()
    }
    assert figures["energy"]["components"]["cpu"]["value"] == pytest.approx(joules["cpu-time"], rel=1e-6)
    assert figures["energy"]["total"]["value"] == pytest.approx(sum(joules.values()), rel=1e-6)
    assert figures["energy"]["per_token"]["value"] == pytest.approx(sum(joules.values()) / tokens, rel=1e-6)
    always = (end - steps[0]["t"]) / 1e9  # what is assumed draws its watts all the time
    assert joules["memory"] == pytest.approx(sensors["memory"]["watts_per_unit"][0] * always, rel=1e-2)


def test_the_table_prints_the_records_figures(small_study: Path):
    table = (small_study / "stdout.txt").read_text()
    for variant in VARIANTS:
        (row,) = [line for line in table.splitlines() if line.strip(" │|").startswith(variant) and "/1" in line]
        loss = record(small_study, f"{variant}-s0")["loss"]["final_validation"]["value"]
        assert f"{loss:.2f}" in row or f"{loss:.3f}" in row, row


def test_carbon_is_energy_times_pue_times_intensity(small_study: Path):
    figures = record(small_study, "baseline-s0")
    kwh = figures["energy"]["total"]["value"] / 3.6e6
    assert figures["carbon"]["operational"]["value"] == pytest.approx(kwh * 1.2 * 56.039, rel=1e-6)
    assert figures["carbon"]["embodied"]["method"] == "assumed"
    whole = figures["carbon"]["operational"]["value"] + figures["carbon"]["embodied"]["value"]
    assert figures["carbon"]["total"]["value"] == pytest.approx(whole, rel=1e-9)
    assert "2023" in figures["carbon"]["intensity"]["source"]


def test_model_flops_are_the_closed_form(small_study: Path):
    per_token = 6 * (4 * (128 * 32 * 2 * 6 + 3 * 128 * 384) + 1024 * 128) + 12 * 4 * 4 * 32 * 128
    for variant in ("baseline", "bf16", "recompute"):
        flops = record(small_study, f"{variant}-s0")["flops"]
        assert flops["model_per_step"]["value"] == per_token * 4 * 128
    again = record(small_study, "recompute-s0")["flops"]["hardware_per_step"]["value"]
    assert again > record(small_study, "baseline-s0")["flops"]["hardware_per_step"]["value"]


def test_predicted_memory_is_within_one_percent(small_study: Path):
    for variant in VARIANTS:
        memory = record(small_study, f"{variant}-s0")["memory"]
        assert memory["predicted_peak"]["value"] == pytest.approx(memory["peak"]["value"], rel=0.01), variant
        assert memory["peak_phase"]


def test_the_pruned_run_has_two_stages_and_ends_smaller(small_study: Path):
    stages = {line["from_step"] for line in lines(small_study, "pruned-s0", "cost")}
    assert stages == {1, 4}
    assert [span["name"] for span in lines(small_study, "pruned-s0", "span")].count("calibrate") == 1
    baseline, pruned = record(small_study, "baseline-s0"), record(small_study, "pruned-s0")
    assert pruned["parameters"] < baseline["parameters"]
    assert pruned["flops"]["model_per_step"]["value"] < baseline["flops"]["model_per_step"]["value"]


def test_the_student_pays_its_teachers_forward_and_shows_its_training_apart(small_study: Path):
    teacher = record(small_study, "baseline-s0")
    student = record(small_study, "distilled-s0")
    assert student["teacher"]["run_id"] == "baseline-s0"
    assert student["teacher"]["training_energy"]["value"] == teacher["energy"]["total"]["value"]
    assert any(row["name"].startswith("teacher") for row in student["flops"]["modules"])
    student_alone = 6 * (2 * (128 * 32 * 2 * 6 + 3 * 128 * 384) + 1024 * 128) + 12 * 2 * 4 * 32 * 128
    assert student["flops"]["model_per_step"]["value"] == student_alone * 4 * 128
    forward_of_teacher = 2 * (4 * (128 * 32 * 2 * 6 + 3 * 128 * 384) + 1024 * 128) + 4 * 4 * 4 * 32 * 128
    extra = student["flops"]["phases"]["forward"]["hardware"]["value"] - student_alone // 3 * 4 * 128
    assert extra == forward_of_teacher * 4 * 128


def test_a_variant_that_cannot_run_is_in_the_record_with_its_reason(small_study: Path):
    study = json.loads((small_study / "study.json").read_text())
    (tf32,) = [variant for variant in study["variants"] if variant["name"] == "tf32"]
    assert tf32["skipped"]
    assert "tf32" in tf32["reason"]
    assert tf32["runs"] == []


def test_two_pairs_or_fewer_are_inconclusive(small_study: Path):
    study = json.loads((small_study / "study.json").read_text())
    verdicts = {ratio["verdict"] for variant in study["variants"] for ratio in variant["ratios"].values()}
    assert verdicts == {"inconclusive"}


def test_exports_hold_one_row_a_run_and_one_a_step(small_study: Path):
    assert sorted(pd.read_csv(small_study / "runs.csv")["run_id"]) == sorted(f"{v}-s0" for v in VARIANTS)
    steps = pd.read_parquet(small_study / "steps.parquet")
    assert len(steps) == 5 * 8
    assert math.isclose(
        steps.loc[steps.run_id == "bf16-s0", "loss"].iloc[0], lines(small_study, "bf16-s0", "step")[0]["loss"]
    )


def test_reporting_again_gives_the_same_records(small_study: Path, efftrain):
    before = {path: path.read_text() for path in small_study.glob("**/*.json")}
    done = efftrain("report", small_study)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_text() for path in small_study.glob("**/*.json")} == before


def test_reporting_imports_no_torch(small_study: Path):
    code = (
        "import sys; sys.argv = ['efftrain', 'report', sys.argv[1]]\n"
        "from efftrain.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_study)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_teachers_weights_go_when_its_students_are_done(small_study: Path):
    assert list(small_study.glob("runs/*/weights.pt")) == []


def test_perplexity_is_the_exponential_of_the_loss(small_study: Path):
    loss = record(small_study, "bf16-s0")["loss"]
    assert loss["perplexity"]["value"] == pytest.approx(math.exp(loss["final_validation"]["value"]))
    assert loss["perplexity"]["high"] == pytest.approx(math.exp(loss["final_validation"]["high"]))


def test_a_second_bench_does_not_touch_the_study(small_study: Path, efftrain):
    before = (small_study / "study.json").read_text()
    done = efftrain("bench", "--out", small_study)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert "--force" in done.stderr
    assert (small_study / "study.json").read_text() == before


def test_resuming_a_complete_study_makes_no_run_again(small_study: Path, efftrain):
    journals = {path: path.read_bytes() for path in small_study.glob("runs/*/journal.jsonl")}
    done = efftrain("bench", "--resume", "--out", small_study)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in small_study.glob("runs/*/journal.jsonl")} == journals
    refused = efftrain("bench", "--resume", "--steps", 5, "--out", small_study)
    assert refused.returncode == 2
    assert "leave out --steps" in refused.stderr
