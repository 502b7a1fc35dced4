"""The command of a rank other than the first: it says nothing, and takes part in each run that rank 0 begins.

It ends when rank 0 says so, or when torchrun does.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Final

from efftrain.monitor.idle import measure_idle
from efftrain.monitor.launch import Rank, this_rank
from efftrain.monitor.machine import find_sensors
from efftrain.record.journal import JournalTail
from efftrain.record.recorder import ENDED_WELL
from efftrain.study.launch import LOST_PATIENCE_S, Loss, holds, open_store, tell_end
from efftrain.study.process import SAVE_PATIENCE_S, STOP_PATIENCE_S

WAIT_S: Final = 0.1
IDLE_S: Final = 10.0
INTERRUPTED: Final = 130
AGREED: Final = ENDED_WELL | {"interrupted", "diverged"}
"""Ends that all ranks come to together."""


def is_follower(arguments: list[str]) -> bool:
    """Whether a command of these arguments, run as this process, is one that only takes part."""
    return arguments[:1] in (["train"], ["bench"]) and this_rank().rank > 0


def follow(arguments: list[str]) -> int:
    """Take part until rank 0 or torchrun ends it; the exit status.

    Args:
        arguments: of the command, as rank 0 has them too: it says what is wrong with them.
    """
    if "--help" in arguments:
        return 0
    return Follower(this_rank(), open_store()).follow()


class Follower:
    """One rank at its end of the store; see `efftrain.study.launch.Followers` for the other end."""

    def __init__(self, rank: Rank, store: Any) -> None:
        self._rank, self._store = rank, store
        self._idle: dict[str, Any] = {}
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def follow(self) -> int:
        """See `follow`."""
        for number in count():
            message = self._next(f"message/{number}")
            match message.get("kind"):
                case "idle":
                    self._read_idle(message["device"])
                case "run":
                    self._take_part(message)
                case "end":
                    return 0
                case _:
                    return INTERRUPTED
        return 0

    def _next(self, key: str) -> dict[str, Any]:
        """The next message; nothing where none will come."""
        while not self._asked:
            try:
                if self._store.check([key]):
                    return json.loads(self._store.get(key))
            except Exception:  # torchrun is gone, and the store with it
                return {}
            time.sleep(WAIT_S)
        return {}

    def _read_idle(self, device: str) -> None:
        """Idle power of a machine that rank 0 is not on."""
        if not self._rank.first:
            return
        sensors = find_sensors(device, gpus=self._rank.gpus(device)).sensors
        measuring = [sensor for sensor in sensors if sensor.info.kind in ("energy", "power")]
        self._idle = measure_idle(measuring, IDLE_S) if measuring else {}
        for sensor in sensors:
            sensor.close()

    def _take_part(self, message: dict[str, Any]) -> None:
        run, spec = message["run_id"], Path(message["spec"])
        log = spec.with_name(f"rank-{self._rank.rank}.txt")
        own = json.dumps({"parent": os.getpid(), "idle": self._idle})
        try:
            keeps = json.loads(spec.read_text())["config"]["checkpoint_every"] is not None
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "efftrain.study.running.worker", str(spec), own], cwd=message["cwd"],
                    stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            part = _Part(process, JournalTail(log.with_suffix(".jsonl")), SAVE_PATIENCE_S if keeps else STOP_PATIENCE_S)
            while part.goes_on(asked=self._asked, over=holds(self._store, f"{run}/over")):
                time.sleep(WAIT_S)
            loss = self._loss(part, log)
        except OSError as error:  # a machine that does not see the folder
            loss = Loss(f"rank {self._rank.rank} cannot take part: {error}")
        tell_end(self._store, run, self._rank.rank, loss)

    def _loss(self, part: "_Part", log: Path) -> Loss | None:
        """Why this rank was lost, or None."""
        returncode = part.process.returncode
        if part.failed:
            log.unlink(missing_ok=True)
            status = "oom" if part.failed["status"] == "oom" else "failed"
            return Loss(f"rank {self._rank.rank}: {part.failed.get('detail', part.failed['status'])}", status)
        if returncode == 0 or (self._asked and returncode == -signal.SIGINT):  # which may come after its end
            log.unlink(missing_ok=True)
            return None
        if returncode < 0:
            name = signal.Signals(-returncode).name
            return None if part.left_behind else Loss(f"rank {self._rank.rank} was killed by {name}")
        return Loss(f"rank {self._rank.rank} ended with status {returncode}: {_last_error(log)}")

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


class _Part:
    """This rank's process in a run.

    Attributes:
        process: it.
        failed: the end line of its journal where it failed by itself, which others may not have noticed yet.
        left_behind: it was ended because the run is over.
    """

    def __init__(self, process: subprocess.Popen[bytes], journal: JournalTail, patience_s: float) -> None:
        self.process, self._journal, self._patience_s = process, journal, patience_s
        self.failed: dict[str, Any] = {}
        self.left_behind = False
        self._asked, self._over = False, False
        self._until = math.inf

    def goes_on(self, *, asked: bool, over: bool) -> bool:
        """Whether it still runs; one that does not stop soon when it should is ended.

        Args:
            asked: whether it shall stop.
            over: whether rank 0's process has ended.
        """
        running = self.process.poll() is None
        ends = [line for line in self._journal.read() if line["kind"] == "end" and line["status"] not in AGREED]
        self.failed = ends[-1] if ends else self.failed
        if running and asked and not self._asked:
            self._asked, self._until = True, time.monotonic() + self._patience_s
            self.process.send_signal(signal.SIGINT)
        if not self._over and (over or self.failed):
            self._over, self._until = True, min(self._until, time.monotonic() + LOST_PATIENCE_S)
        if running and time.monotonic() > self._until:
            self.left_behind = self._over
            self.process.kill()
            self.process.wait()
        return running


def _last_error(log: Path) -> str:
    """The line that names the last exception, or the last line of all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\[rank\d+\]:\s*)?[\w.]+(Error|Exception)\b", line)]
    return [*(lines or ["it said nothing"]), *named][-1]
