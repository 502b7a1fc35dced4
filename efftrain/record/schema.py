"""The one schema that every later stage reads: `run.json` and `study.json`.

Field names are an interface: scripts outside of this project rely on them, so a name here is never changed, only
joined by others. The JSON Schemas beside this file are written by `python -m efftrain.record.schema` and a test holds
them against the models.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efftrain.record.quantities import Quantity

RUN_SCHEMA = "efftrain.run/1"
STUDY_SCHEMA = "efftrain.study/1"
SCHEMA_FOLDER = Path(__file__).parent / "schemas"

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
PHASES = ("data", "forward", "recompute", "backward", "optimizer")
METRICS = (
    "energy_per_token", "energy_to_target", "time_to_target", "peak_memory", "final_validation", "tokens_per_second",
)  # fmt: skip


class RecordError(ValueError):
    """A file that is not a record of this schema."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Validation(_Model):
    """One evaluation: loss in nat a prediction after `step` steps, and the energy in J that was used by then."""

    step: int
    tokens: int
    loss: float | None
    energy_j: float | None
    time_s: float | None = None
    accuracy: float | None = None


class Loss(_Model):
    """Losses in nat a prediction: a token, a masked token, a document.

    `train` holds one number a step, null where it was not finite; perplexity = exp(loss).
    """

    train: list[float | None]
    validation: list[Validation]
    final_validation: Quantity
    perplexity: Quantity


class EnergyRow(_Model):
    """Joules that one module or op took over the whole run; `modelled`."""

    name: str
    energy: Quantity


class EnergyModel(_Model):
    """Where the joules of modules and ops come from: J = flop_j · FLOP + byte_j · bytes + base_w · seconds."""

    flop_j: Quantity
    byte_j: Quantity
    base_w: Quantity
    residual: Quantity


class Energy(_Model):
    """Joules of the run, over the billed windows: compilation, calibration, training, evaluation.

    `devices` are joules by device of a component, a GPU's UUID for example. `phases` divide the billed time into the
    phases of the steps, the spans and `other`; names joined by `+` could not be told apart. `attribution` says how they
    were found, or why not. `closure` is their sum over `total`.
    """

    components: dict[str, Quantity]
    devices: dict[str, Quantity] = Field(default_factory=dict)
    total: Quantity
    idle: Quantity
    above_idle: Quantity
    per_token: Quantity
    phases: dict[str, Quantity]
    phase_power: dict[str, Quantity] = Field(default_factory=dict)
    closure: Quantity
    attribution: str = ""
    modules: list[EnergyRow] = Field(default_factory=list)
    ops: list[EnergyRow] = Field(default_factory=list)
    model: EnergyModel | None = None


class RegionCarbon(_Model):
    """The same run under another grid."""

    location: str
    intensity: Quantity
    total: Quantity


class Equivalent(_Model):
    """The same grams as something from everyday life: `amount` of `what`, with the source of the conversion."""

    what: str
    amount: float
    source: str


class Carbon(_Model):
    """CO2e of the run in grams; `operational` = energy × PUE × intensity, `total` adds what is embodied.

    `market` is the operational part under the intensity of the user's own contract, where one was given; it enters no
    total. `water` in L where a water usage effectiveness (`wue`, L/kWh) was given. `country` is an ISO 3166-1 alpha-3
    code.
    """

    location: str
    intensity: Quantity
    pue: Quantity
    operational: Quantity
    embodied: Quantity
    total: Quantity
    per_token: Quantity
    per_exaflop: Quantity
    regions: list[RegionCarbon]
    market: Quantity | None = None
    market_intensity: Quantity | None = None
    water: Quantity | None = None
    wue: Quantity | None = None
    country: str | None = None
    region: str | None = None
    equivalents: list[Equivalent] = Field(default_factory=list)


class PhaseCost(_Model):
    """Cost of one phase of a step: FLOP that the hardware does, FLOP of the model's convention, bytes moved."""

    hardware: Quantity
    model: Quantity
    bytes: Quantity


class CostRow(_Model):
    """Cost of one module or op in one step, over all phases; plain counts."""

    name: str
    calls: int
    hardware_flops: int
    model_flops: int
    bytes: int


class Flops(_Model):
    """FLOPs of a step, with the convention that they were counted under, and how near to the peak they ran."""

    convention: str
    model_per_step: Quantity
    hardware_per_step: Quantity
    mfu: Quantity
    hfu: Quantity
    peak_rate: Quantity
    phases: dict[str, PhaseCost]
    modules: list[CostRow]
    ops: list[CostRow]


