"""What a run has used so far, read from its own journal: for its checkpoints."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efftrain.meters.live import LiveMeter
from efftrain.meters.windows import seconds
from efftrain.record.journal import JournalTail


class Spending:
    """The bill of a run that goes on.

    Args:
        journal: of the run, which is being written.
        flush: brings what was recorded so far into the file.
    """

    def __init__(self, journal: Path, flush: Callable[[], None]) -> None:
        self._tail, self._flush = JournalTail(journal), flush
        self._meter: LiveMeter | None = None

    def __call__(self) -> dict[str, Any]:
        """`energy` as a Quantity's plain data in J, `grams` of CO2e, and `seconds` on the bill; nothing before that."""
        self._flush()
        for line in self._tail.read():
            if line["kind"] == "header":
                self._meter = LiveMeter(line)
            elif self._meter:
                self._meter.feed(line)
        if self._meter is None:
            return {}
        windows = self._meter.windows()
        energy = self._meter.ledger.total(windows)
        grams = self._meter.grams_co2e(energy, windows)
        return {"energy": dataclasses.asdict(energy), "grams": grams, "seconds": seconds(windows)}
