"""The CPU seconds of a process and all its descendants, while they run.

`getrusage` tells of children only once they have ended, so a data loader's workers or a launcher's ranks would show
hours of work in one jump at the end. The kernel's files under /proc tell of every process now. A process that ends
hands its seconds to the parent that waits for it; what has been counted of it already is taken off there, so that
nothing counts twice and the sum never falls.
"""

import os
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from efftrain.sensors.protocol import SensorError, SensorInfo

NAME: Final = "process-tree"
PERIOD_S: Final = 0.19
"""A reading takes 0.1 ms on a small machine and about 1 ms among a thousand processes; no round share of a step."""
BOUNDARY: Final = (
    "busy threads of the process and of all its descendants; not the processor's idle power, not other processes, "
    "not memory"
)
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

_Key = tuple[int, int]
"""A process: its number and, because numbers are used again, the moment at which it began."""


@dataclass(frozen=True, slots=True)
class _Times:
    """CPU seconds of one process: its own, and those of the children that it has waited for."""

    parent: int
    own: float
    reaped: float


class ProcessTreeSensor:
    """User and system time in s of a process tree since this sensor was made.

    A descendant whose parents are gone stays in the tree where `root` is a subreaper (prctl(2)), else it leaves. What
    a child used is lost from its last reading on where its parent ignores SIGCHLD and so never waits.

    Args:
        model: what is known of a busy thread's watts: the declaration of a sensor of the kind `cpu_time`.
        root: number of the process at the root.
        with_root: whether the root's own seconds count, or its descendants' alone.
        proc: the kernel's folder of processes.

    Raises:
        SensorError: there is no such process.
    """

    def __init__(self, model: SensorInfo, root: int, *, with_root: bool = True, proc: Path = Path("/proc")) -> None:
        source = model.source.replace("CPU seconds of the process ", "CPU seconds of the process tree ")
        self.info = replace(model, name=NAME, period_s=PERIOD_S, source=source, boundary=BOUNDARY)
        self._proc, self._root, self._with_root = proc, root, with_root
        self._outside: set[int] = set()
        self._inside: dict[int, int] = {}  # number -> parent, parents first
        self._owed = 0.0
        self._seconds = 0.0
        self._before = self._scan()
        self._at_start = self._reaped_by_root(self._before)

    def read(self) -> float:
        """CPU seconds of the tree since the sensor was made; never less than before.

        Raises:
            SensorError: the root is gone.
        """
        now = self._scan()
        self._seconds += self._grown(now)
        self._before = now
        if len(now) == 1 and not self._with_root:  # nobody is left: the kernel's own sum is exact
            self._seconds = max(self._seconds, self._reaped_by_root(now) - self._at_start)
        return self._seconds

    def close(self) -> None:
        """Nothing is held."""

    @property
    def alive(self) -> int:
        """Descendants that were running, or waited to be reaped, at the last reading."""
        return len(self._before) - 1

    def _grown(self, now: dict[_Key, _Times]) -> float:
        """Seconds since the last scan.

        What was counted of processes that have vanished since comes back as the waited-for seconds of others, of their
        parent or of whoever inherited them, and is no growth then. A parent may have been read just before it waited,
        so this debt is carried on for one scan, and not longer: there are parents that never wait.
        """
        own = received = 0.0
        for key, times in now.items():
            before = self._before.get(key) or _Times(times.parent, 0.0, 0.0)
            own += max(0.0, times.own - before.own)
            received += max(0.0, times.reaped - before.reaped)
        gone = (self._before[key] for key in self._before.keys() - now.keys())
        fresh = sum(times.own + times.reaped for times in gone)
        unpaid = max(0.0, fresh + self._owed - received)
        growth = own + max(0.0, received - fresh - self._owed)
        self._owed = min(fresh, unpaid)
        return growth

    def _scan(self) -> dict[_Key, _Times]:
        """The times of all processes of the tree; parents are read first, so that a race can hide, not double."""
        self._find()
        found: dict[_Key, _Times] = {}
        for pid in (self._root, *self._inside):
            read = self._read(pid)
            if read is not None:
                found[read[0]] = read[1]
        if not any(pid == self._root for pid, _ in found):
            raise SensorError(f"{self.info.name}: process {self._root} is gone")
        return found

    def _find(self) -> None:
        """Bring the list of the tree's processes up to date; only new processes are looked at."""
        try:
            listed = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        except OSError as error:
            raise SensorError(f"{self.info.name}: {self._proc}: {error.strerror}") from error
        self._outside &= listed
        known = {pid: parent for pid, parent in self._inside.items() if pid in listed}
        new: dict[int, int] = {}
        for pid in listed - self._outside - known.keys() - {self._root}:
            read = self._read(pid)
            if read is not None:
                new[pid] = read[1].parent
        self._inside = known
        while joined := [pid for pid, parent in new.items() if parent == self._root or parent in self._inside]:
            self._inside |= {pid: new.pop(pid) for pid in joined}
        self._outside |= new.keys()

    def _read(self, pid: int) -> tuple[_Key, _Times] | None:
        """One process; None where it is gone. See proc_pid_stat(5) for the fields."""
        try:
            text = (self._proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        fields = text[text.rfind(")") + 2 :].split()  # the name before it may hold anything
        own, reaped = (sum(map(int, fields[i : i + 2])) * _TICK_S for i in (11, 13))
        if pid == self._root:
            own, reaped = self._of_root(own, reaped)
        return (pid, int(fields[19])), _Times(int(fields[1]), own, reaped)

    def _of_root(self, own: float, reaped: float) -> tuple[float, float]:
        """The root's times: exact where it is this process, and without its own where those do not count."""
        if self._root == os.getpid():
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            own, reaped = time.process_time(), usage.ru_utime + usage.ru_stime
        return (own if self._with_root else 0.0), reaped

    def _reaped_by_root(self, times: dict[_Key, _Times]) -> float:
        return next(t.reaped for (pid, _), t in times.items() if pid == self._root)
