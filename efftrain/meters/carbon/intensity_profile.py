"""Intensity of a grid by the hour: reading a file of it, integrating a run over it, finding its greenest stretch.

A profile is piecewise constant: a row holds until the next one, and where rows are missing there is a gap, not a
guess. The journal's header keeps the rows that a run can need, so that its figures can be made again without the file.
"""

import csv
import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from efftrain.meters.carbon.grids import CarbonError
from efftrain.meters.windows import Window, seconds
from efftrain.record.quantities import Quantity

OPTION = "--intensity-profile"
KEPT_ROWS = 1000
"""Rows from the start of a study on that its journals keep: 41 days of hours."""
GAP_STEPS = 1.5
"""A row that is followed later than this many usual steps is followed by a gap."""
HIGHEST_G_PER_KWH = 5000.0
"""Twice the dirtiest plant's: a figure above it is in another unit."""

_TIME_NAMES = ("datetime", "timestamp", "time", "date", "hour", "from")
_INTENSITY_NAMES = ("intensity", "g/kwh", "gco2", "gco₂", "g_per_kwh")
_NOT_INTENSITY = ("source", "estimat", "index", "unit")
_SCOPES = {"life": "lifecycle", "lca": "lifecycle", "direct": "direct"}


class Stretch(NamedTuple):
    """Start and end in Unix seconds, and the intensity between them in g/kWh."""

    start: float
    end: float
    intensity: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Stretches in order, without overlap; `source` names the file, the column's scope and the zone of its times."""

    stretches: tuple[Stretch, ...]
    source: str

    def mean(self) -> float:
        """Mean over time, g/kWh."""
        whole = math.fsum(s.end - s.start for s in self.stretches)
        return math.fsum((s.end - s.start) * s.intensity for s in self.stretches) / whole

    def plain(self, now: float) -> dict[str, Any]:
        """What a journal's header keeps: the rows from `now` (Unix s) on, and the mean of the whole file."""
        rows = [list(s) for s in self.stretches if s.end > now][:KEPT_ROWS]
        return {"source": self.source, "mean": self.mean(), "rows": rows}


class Start(NamedTuple):
    """When a job starts, in Unix seconds, and the mean intensity over its length in g/kWh."""

    time: float
    intensity: float


class Choice(NamedTuple):
    """The best, the first and the worst start of a job in a profile."""

    best: Start
    first: Start
    worst: Start


def read_profile(path: Path) -> Profile:
    """Read a CSV file with a column of times (ISO 8601) and one of intensities (g/kWh).

    Columns are known by their names, as Electricity Maps and others write them; of several, the lifecycle one is
    taken. A time without a zone is taken as UTC. A row without an intensity is a gap.

    Raises:
        CarbonError: the file cannot be read, or is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CarbonError(f"{OPTION} {path}: cannot be read: {why}") from None
    reader = csv.reader(text.splitlines())
    header = next(reader, [])
    when, what = _columns(path, header)
    rows: dict[float, float | None] = {}
    zoned = "utc" in header[when].casefold()
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{OPTION} {path}, line {reader.line_num}"
        time, has_zone = _time(where, cells[when] if when < len(cells) else "")
        if time in rows:
            raise CarbonError(f"{where}: a second row for {_iso(time)}; a profile holds one grid, each time once")
        rows[time] = _intensity(where, cells[what] if what < len(cells) else "")
        zoned = zoned or has_zone
    source = f"{path.name}, column {header[what].strip()!r} ({_scope(header[what])})"
    return Profile(_stretches(path, rows), source if zoned else f"{source}, times taken as UTC")


def covering(profile: Profile, now: float) -> Profile:
    """The profile itself, if it can say anything about a run that starts now (Unix s).

    Raises:
        CarbonError: it ends before, or begins only later.
    """
    start, end = profile.stretches[0].start, profile.stretches[-1].end
    if not start <= now < end:
        raise CarbonError(
            f"{OPTION}: covers {_iso(start)} to {_iso(end)}, but it is {_iso(now)} now; a profile that covers the run "
            "is needed"
        )
    return profile


def intensity_over(
    kept: Mapping[str, Any],
    clock: Mapping[str, Any],
    windows: Sequence[Window],
    energy_over: Callable[[Sequence[Window]], Quantity],
) -> Quantity:
    """Mean intensity in g/kWh over a run, weighted by the energy that it used in each row's time.

    Where the profile does not reach, its mean is assumed, and the source says for what part of the run. Where the
    energy of an hour could not be read, hours are weighted by time.

    Args:
        kept: as `Profile.plain` made it.
        clock: the header's anchor, `monotonic_ns` and `unix_s`; empty where a run never got so far.
        windows: the billed stretches, ns.
        energy_over: energy in J of some windows, as `Ledger.total`.
    """
    parts = _parts(kept, clock, windows)
    if not parts:
        why = "nothing is billed" if clock else "no clock was recorded"
        return _assumed(kept, f"{why}: mean of the file")
    energies = [energy_over(part).value for part, _ in parts]
    by_energy = all(e is not None for e in energies) and any(energies)
    weights = [e or 0.0 for e in energies] if by_energy else [seconds(part) for part, _ in parts]
    # A row without an intensity stands for the time that no row covers.
    values = [kept["mean"] if grams is None else grams for _, grams in parts]
    mean = math.fsum(w * g for w, g in zip(weights, values, strict=True)) / math.fsum(weights)
    source = f"mean over the run's hours weighted by {'energy' if by_energy else 'time'}; {kept['source']}"
    outside = math.fsum(w for w, (_, g) in zip(weights, parts, strict=True) if g is None) / math.fsum(weights)
    if outside:
        source += f"; {100 * outside:.3g} % of the run lies outside of it: the file's mean is assumed there"
    return Quantity(value=mean, unit="g/kWh", method="assumed" if outside else "modelled", source=source)


def greenest(profile: Profile, duration_s: float) -> Choice:
    """The best start of a job that takes `duration_s` seconds at constant power; the earliest of equals.

    The mean over a sliding window of a piecewise constant function is piecewise linear in the start, so that its
    extremes lie where the job's start or its end meets the border of a row; these starts alone are looked at.

    Raises:
        CarbonError: the profile has no stretch without a gap that is long enough.
    """
    starts = [start for run in _runs(profile.stretches) for start in _candidates(run, duration_s)]
    if not starts:
        longest = max(run[-1].end - run[0].start for run in _runs(profile.stretches)) / 3600
        raise CarbonError(
            f"--hours {duration_s / 3600:g}: longer than the {longest:g} hours that the profile covers without a gap"
        )
    best = min(starts, key=lambda s: (s.intensity, s.time))
    worst = max(starts, key=lambda s: (s.intensity, -s.time))
    return Choice(best, min(starts), worst)


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int]:
    names = [name.casefold().strip() for name in header]
    times = [i for wanted in _TIME_NAMES for i, name in enumerate(names) if wanted in name]
    found = [
        i
        for i, name in enumerate(names)
        if any(wanted in name for wanted in _INTENSITY_NAMES) and not any(bad in name for bad in _NOT_INTENSITY)
    ]
    if not times or not found:
        raise CarbonError(
            f"{OPTION} {path}: needs a header line with a column of times (datetime) and one of intensities "
            f"(intensity in g/kWh); has {', '.join(header) or 'none'}"
        )
    return times[0], min(found, key=lambda i: _scope(names[i]) != "lifecycle")


def _scope(name: str) -> str:
    return next((scope for sign, scope in _SCOPES.items() if sign in name.casefold()), "scope not given")


def _time(where: str, text: str) -> tuple[float, bool]:
    """Unix seconds, and whether the text named a zone."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise CarbonError(f"{where}: {text!r} is no ISO 8601 time, for example 2026-01-31T13:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), moment.tzinfo is not None


