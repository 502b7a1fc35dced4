"""How busy other processes keep the processor while something is measured on it.

From the kernel's own account of each processor (proc(5), `/proc/stat`), those alone that this process may use. What a
hypervisor took away (`steal`) is used by others too.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BUSY: Final = (0, 1, 2, 5, 6, 7)
"""Columns of a processor's line: user, nice, system, irq, softirq, steal; idle and iowait stand between."""

_UNCOUNTED: Final = 0.5
"""Where the kernel counts less than this share of our own seconds, it does not count at all, as in some sandboxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was used up to now.

    Attributes:
        clock_s: of a monotonic clock.
        busy_s: CPU seconds of everybody on the processors that this process may use.
        own_s: CPU seconds of this process.
        processors: how many they are.
    """

    clock_s: float
    busy_s: float
    own_s: float
    processors: int


def moment(root: Path = Path("/")) -> Moment | None:
    """Now; None where the system does not tell. `root` holds `proc`."""
    try:
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        rows = [line.split() for line in (root / "proc/stat").read_text().splitlines() if line.startswith("cpu")]
        ticks = [[int(row[1:][column]) for column in _BUSY] for row in rows if row[0] in mine]
        hertz = os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):  # AttributeError: a system without affinities
        return None
    if not ticks:
        return None
    return Moment(
        clock_s=time.perf_counter(), busy_s=sum(map(sum, ticks)) / hertz, own_s=time.process_time(),
        processors=len(ticks),
    )  # fmt: skip


def share_of_others(before: Moment | None, after: Moment | None) -> float | None:
    """Share of the processors' time between two moments that other processes used, 0 to 1; None: not known."""
    if before is None or after is None or after.clock_s <= before.clock_s:
        return None
    busy, own = after.busy_s - before.busy_s, after.own_s - before.own_s
    if busy < _UNCOUNTED * own:
        return None
    return min(1.0, max(0.0, busy - own) / ((after.clock_s - before.clock_s) * after.processors))
