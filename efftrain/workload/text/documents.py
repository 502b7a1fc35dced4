"""Where training text comes from: files on this machine, read as documents, and every way in which that can fail.

By default the text is the running Python's own standard library: a dozen million characters that every user already
has. Its tests are left out, and the files that record how this Python was built, which would make the text differ
between machines. Standard library alone, so that a command line can check `--data` before anything heavy is loaded.
"""

import codecs
import hashlib
import json
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from efftrain.workload.text.config import DataError

_KINDS: Final = "a .txt, a .jsonl with a `text` field, or a folder of those"
_HEAD_BYTES: Final = 65_536
_CHUNK_BYTES: Final = 1 << 20
_NOT_LIBRARY: Final = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_SEPARATOR: Final = re.compile(r"\f|<\|endoftext\|>")


def source_name(source: Path | None) -> str:
    """What reports call this text: the file's or folder's name, or the standard library and its version."""
    return f"python-{platform.python_version()}-standard-library" if source is None else source.resolve().name


def source_files(source: Path | None) -> list[Path]:
    """The files of a source in the order in which they are read; None is the standard library.

    Raises:
        DataError: no such path, a type that is not read here, or a folder without any such file.
    """
    if source is None:
        return _library_files()
    with _reading(source):
        if source.is_dir():
            found = sorted(p for p in source.rglob("*") if p.suffix in (".txt", ".jsonl") and p.is_file())
            if not found:
                raise DataError(f"{source}: this folder holds no .txt and no .jsonl")
            return found
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; expected {_KINDS}")
    if source.suffix not in (".txt", ".jsonl"):
        raise DataError(f"{source}: expected {_KINDS}")
    return [source]


def check_source(source: Path) -> None:
    """Look at the beginning of every file, so that a mistake is found before any work is done.

    Raises:
        DataError: missing, empty, unreadable, binary, or a .jsonl whose first line has no `text`.
    """
    files = source_files(source)
    for file in files:
        with _reading(file), file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        _check_text(file, head)
        if file.suffix == ".jsonl":
            _check_first_line(file, head)
    if not any(file.stat().st_size for file in files):
        raise DataError(f"{source}: is empty; training needs text")


def documents(files: list[Path]) -> Iterator[str]:
    """The documents of `files`, in order, without empty ones.

    A .py is one document, left out if it is not UTF-8. A .txt is one document, or several where it has form feeds or
    `<|endoftext|>`. Each line of a .jsonl is one.

    Raises:
        DataError: a file that cannot be read, is binary, is not UTF-8, or a line without `text`.
    """
    readers: dict[str, Callable[[Path], Iterator[str]]] = {".py": _sources, ".txt": _plain, ".jsonl": _json_lines}
    for file in files:
        for text in readers[file.suffix](file):
            if text.strip():
                yield text


def content_hash(files: list[Path]) -> str:
    """SHA-256 of the files' types, sizes and bytes, in order; their names and places do not enter.

    Raises:
        DataError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with _reading(file), file.open("rb") as opened:
            digest.update(f"{file.suffix} {os.fstat(opened.fileno()).st_size}\n".encode())
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        # site-packages stands inside the library and may be far larger than it: never walk into it.
        subfolders[:] = [name for name in subfolders if name not in _NOT_LIBRARY and not name.startswith("config-")]
        sources = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        found += [Path(folder, name) for name in sources]
    if not found:
        raise DataError(f"{root}: this Python has no standard library in source; give --data {_KINDS}")
    return sorted(found)


def _sources(path: Path) -> Iterator[str]:
    with _reading(path), suppress(UnicodeDecodeError):
        yield path.read_bytes().decode("utf-8-sig")


def _plain(path: Path) -> Iterator[str]:
    with _reading(path):
        data = path.read_bytes()
    _check_text(path, data, whole=True)
    yield from _SEPARATOR.split(data.decode("utf-8-sig"))


def _json_lines(path: Path) -> Iterator[str]:
    with _reading(path), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            _check_text(path, line, whole=True)
            if line.strip():
                yield _text_field(path, number, line)


def _check_first_line(path: Path, head: bytes) -> None:
    *lines, rest = head.split(b"\n")
    if len(head) < _HEAD_BYTES:  # the whole file, so that its last line is whole too
        lines.append(rest)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _text_field(path, number, line)
            return


def _text_field(path: Path, number: int, line: bytes) -> str:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}: expected an object with a string in `text`")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}, line {number}: `text` holds half a surrogate pair, which is not text") from None
    return text


def _check_text(path: Path, data: bytes, *, whole: bool = False) -> None:
    if b"\0" in data:
        raise DataError(f"{path}: binary (a NUL byte at {data.index(0)}); expected text in UTF-8")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever the operating system refuses becomes a DataError that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
