"""What each tool said of each window, beside the truth; ours is billed from the journal by the meters of today."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.run import FACTS, OURS, PEERS, place
from accuracy.scenarios import Scenario
from efftrain.meters.energy.ledger import Ledger
from efftrain.record.journal import read_journal
from efftrain.record.quantities import Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one tool said of one window; energies in J.

    Attributes:
        window_s: its length, about.
        start_s: when it began, from the beginning of the scenario.
        low: lower end of the interval that the tool claims; None: it claims none.
        high: upper end; None: it claims none, or no upper bound.
        value: None where the tool gave nothing.
        note: why not, or what the tool knows to be wrong with it.
    """

    scenario: str
    tool: str
    window_s: float
    start_s: float
    truth_j: float
    value_j: float | None
    low: float | None
    high: float | None
    note: str

    @property
    def error(self) -> float:
        """Relative error; no value is an error of −100 %."""
        return (self.value_j or 0.0) / self.truth_j - 1

    @property
    def covered(self) -> bool | None:
        """Whether the truth lies in the interval; None: no interval is claimed."""
        if self.low is None:
            return None
        return self.low <= self.truth_j and (self.high is None or self.truth_j <= self.high)


def read_rows(folder: Path, scenarios: Sequence[Scenario]) -> Iterator[Row]:
    """Rows of the scenarios that have been run in `folder`."""
    for scenario in scenarios:
        own = place(folder, scenario)
        for tool in (OURS, *PEERS):
            if (own / f"{tool}.json").exists():
                yield from _rows(scenario, own, tool)


def sampler_core_share(folder: Path, scenario: Scenario) -> float:
    """CPU time of efftrain's sampler in a scenario that was run, as a share of one core."""
    return float((place(folder, scenario) / "journal.cpu").read_text())


def _rows(scenario: Scenario, folder: Path, tool: str) -> Iterator[Row]:
    facts = json.loads((folder / FACTS).read_text())
    results: list[dict[str, Any]] = json.loads((folder / f"{tool}.json").read_text())
    energies = _from_journal(folder / "journal.jsonl", results) if tool == OURS else None
    for i, (row_s, result) in enumerate(zip(facts["rows_s"], results, strict=True)):
        from_s, to_s = ((result[key] - facts["origin_ns"]) / 1e9 for key in ("start", "end"))
        quantity = energies[i] if energies else None
        yield Row(
            scenario=scenario.name, tool=tool, window_s=row_s,
            start_s=(result["start"] - facts["start_ns"]) / 1e9,
            truth_j=sum(device.curve.energy(from_s, to_s) for device in scenario.devices),
            value_j=quantity.value if quantity else result["joules"],
            low=quantity.low if quantity else None, high=quantity.high if quantity else None,
            note=_known_flaws(quantity) if quantity else result["note"],
        )  # fmt: skip


def _known_flaws(quantity: Quantity) -> str:
    return quantity.source if quantity.lower_bound or quantity.value is None else ""


def _from_journal(path: Path, results: Sequence[Mapping[str, Any]]) -> list[Quantity]:
    journal = read_journal(path)
    ledger = Ledger(journal.header)
    for line in journal.lines:
        ledger.feed(line)
    return [ledger.components([(r["start"], r["end"])])["gpu"] for r in results]
