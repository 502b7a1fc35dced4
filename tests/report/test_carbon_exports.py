"""Exports against those who read them: YAML and the Hub's card, codecarbon's columns, Prometheus's parser."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from codecarbon.output_methods.emissions_data import EmissionsData
from huggingface_hub import ModelCard
from prometheus_client.parser import text_string_to_metric_families

from efftrain.meters.carbon.footprint import carbon_section, resolve
from efftrain.record.schema import Run, Study
from efftrain.report.carbon_exports import main_run, write_codecarbon_csv, write_model_card
from efftrain.report.prometheus import write_prometheus

Case = tuple[Study, list[Run]]


@pytest.fixture
def french(large: Case) -> Case:
    """Runs on a GPU in France at a PUE of 1.25, with a contract and a WUE."""
    header = resolve("FRA", pue=1.25, market_intensity=10.0, wue=1.8)
    carbon = [carbon_section(run.energy.total, header, run.tokens, 1e15) for run in large[1]]
    return large[0], [
        run.model_copy(update={"carbon": c, "config": {"model": {}}}) for run, c in zip(large[1], carbon, strict=True)
    ]


def card(path: Path, case: Case) -> dict:
    write_model_card(path, *case)
    (document, rest) = list(yaml.safe_load_all(path.read_text()))
    assert rest is None
    return document


def test_a_model_card_is_in_grams(french: Case, tmp_path: Path) -> None:
    found = card(tmp_path / "card.yaml", french)["co2_eq_emissions"]
    run = french[1][0]
    assert found["emissions"] == pytest.approx(run.energy.total.value / 3.6e6 * 1.25 * 56.039)
    assert found["training_type"] == "pre-training"
    assert found["geographical_location"] == "France"
    assert found["hardware_used"] == "1 x NVIDIA H200"
    assert "location-based" in found["source"]
    assert "lower bound" in found["source"]


def test_the_hub_reads_it(french: Case, tmp_path: Path) -> None:
    write_model_card(tmp_path / "card.yaml", *french)
    data = ModelCard((tmp_path / "card.yaml").read_text() + "\n# A model\n").data.to_dict()
    assert set(data["co2_eq_emissions"]) == {
        "emissions", "source", "training_type", "geographical_location", "hardware_used",
    }  # fmt: skip


def test_a_foreign_training_does_not_say_of_what_kind_it_was(large: Case, tmp_path: Path) -> None:
    assert "training_type" not in card(tmp_path / "card.yaml", large)["co2_eq_emissions"]


def test_names_that_yaml_would_trip_over(french: Case, tmp_path: Path) -> None:
    carbon = french[1][0].carbon.model_copy(update={"location": 'no: "yes" #1'})
    study, runs = french[0], [french[1][0].model_copy(update={"carbon": carbon, "study_id": "a\nb: c"})]
    assert card(tmp_path / "c.yaml", (study, runs))["co2_eq_emissions"]["geographical_location"] == 'no: "yes" #1'


def test_no_figure_is_no_number(french: Case, empty: Case, tmp_path: Path) -> None:
    missing = french[1][0].energy.total.__class__(value=None, unit="J", method="missing", source="no sensor")
    carbon = carbon_section(missing, resolve(), 1, 1.0)
    run = french[1][0].model_copy(update={"carbon": carbon})
    assert "emissions" not in card(tmp_path / "c.yaml", (french[0], [run]))["co2_eq_emissions"]
    assert "# emissions: missing" in (tmp_path / "c.yaml").read_text()
    assert card(tmp_path / "c.yaml", empty) is None


def test_the_main_run_is_the_baseline_s_first_that_ended_well(damaged: Case) -> None:
    assert main_run(*damaged).run_id == "baseline-s0"
    without = [run for run in damaged[1] if run.variant != "baseline"]
    assert main_run(damaged[0], without).status == "complete"


def codecarbon_rows(path: Path, case: Case) -> list[dict[str, str]]:
    write_codecarbon_csv(path, *case)
    return list(csv.DictReader(path.read_text().splitlines()))


def test_codecarbon_s_columns(french: Case, tmp_path: Path) -> None:
    rows = codecarbon_rows(tmp_path / "emissions.csv", french)
    assert list(rows[0]) == [field.name for field in dataclasses.fields(EmissionsData)]
    assert [row["run_id"] for row in rows] == [run.run_id for run in french[1]]


def test_codecarbon_s_units(french: Case, tmp_path: Path) -> None:
    """kWh with PUE in them, kg, W; what codecarbon's own product of its columns gives."""
    row, run = codecarbon_rows(tmp_path / "emissions.csv", french)[0], french[1][0]
    seconds, gpu = run.time.total.value, run.energy.components["gpu"].value
    assert float(row["duration"]) == seconds
    assert float(row["gpu_energy"]) == pytest.approx(1.25 * gpu / 3.6e6)
    assert float(row["gpu_power"]) == pytest.approx(1.25 * gpu / seconds)
    assert float(row["energy_consumed"]) == pytest.approx(1.25 * run.energy.total.value / 3.6e6)
    assert float(row["emissions"]) == pytest.approx(float(row["energy_consumed"]) * 56.039 / 1000)
    assert float(row["emissions_rate"]) == pytest.approx(float(row["emissions"]) / seconds)
    assert float(row["water_consumed"]) == pytest.approx(float(row["energy_consumed"]) / 1.25 * 1.8)
    assert (row["country_name"], row["country_iso_code"], row["region"]) == ("France", "FRA", "")
    assert (row["gpu_count"], row["gpu_model"], row["pue"], row["wue"]) == ("1", "1 x NVIDIA H200", "1.25", "1.8")
    assert float(row["ram_total_size"]) == pytest.approx(25_276_502_016 / 2**30)


