"""Benchmarks as rows: what was run, by whom, how long it took, how near a ceiling, how wrong, for how many joules.

All who can run a case run it in the same process on the same inputs, one after the other. Who cannot is a row with the
error in place of figures. A row says on what device, with which versions and by which method it came about, so that it
can be read alone. What attention and AdamW bring to this stands in `bench_attention` and `bench_adamw`.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from efftrain_kernels.evidence import measure
from efftrain_kernels.evidence.energy import EnergyCounter, Joules, find_counter, missing
from efftrain_kernels.evidence.measure import Ceilings, Latency
from efftrain_kernels.evidence.table import number, table

Family = Literal["attention", "adamw"]
_METHODS = {
    "cuda": "CUDA events around each call, L2 cache overwritten before each, percentiles",
    "cpu": "wall clock on a CPU at a small size: shows that it runs, says nothing about a GPU",
}


@dataclass(frozen=True, slots=True)
class Work:
    """One call that is to be measured, ready to run.

    Attributes:
        call: enqueues the work.
        amount: FLOP or bytes of one call, by the convention of the row's `unit`.
        unit: FLOP/s, of which the matrix product is the ceiling, or B/s, of which the copy is.
        joules: measure its energy too.
    """

    call: Callable[[], object]
    amount: int
    unit: Literal["FLOP/s", "B/s"]
    joules: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """Somebody who can attempt a case.

    Attributes:
        case: name of the case.
        provider: name of the implementation.
        settings: shape and options of the case, for the record.
        prepare: the calls to measure by their names (forward, backward, ...), and the errors against float64, by the
            names of what was compared. Raises whatever the implementation raises where it cannot run the case.
    """

    case: str
    provider: str
    settings: dict[str, Any]
    prepare: Callable[[], tuple[dict[str, Work], dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one call; figures are None where the call could not be made, and `error` says why.

    Attributes:
        case: name of the case.
        provider: whose implementation.
        call: forward, backward, forward+backward or step.
        settings: shape and options.
        latency: seconds.
        rate: FLOP/s or bytes/s at the median.
        unit: which of the two.
        ceiling_share: of the matrix product's or the copy's rate in this run.
        peak_extra_bytes: device memory beyond what was there before the call.
        joules: energy of one call.
        max_error: largest absolute difference to float64 by what was compared, and on how large a case in `settings`.
        device: its name.
        versions: of what the figures depend on.
        method: how time was taken.
        error: why there are no figures.
    """

    case: str
    provider: str
    call: str
    settings: dict[str, Any]
    latency: Latency | None
    rate: float | None
    unit: str
    ceiling_share: float | None
    peak_extra_bytes: int | None
    joules: Joules
    max_error: dict[str, float]
    device: str
    versions: dict[str, str | None]
    method: str
    error: str | None = None


@dataclass
class Bench:
    """One run of benchmarks on one device.

    Attributes:
        device: where everything runs.
        budget_s: running time of each measurement.
        energy_s: running time of each measurement of energy; 0 leaves it out.
        deadline: `time.monotonic()` after which nothing more is begun.
        calls: make so many calls without warming up, to show that it runs; None measures.
    """

    device: torch.device
    budget_s: float = 0.5
    energy_s: float = 5.0
    deadline: float = float("inf")
    calls: int | None = None
    ceilings: Ceilings = field(init=False)
    _counter: EnergyCounter | None = field(init=False)
    _how: str = field(init=False)

    def __post_init__(self) -> None:
        self._counter, self._how = find_counter(self.device)
        if self._counter is not None and self.energy_s:
            self._counter.measure_idle()  # before anything has warmed the board
        self.ceilings = measure.ceilings(self.device)

    def run(self, entries: Sequence[Entry], done: frozenset[tuple[str, str]] = frozenset()) -> Iterator[Row]:
        """Rows of each entry in turn, as soon as they are measured; entries in `done` (case, provider) are left out.

        After the deadline each entry left gives one row that says so.
        """
        for entry in entries:
            if (entry.case, entry.provider) in done:
                continue
            if time.monotonic() > self.deadline:
                yield self._blank(entry, "", "not run: no time was left")
                continue
            yield from self._attempt(entry)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attempt(self, entry: Entry) -> Iterator[Row]:
        try:
            works, errors = entry.prepare()
        except Exception as error:  # another's fault is a finding, and the others still run
            yield self._blank(entry, "", _one_line(error))
            return
        for name, work in works.items():
            try:
                yield replace(self._measure(entry, name, work), max_error=errors)
            except Exception as error:
                yield replace(self._blank(entry, name, _one_line(error)), max_error=errors)

    def _measure(self, entry: Entry, name: str, work: Work) -> Row:
        seconds = measure.latency(work.call, self.device, budget_s=self.budget_s, calls=self.calls)
        rate = work.amount / seconds.p50_s
        matrix = work.unit == "FLOP/s"
        ceiling = self.ceilings.matrix_flops_per_s if matrix else self.ceilings.copy_bytes_per_s
        return replace(
            self._blank(entry, name, None), latency=seconds, rate=rate, unit=work.unit, ceiling_share=rate / ceiling,
            peak_extra_bytes=measure.peak_extra_bytes(work.call, self.device), joules=self._joules(work, seconds),
        )  # fmt: skip

    def _joules(self, work: Work, seconds: Latency) -> Joules:
        if self._counter is None:
            return missing(self._how)
        if not (work.joules and self.energy_s):
            return missing("not asked for, to save time")
        return self._counter.joules(work.call, seconds=seconds.p50_s, min_seconds=self.energy_s)

    def _blank(self, entry: Entry, call: str, error: str | None) -> Row:
        return Row(
            case=entry.case, provider=entry.provider, call=call, settings=entry.settings, latency=None, rate=None,
            unit="", ceiling_share=None, peak_extra_bytes=None, joules=missing(error or "not measured"), max_error={},
            device=measure.device_name(self.device), versions=measure.versions(), method=_METHODS[self.device.type],
            error=error,
        )  # fmt: skip


