"""What a run has used so far, told to its checkpoints: read from the journal that the run itself is writing.

The same meter as the progress line's, so that it costs the same after a day; the report computes its bill anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efftrain.meters.windows import seconds
from efftrain.record.journal import JournalTail
from efftrain.record.quantities import Quantity, correlated

if TYPE_CHECKING:
    from efftrain.meters.live import LiveMeter


class Spending:
    """The bill of a run that goes on; its earlier attempts, as the journal's header knows them, count too.

    Args:
        journal: of the run, which is being written.
        flush: brings what was recorded so far into the file.
    """

    def __init__(self, journal: Path, flush: Callable[[], None]) -> None:
        self._tail, self._flush = JournalTail(journal), flush
        self._meter: LiveMeter | None = None
        self._before: Mapping[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """`energy` (a Quantity in J as plain data, or None), `grams` of CO2e, `seconds`, and how many `attempts`."""
        from efftrain.meters.live import LiveMeter  # needs pydantic, without which runs can be made

        self._flush()
        for line in self._tail.read():
            if line["kind"] == "header":
                self._meter, self._before = LiveMeter(line), line.get("before") or {}
            elif self._meter:
                self._meter.feed(line)
        if self._meter is None:
            return {}
        windows = self._meter.windows()
        energy = self._meter.ledger.total(windows)
        whole, grams = self._with_before(energy), self._meter.grams_co2e(energy, windows)
        return {
            "energy": dataclasses.asdict(whole) if whole.present else None,
            "grams": self._plus("grams", grams), "seconds": self._plus("seconds", seconds(windows)),
            "attempts": self._before.get("attempts", 0) + 1,
        }  # fmt: skip

    def _with_before(self, energy: Quantity) -> Quantity:
        stored = self._before.get("energy")
        return correlated([Quantity(**stored), energy], boundary=energy.boundary) if stored else energy

    def _plus(self, name: str, value: float | None) -> float | None:
        """With what earlier attempts used; None where that is not known."""
        before = self._before.get(name) if self._before else 0.0
        return None if value is None or before is None else before + value
