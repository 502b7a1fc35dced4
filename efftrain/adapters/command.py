"""Measures a command of any language, with all the processes that it starts.

The command gets this process's standard streams and its place in the terminal, so that Ctrl-C reaches it directly; what
is sent to this process alone is handed on. This process becomes the parent of whatever the command leaves behind, so
that no descendant's CPU seconds are lost while it runs. It is a program's main thread: it waits for signals, and lays
no hand on anybody's handlers.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from efftrain.adapters.keeping import Keeping, Wish
from efftrain.adapters.records import Made
from efftrain.adapters.signals import HANDED_ON, WAITED_FOR, hold
from efftrain.monitor.launch import Rank
from efftrain.record.recorder import Status

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_PR_SET_CHILD_SUBREAPER: Final = 36
_SI_KERNEL: Final = 0x80
"""`si_code` of a signal that a terminal sends, to all processes in the foreground at once; see sigaction(2)."""

_POLL_S: Final = 1.0


class CommandError(OSError):
    """The command cannot be started; one line that says why. `errno` tells which of the two usual reasons."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it cost.

    Attributes:
        status: what a shell would report: the command's own, or 128 + the signal that ended it.
        made: the record; None where none could be made.
        folder: where everything is; None where nothing could be written.
        problems: what went wrong with measuring.
    """

    status: int
    made: Made | None
    folder: Path | None
    problems: list[str]


def run_command(
    command: Sequence[str],
    *,
    name: str,
    carbon: dict[str, Any],
    folder: Path | None = None,
    device: str = "auto",
    node_overhead_w: float | None = None,
    to_stderr: bool = False,
    held: Collection[int] | None = None,
) -> Ended:
    """Run a command to its end and measure it.

    Args:
        command: program and arguments, as a shell would hand them over.
        name: of the measurement.
        carbon: as `efftrain.meters.carbon.footprint.resolve` makes it.
        folder: where everything goes; a new one under efftrain-runs if not given.
        device: whose energy counts besides the host's: `auto` for all visible GPUs, `cpu`, `cuda` or `cuda:N`.
        node_overhead_w: W of what no sensor reads, where the user knows it.
        to_stderr: whether what the command writes to its standard output goes to standard error.
        held: the mask before `efftrain.adapters.signals.hold`, where a program called that at its very start: the
            signals then stay blocked, so that none that comes late changes its exit status.

    Raises:
        CommandError: it cannot be started.
    """
    _adopt_orphans()
    # Blocked before the sampler's thread begins, so that no thread takes a signal that is waited for here.
    before = hold() if held is None else held
    try:
        rank = Rank(launch=f"{os.getpid()}-{time.monotonic_ns()}", started=time.time(), root=os.getpid())
        keeping = Keeping(
            Wish(
                name=name, command=shlex.join(command), rank=rank, carbon=carbon, folder=folder, device=device,
                node_overhead_w=node_overhead_w, config={"command": list(command)}, children_only=True,
            )
        )  # fmt: skip
        return _measured(keeping, command, before, to_stderr=to_stderr)
    finally:
        while signal.sigtimedwait(WAITED_FOR, 0) is not None:
            pass  # Ctrl-C while the record was being written: the status is the command's all the same
        if held is None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _measured(keeping: Keeping, command: Sequence[str], mask: Collection[int], *, to_stderr: bool) -> Ended:
    recorder = None
    with keeping.guarded("the measurement could not begin"):
        recorder = keeping.open()
    if signal.sigtimedwait({signal.SIGINT}, 0) is not None:  # before there was a command to hand it to
        keeping.discard()
        raise KeyboardInterrupt
    began = time.monotonic_ns()
    if recorder is not None:
        recorder.past_span("whole", t=began, t_end=began)
    try:
        pid = _spawn(command, mask, to_stderr=to_stderr)
    except CommandError:
        keeping.discard()
        raise
    code, interrupted = _wait(pid)
    status, detail = _said(code, interrupted=interrupted)
    with keeping.guarded("the end could not be written"):
        if recorder is not None:
            recorder.past_span("whole", t=began, t_end=time.monotonic_ns())
            if _others_run():
                recorder.note("the command left processes running: they count until its end and no longer")
            recorder.end(status, **({"detail": detail} if detail else {}))
    made = keeping.close(status)
    folder = keeping.folder.root if keeping.folder else None
    return Ended(code if code >= 0 else 128 - code, made, folder, keeping.problems)


def _spawn(command: Sequence[str], mask: Collection[int], *, to_stderr: bool) -> int:
    """Start the command with the signals that this process was started with."""
    streams = [(os.POSIX_SPAWN_DUP2, 2, 1)] if to_stderr else []
    ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        return os.posix_spawnp(
            command[0], list(command), os.environ, file_actions=streams, setsigmask=mask, setsigdef=ignored_by_python
        )
    except OSError as error:
        raise CommandError(error.errno, f"{command[0]}: {error.strerror}") from None


def _wait(pid: int) -> tuple[int, bool]:
    """Reap children until the command has ended; its exit code, and whether Ctrl-C was pressed or sent."""
    interrupted = False
    while True:
        info = signal.sigtimedwait(WAITED_FOR, _POLL_S)
        if info is not None and info.si_signo in HANDED_ON:
            interrupted |= info.si_signo == signal.SIGINT
            if info.si_code != _SI_KERNEL:
                os.kill(pid, info.si_signo)
        code = _reap(pid)
        if code is not None:
            return code, interrupted


def _reap(pid: int) -> int | None:
    """Take in all children that have ended, orphans too; the command's code, negative for a signal, if it has ended."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            if ended == pid:
                found = os.waitstatus_to_exitcode(status)
    return found


def _others_run() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _said(code: int, *, interrupted: bool) -> tuple[Status, str]:
    if code == 0:
        return "complete", ""
    how = f"exit status {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    return ("interrupted" if interrupted or code in (-signal.SIGINT, 128 + signal.SIGINT) else "failed"), how


def _adopt_orphans() -> None:
    """Descendants whose parents end become children of this process; see PR_SET_CHILD_SUBREAPER in prctl(2)."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):  # not Linux: orphans leave the tree
        return