def _intensity(where: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= HIGHEST_G_PER_KWH:
        raise CarbonError(f"{where}: {text!r} is no intensity; 0 to {HIGHEST_G_PER_KWH:g} g/kWh is expected")
    return value


def _stretches(path: Path, rows: Mapping[float, float | None]) -> tuple[Stretch, ...]:
    times = sorted(rows)
    if len(times) < 2 or all(value is None for value in rows.values()):
        raise CarbonError(f"{OPTION} {path}: at least two rows and an intensity are needed")
    step = statistics.median(later - time for time, later in pairwise(times))
    ends = [later if later - time <= GAP_STEPS * step else time + step for time, later in pairwise(times)]
    spans = zip(times, [*ends, times[-1] + step], strict=True)
    return tuple(Stretch(start, end, value) for start, end in spans if (value := rows[start]) is not None)


def _parts(
    kept: Mapping[str, Any], clock: Mapping[str, Any], windows: Sequence[Window]
) -> list[tuple[list[Window], float | None]]:
    """The billed windows by intensity: those inside of each row, and with None those that no row covers."""
    if not clock or not windows:
        return []
    anchor, unix = clock["monotonic_ns"], clock["unix_s"]
    first, last = (unix + (t - anchor) / 1e9 for t in (windows[0][0], windows[-1][1]))
    edges = [
        (anchor + round((start - unix) * 1e9), anchor + round((end - unix) * 1e9), grams)
        for start, end, grams in kept["rows"]
        if end > first and start < last
    ]
    parts: list[tuple[list[Window], float | None]] = []
    uncovered, done = [], -math.inf
    for start, end, grams in edges:
        uncovered.append((done, start))
        parts.append((_inside(windows, start, end), grams))
        done = end
    uncovered.append((done, math.inf))
    outside = [window for low, high in uncovered for window in _inside(windows, low, high)]
    return [(part, grams) for part, grams in [*parts, (outside, None)] if part]


def _inside(windows: Sequence[Window], low: float, high: float) -> list[Window]:
    cut = [(int(max(start, low)), int(min(end, high))) for start, end in windows if start < high and end > low]
    return [(start, end) for start, end in cut if start < end]


def _assumed(kept: Mapping[str, Any], why: str) -> Quantity:
    return Quantity(value=kept["mean"], unit="g/kWh", method="assumed", source=f"{why}; {kept['source']}")


def _runs(stretches: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """Stretches without a gap between them."""
    run: list[Stretch] = []
    for stretch in stretches:
        if run and stretch.start > run[-1].end:
            yield run
            run = []
        run.append(stretch)
    yield run


def _candidates(run: Sequence[Stretch], duration_s: float) -> list[Start]:
    """Every start in a run of stretches at which the mean can be extreme."""
    borders = [run[0].start, *(stretch.end for stretch in run)]
    sums = [0.0, *accumulate((s.end - s.start) * s.intensity for s in run)]

    def integral(time: float) -> float:
        index = min(bisect_right(borders, time) - 1, len(run) - 1)
        return sums[index] + (time - borders[index]) * run[index].intensity

    last = borders[-1] - duration_s
    starts = {start for border in borders for start in (border, border - duration_s) if borders[0] <= start <= last}
    return [Start(s, (integral(s + duration_s) - integral(s)) / duration_s) for s in sorted(starts)]


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