def run(family: Family, *, device: torch.device | None = None) -> dict[str, Any]:
    """Run one family's benchmark on this machine, at the sizes that suit it.

    Returns:
        The report: device, versions, ceilings and rows, all of JSON's types.
    """
    from efftrain_kernels.evidence import bench_adamw, bench_attention

    device = device or measure.default_device()
    bench = Bench(device) if device.type == "cuda" else Bench(device, budget_s=0.1, energy_s=0.0)
    entries = {"attention": bench_attention.entries, "adamw": bench_adamw.entries}[family](device)
    return report(family, bench, list(bench.run(entries)))


def report(family: Family, bench: Bench, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows with what they have in common, in JSON's types."""
    return {
        "benchmark": family,
        "device": measure.device_name(bench.device),
        "cuda": bench.device.type == "cuda",
        "versions": measure.versions(),
        "ceilings": asdict(bench.ceilings),
        "rows": [asdict(row) for row in rows],
    }


def describe(found: dict[str, Any]) -> str:
    """The report as a table, and first of all on what it was measured."""
    ceilings = found["ceilings"]
    lines = [
        f"{found['benchmark']} on {found['device']}",
        f"ceilings: {ceilings['matrix_flops_per_s'] / 1e12:.4g} TFLOP/s ({ceilings['matrix']}), "
        f"{ceilings['copy_bytes_per_s'] / 1e9:.4g} GB/s ({ceilings['copy']})",
    ]
    if not found["cuda"]:
        lines.append("There is no CUDA device here: these are small sizes on the CPU, and say nothing about a GPU.")
    headers = ("case", "provider", "call", "p20 ms", "p50 ms", "p80 ms", "rate", "share", "peak MiB", "J", "max error")
    rows = [row for row in found["rows"] if row["error"] is None]
    lines.append(table(headers, [_cells(row) for row in rows]))
    failed = [row for row in found["rows"] if row["error"] is not None]
    lines += [f"{row['case']}, {row['provider']} {row['call']}: {row['error']}" for row in failed]
    return "\n".join(lines)


def write_json(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Write reports, a JSON list."""
    path.write_text(json.dumps(found, indent=1) + "\n")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    times = (row["latency"][f"p{level}_s"] * 1e3 for level in (20, 50, 80))
    scale, unit = (1e12, "TFLOP/s") if row["unit"] == "FLOP/s" else (1e9, "GB/s")
    peak = row["peak_extra_bytes"]
    worst = max(row["max_error"].values(), default=None)
    return (
        row["case"], row["provider"], row["call"], *(number(t, ".4g") for t in times),
        f"{row['rate'] / scale:.4g} {unit}", f"{row['ceiling_share']:.0%}",
        number(None if peak is None else peak / 2**20, ".0f"), number(row["joules"]["value"]), number(worst, ".2g"),
    )  # fmt: skip