def test_what_is_missing_is_empty_and_not_zero(french: Case, damaged: Case, tmp_path: Path) -> None:
    row = codecarbon_rows(tmp_path / "emissions.csv", french)[0]
    assert (row["ram_energy"], row["ram_power"], row["longitude"]) == ("", "", "")
    assert all("0" not in row[name] for name in ("cpu_utilization_percent", "ram_used_gb", "on_cloud"))
    unborn = damaged[1][0].model_copy(update={"environment": {}})
    assert codecarbon_rows(tmp_path / "emissions.csv", (damaged[0], [unborn]))[0]["cpu_model"] == ""
    nameless = damaged[0].model_copy(update={"created": "unknown"})
    assert codecarbon_rows(tmp_path / "emissions.csv", (nameless, damaged[1]))[0]["timestamp"] == ""


def samples(path: Path, runs: list[Run]) -> dict:
    """Prometheus samples by name and run."""
    write_prometheus(path, runs)
    families = list(text_string_to_metric_families(path.read_text()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.type == "gauge" and family.documentation for family in families)
    return {(s.name, s.labels["run"], *sorted(set(s.labels.items()) & {("component", "gpu")})): s
            for family in families for s in family.samples}  # fmt: skip


def test_prometheus(french: Case, tmp_path: Path) -> None:
    found, run = samples(tmp_path / "metrics.prom", french[1]), french[1][0]
    energy = found["efftrain_energy_joules", run.run_id]
    assert energy.value == run.energy.total.value
    assert energy.labels == {
        "study": run.study_id, "run": run.run_id, "variant": "baseline", "seed": "0",
        "method": run.energy.total.method,
    }  # fmt: skip
    assert found["efftrain_energy_low_joules", run.run_id].value == run.energy.total.low
    assert ("efftrain_energy_high_joules", run.run_id) not in found  # a lower bound
    gpu = found["efftrain_component_energy_joules", run.run_id, ("component", "gpu")]
    assert gpu.value == run.energy.components["gpu"].value
    assert found["efftrain_carbon_operational_grams", run.run_id].value == run.carbon.operational.value
    assert found["efftrain_water_liters", run.run_id].value == run.carbon.water.value
    assert all(math.isfinite(sample.value) for sample in found.values())


def test_prometheus_leaves_out_what_is_missing(damaged: Case, empty: Case, tmp_path: Path) -> None:
    found = samples(tmp_path / "metrics.prom", damaged[1])
    assert not any(name.startswith(("efftrain_carbon_market", "efftrain_water")) for name, *_ in found)
    assert samples(tmp_path / "metrics.prom", empty[1]) == {}


def test_labels_of_any_text(damaged: Case, tmp_path: Path) -> None:
    name = 'a "b" \\ c\nd, e="f"'
    found = samples(tmp_path / "metrics.prom", [damaged[1][0].model_copy(update={"study_id": name})])
    assert found["efftrain_energy_joules", damaged[1][0].run_id].labels["study"] == name
