"""How a process that measures is led through its windows; the standard library alone, for every tool's environment.

A worker prints `ready`, gets its windows as one line of JSON, and writes what it measured as JSON to a file. The true
energy is taken over the time between the end of the tool's first call and the start of its second, which is where the
user's own work would be.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Window = tuple[int, int]
"""Planned start and end, ns of time.monotonic_ns()."""


def sleep_until(t_ns: int) -> None:
    """Return at `t_ns`, or at once if that is past."""
    while (left := t_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)


def serve(open_tool: Callable[[], tuple[Callable[[], Any], Callable[[], float | None]]], out: Path) -> None:
    """Measure the windows that come on standard input.

    Args:
        open_tool: makes the tool ready and gives the call that begins a window and the one that ends it, which returns
            J or None.
        out: where the result goes: a list of {start, end, joules, note}, times in ns.
    """
    line = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # tools print what they like; the parent waits for one word
    begin, end = open_tool()
    print("ready", file=line, flush=True)
    windows = json.loads(sys.stdin.readline())
    out.write_text(json.dumps([_measure(window, begin, end) for window in windows]))


def _measure(window: Window, begin: Callable[[], Any], end: Callable[[], float | None]) -> dict[str, Any]:
    joules, note = None, ""
    sleep_until(window[0])
    try:
        begin()
    except Exception as error:
        note = f"begin: {type(error).__name__}: {error}"
    started = time.monotonic_ns()
    sleep_until(window[1])
    ended = time.monotonic_ns()
    try:
        joules = end()
    except Exception as error:
        note = note or f"end: {type(error).__name__}: {error}"
    return {"start": started, "end": ended, "joules": joules, "note": note}
