"""Signals of a process that lives for the command that it measures.

They are blocked and waited for, which works in every thread only if it comes before any other thread begins: libraries
of arithmetic start theirs when they are imported, so nothing heavy is imported here.
"""

import signal
from collections.abc import Collection
from typing import Final

HANDED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What is sent to this process alone is meant for the command."""

WAITED_FOR: Final[set[signal.Signals]] = {*HANDED_ON, signal.SIGCHLD}


def hold() -> Collection[int]:
    """Block the signals that will be waited for, in this thread and those that it starts; the mask before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
