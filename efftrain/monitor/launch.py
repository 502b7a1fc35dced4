"""Which of a launcher's processes this is.

`torchrun` starts one process for each device of a machine. The first of them reads the machine's sensors, the others
write down their steps; they agree on a folder without a word, from facts that they all see.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process among those of a launch.

    Attributes:
        rank: its number among all, from 0.
        size: how many there are on all machines.
        local: its number on this machine, from 0.
        ranks: how many there are on this machine.
        node: number of this machine in the launch.
        nodes: how many machines the launch has.
        launch: what all processes of one launch on this machine have in common and no other launch has.
        started: when the launch began, in Unix seconds.
        root: the process from which all of them on this machine descend.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    ranks: int = 1
    node: int = 0
    nodes: int = 1
    launch: str = ""
    started: float
    root: int

    @property
    def first(self) -> bool:
        """Whether this process owns the machine's sensors."""
        return self.local == 0

    def gpus(self, device: str) -> tuple[int, ...]:
        """The GPUs that this machine's ranks use, by number as CUDA counts; none where they train on `cpu`."""
        return tuple(range(self.ranks)) if device.startswith("cuda") and self.size > 1 else ()


def this_rank(environ: Mapping[str, str] = os.environ, *, started_as: int | None = None) -> Rank:
    """This process as torchrun's environment describes it; one of one where there is none.

    Args:
        environ: where torchrun's variables stand.
        started_as: the process that torchrun has started, where this one was started by it.
    """
    size = _number(environ, "WORLD_SIZE", 1)
    if size < 2 or "TORCHELASTIC_RUN_ID" not in environ:
        return Rank(launch=f"{os.getpid()}-{time.monotonic_ns()}", started=time.time(), root=os.getpid())
    ranks = max(1, _number(environ, "LOCAL_WORLD_SIZE", 1))
    launcher = os.getppid() if started_as is None else parent_of(started_as)
    began = _began(launcher)
    restart = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Rank(
        rank=_number(environ, "RANK", 0), size=size, local=_number(environ, "LOCAL_RANK", 0), ranks=ranks,
        node=_number(environ, "GROUP_RANK", 0), nodes=max(1, size // ranks),
        launch=f"{launcher}-{began:.2f}-{restart}", started=began, root=launcher,
    )  # fmt: skip


def parent_of(pid: int) -> int:
    """The process that has started `pid`; 0 where that is not known."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _began(pid: int) -> float:
    """When a process began, in Unix seconds to 1/100 s, alike for all who ask; see proc_stat(5)."""
    fields = _stat(pid)
    try:
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return 0.0
    return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on; see proc_pid_stat(5). Nothing where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
