"""The append-only journal of one run: raw facts, one JSON object a line.

Training and the monitor write here and nowhere else, from two threads; everything that is computed is computed later,
from this file. Lines reach the operating system at least once a second, so a run that is killed loses at most that.
A disk that fills up or a folder that disappears must not end a training, so writing never raises: lines that could
not be written are counted, and the count is written as a note as soon as writing works again.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = "efftrain.journal/1"
FLUSH_INTERVAL_NS: Final = 500_000_000

Line = dict[str, Any]
Clock = Callable[[], int]
"""Monotonic nanoseconds; `time.monotonic_ns` outside of tests."""


class JournalError(ValueError):
    """A file that is not a journal, or one that has no header."""


class JournalWriter:
    """Writes lines to `path`, which must not exist yet. Safe to use from several threads.

    Raises:
        FileExistsError: `path` exists; journals are never overwritten.
        OSError: `path` cannot be created. After that, nothing here raises.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic_ns) -> None:
        self.clock = clock
        self.lost_lines = 0
        self._lock = threading.Lock()
        self._file = path.open("x", encoding="utf-8")
        self._flushed = clock()

    def write(self, kind: str, *, t: int | None = None, **fields: Any) -> None:
        """Append one line; `t` is monotonic nanoseconds, now if it is not given."""
        now = self.clock()
        text = _encode({"kind": kind, "t": now if t is None else t, **fields})
        with self._lock:
            try:
                if self.lost_lines:
                    lost = f"{self.lost_lines} lines could not be written"
                    self._file.write(_encode({"kind": "note", "t": now, "text": lost}))
                    self.lost_lines = 0
                self._file.write(text)
                if now - self._flushed >= FLUSH_INTERVAL_NS:
                    self._flush(now)
            except (OSError, ValueError):  # ValueError: the file was closed
                self.lost_lines += 1

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._flush(self.clock())

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.close()

    def _flush(self, now: int) -> None:
        self._flushed = now
        self._file.flush()


def append_line(path: Path, kind: str, **fields: Any) -> None:
    """Add one line to a journal whose writer is gone; a torn last line stays torn, on a line of its own.

    Raises:
        OSError: `path` cannot be written.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write(_encode({"kind": kind, "t": time.monotonic_ns(), **fields}).encode())


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal as read: its header, all lines in file order, and what was wrong with the file."""

    header: Line
    lines: list[Line]
    defects: list[str]

    def of(self, kind: str) -> list[Line]:
        """The lines of one kind, in file order."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def status(self) -> str:
        """What the end line says; `killed` where there is none."""
        ends = self.of("end")
        return str(ends[-1]["status"]) if ends else "killed"


def read_journal(path: Path) -> Journal:
    """Read a journal, complete or cut off.

    A last line without its end is dropped, and any line that is not JSON (a disk that was full, say); both are named
    in `defects`.

    Raises:
        JournalError: no such file, not a journal, or another schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
    defects: list[str] = []
    lines = list(_decode(data, defects))
    if not lines or lines[0]["kind"] != "header":
        raise JournalError(f"{path}: no header line; this is not a journal, or the run died before it began")
    if lines[0].get("schema") != SCHEMA:
        raise JournalError(f"{path}: schema {lines[0].get('schema')!r}, expected {SCHEMA!r}")
    return Journal(header=lines[0], lines=lines[1:], defects=defects)


class JournalTail:
    """Follows a journal while it is written: each call yields the whole lines that have come since the last one.

    What is not JSON is passed over, and a line that is not whole yet waits for its end.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[Line]:
        """The new lines, in file order, the header among them; none while there is no file."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for raw in whole.splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(raw)


def _decode(data: bytes, defects: list[str]) -> Iterator[Line]:
    *whole, torn = data.split(b"\n")
    if torn:
        defects.append(f"the last line was cut off after {len(torn)} bytes and is dropped")
    for number, raw in enumerate(whole, start=1):
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("kind"), str) and isinstance(line.get("t"), int):
            yield line
        else:
            defects.append(f"line {number} is damaged and is dropped")


def _encode(line: Line) -> str:
    try:
        return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"
    except ValueError:  # a NaN loss: JSON has no NaN
        return json.dumps(_finite(line), separators=(",", ":"), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