class Memory(_Model):
    """Bytes at the peak of a step; `categories` are predicted, `unexplained` = peak − predicted peak."""

    peak: Quantity
    peak_phase: str | None
    predicted_peak: Quantity
    categories: dict[str, Quantity]
    unexplained: Quantity
    process_peak: Quantity


class Time(_Model):
    """Seconds: `total` over the billed windows, `step` and `phases` means over training steps."""

    total: Quantity
    step: Quantity
    tokens_per_second: Quantity
    phases: dict[str, Quantity]
    spans: dict[str, Quantity] = Field(default_factory=dict)


class Check(_Model):
    """An expectation held against the figures."""

    name: str
    status: Literal["passed", "warning", "failed", "skipped"]
    detail: str


class Teacher(_Model):
    """What a distilled run's teacher cost to train: not in this run's bill, shown apart."""

    run_id: str
    training_energy: Quantity


class Origin(_Model):
    """The checkpoint whose weights a run began with, and what it had cost: not in this run's bill, shown apart."""

    path: str
    run_id: str | None
    steps: int
    tokens: int
    training_energy: Quantity


class Attempt(_Model):
    """One process of a run that was stopped and resumed: its steps, those done again included, and what it used."""

    status: str
    first_step: int
    last_step: int
    energy: Quantity
    time: Quantity


class ClassScore(_Model):
    """How well one class is told from the others."""

    name: str
    documents: int
    precision: Quantity
    recall: Quantity
    f1: Quantity


class Classification(_Model):
    """The last evaluation of a classifier; precision, recall and F1 are means over classes (macro).

    `confusion` counts documents by [true class][predicted class], in the order of `classes`.
    """

    accuracy: Quantity
    precision: Quantity
    recall: Quantity
    f1: Quantity
    classes: list[ClassScore]
    confusion: list[list[int]]


class Run(_Model):
    """One training of one variant with one seed.

    A run that was resumed is one run: its bill holds all of its attempts.
    """

    schema_: Literal["efftrain.run/1"] = Field(default=RUN_SCHEMA, alias="schema")
    run_id: str
    study_id: str
    variant: str
    seed: int
    status: str
    steps: int
    tokens: int
    parameters: int
    config: dict[str, Any]
    environment: dict[str, Any]
    loss: Loss
    energy: Energy
    carbon: Carbon
    flops: Flops
    memory: Memory
    time: Time
    checks: list[Check]
    notes: list[str] = Field(default_factory=list)
    teacher: Teacher | None = None
    ranks: int = 1
    origin: Origin | None = None
    attempts: list[Attempt] = Field(default_factory=list)
    classification: Classification | None = None
    trainable_parameters: int | None = None


class Ratio(_Model):
    """A variant against the baseline over paired seeds: geometric mean, 95 % interval, exact sign-flip p-value."""

    ratio: float | None
    low: float | None
    high: float | None
    pairs: int
    p_value: float | None
    verdict: Verdict
    censored: int = 0
    detail: str = ""


class VariantSummary(_Model):
    """A variant of a study: its runs, or why it has none, and its ratios to the baseline."""

    name: str
    runs: list[str]
    skipped: bool
    reason: str | None
    ratios: dict[str, Ratio]
    on_pareto_front: bool | None
    summary: str = ""


class Study(_Model):
    """Variants × seeds on the same tokens, interleaved."""

    schema_: Literal["efftrain.study/1"] = Field(default=STUDY_SCHEMA, alias="schema")
    study_id: str
    created: str
    command: str
    baseline: str
    runs: list[str]
    variants: list[VariantSummary]
    checks: list[Check]
    settings: dict[str, Any] = Field(default_factory=dict)


Record = TypeVar("Record", Run, Study)


def dumps(record: Run | Study) -> str:
    """A record as indented JSON that ends in a newline."""
    return json.dumps(record.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False) + "\n"


def load(path: Path, model: type[Record]) -> Record:
    """Read `run.json` or `study.json`.

    Raises:
        RecordError: the file cannot be read or is not of this schema; the message is one line and names the file.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: not a {model.__name__.lower()} record: {where}: {first['msg']}") from None


def json_schemas() -> dict[str, str]:
    """File name to JSON Schema text, as committed under efftrain/record/schemas/."""
    models: dict[str, type[BaseModel]] = {"run.schema.json": Run, "study.schema.json": Study}
    return {
        name: json.dumps(model.model_json_schema(by_alias=True, mode="serialization"), indent=1) + "\n"
        for name, model in models.items()
    }


if __name__ == "__main__":
    SCHEMA_FOLDER.mkdir(exist_ok=True)
    for file_name, text in json_schemas().items():
        (SCHEMA_FOLDER / file_name).write_text(text)
