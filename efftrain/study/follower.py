"""The command of a rank other than the first: it says nothing, and takes part in each run that rank 0 begins.

It ends when rank 0 says so, or when torchrun does.
"""

import contextlib
import json
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
from efftrain.study.launch import LOST_PATIENCE_S, holds, open_store

WAIT_S: Final = 0.1
STOP_PATIENCE_S: Final = 20.0
IDLE_S: Final = 10.0
INTERRUPTED: Final = 130


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
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "efftrain.study.running.worker", str(spec), own], cwd=message["cwd"],
                    stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            self._wait(process, run)
            reason = self._reason(process.returncode, log)
        except OSError as error:  # a machine that does not see the folder
            reason = f"rank {self._rank.rank} cannot take part: {error}"
        with contextlib.suppress(Exception):
            if reason:
                self._store.set(f"{run}/lost", reason)
            self._store.set(f"{run}/ended/{self._rank.rank}", reason)

    def _wait(self, process: subprocess.Popen[bytes], run: str) -> None:
        """Until the process ends; it is ended where rank 0's has, or where it does not stop when asked."""
        end: float | None = None
        told = False
        while process.poll() is None:
            if self._asked and not told:
                told, end = True, time.monotonic() + STOP_PATIENCE_S
                process.send_signal(signal.SIGINT)
            if end is None and holds(self._store, f"{run}/over"):
                end = time.monotonic() + LOST_PATIENCE_S
            if end is not None and time.monotonic() > end:
                process.kill()
                process.wait()
            time.sleep(WAIT_S)

    def _reason(self, returncode: int, log: Path) -> str:
        """Why this rank was lost, in one line; nothing where it was not."""
        if returncode == 0 or (self._asked and returncode == -signal.SIGINT):  # which may come after its end
            log.unlink(missing_ok=True)
            return ""
        if returncode < 0:
            return f"rank {self._rank.rank} was killed by {signal.Signals(-returncode).name}"
        return f"rank {self._rank.rank} ended with status {returncode}: {_last_error(log)}"

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


def _last_error(log: Path) -> str:
    """The line that names the last exception, or the last line of all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\[rank\d+\]:\s*)?[\w.]+(Error|Exception)\b", line)]
    return [*(lines or ["it said nothing"]), *named][-1]
