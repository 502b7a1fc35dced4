"""Which of a launcher's processes this is.

`torchrun` starts one process for each device of a machine. The first of them reads the machine's sensors, the others
write down their steps; they agree on a folder without a word, from facts that they all see, and nobody waits for long.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from efftrain.record.journal import JournalError, read_journal

PATIENCE_S: Final = 5.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process among those of a launch on this machine.

    Attributes:
        local: its number on this machine, from 0.
        ranks: how many there are on this machine.
        node: number of this machine in the launch.
        nodes: how many machines the launch has.
        launch: what all processes of one launch have in common and no other launch has.
        started: when the launch began, in Unix seconds.
        root: the process from which all of them descend.
    """

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


def this_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """This process as torchrun's environment describes it; one of one where there is none."""
    ranks = _number(environ, "LOCAL_WORLD_SIZE", 1)
    if ranks < 2 or "TORCHELASTIC_RUN_ID" not in environ:
        return Rank(launch=f"{os.getpid()}-{time.monotonic_ns()}", started=time.time(), root=os.getpid())
    launcher = os.getppid()
    began = _began(launcher)
    restart = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Rank(
        local=_number(environ, "LOCAL_RANK", 0), ranks=ranks, node=_number(environ, "GROUP_RANK", 0),
        nodes=_number(environ, "WORLD_SIZE", ranks) // ranks, launch=f"{launcher}-{began:.2f}-{restart}",
        started=began, root=launcher,
    )  # fmt: skip


def wait_for_others(paths: Sequence[Path], *, patience_s: float = PATIENCE_S) -> None:
    """Give the other ranks a moment to end their journals; one whose process is gone is not waited for.

    Args:
        paths: where the journals of the others are; where there is none of them, nobody else measures.
        patience_s: the longest wait in s.
    """
    end = time.monotonic() + patience_s
    while any(path.exists() for path in paths) and not all(map(_over, paths)) and time.monotonic() < end:
        time.sleep(POLL_S)


def _over(path: Path) -> bool:
    try:
        journal = read_journal(path)
    except JournalError:
        return False
    return bool(journal.of("end")) or not Path(f"/proc/{journal.header.get('pid', 0)}").exists()


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _began(pid: int) -> float:
    """When a process began, in Unix seconds to 1/100 s, alike for all who ask; see proc_pid_stat(5), proc_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):  # no /proc: all ranks see the same nothing
        return 0.0
    return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
