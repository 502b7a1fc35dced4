"""Documents out of text files: Python sources, plain text and JSON lines, read in a stream.

No file is ever held whole except a Python source, so that ten gigabytes need no more memory than ten megabytes.
Standard library alone; tables (.parquet, Arrow) are read by `tables`.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from efftrain.workload.text.config import DataError, Document

LONGEST_DOCUMENT: Final = 2 << 20
"""Characters after which a document of a .txt is cut: longer than most books, and held in a few MiB."""

_HEAD_BYTES: Final = 65_536
_CHUNK_BYTES: Final = 1 << 18
_END_OF_TEXT: Final = "<|endoftext|>"
_SHOWN_NAMES: Final = 20


class Columns(NamedTuple):
    """Which fields of a record are wanted: the text's, and the label's if there is one."""

    text: str
    label: str | None = None


def read_source(path: Path, wanted: Columns) -> Iterator[Document]:
    """A Python source as one document; none where it is not UTF-8."""
    _refuse_labels(path, wanted)
    with reading(path), suppress(UnicodeDecodeError):
        yield Document(path.read_bytes().decode("utf-8-sig"))


def read_text(path: Path, wanted: Columns) -> Iterator[Document]:
    """A .txt, cut at form feeds and `<|endoftext|>`.

    A document of more than `LONGEST_DOCUMENT` characters comes in pieces of at most that length, each of which ends at
    a line's end; at a space where no line ends, and anywhere where there is no space either.
    """
    _refuse_labels(path, wanted)
    rest = ""
    for part in _decoded(path):
        *whole, rest = (rest + part).replace(_END_OF_TEXT, "\f").split("\f")
        for text in whole:
            yield from map(Document, _pieces(text))
        # A separator may be half read at the end of `rest`: a cut is due when the document is too long without it.
        *cut, rest = _pieces(rest, spare=len(_END_OF_TEXT) - 1)
        yield from map(Document, cut)
    yield from map(Document, _pieces(rest))


def read_json_lines(path: Path, wanted: Columns) -> Iterator[Document]:
    """A .jsonl, each line of which is one document."""
    with reading(path), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            _check_bytes(path, line, whole=True)
            if line.strip():
                yield _record(f"{path}, line {number}", line, wanted)


def check_text(path: Path, wanted: Columns) -> bool:
    """Look at the beginning of a .py or .txt; False where it is empty."""
    _refuse_labels(path, wanted)
    return bool(_head(path))


def check_json_lines(path: Path, wanted: Columns) -> bool:
    """Look at the beginning of a .jsonl and at its first record; False where it is empty."""
    head = _head(path)
    *lines, rest = head.split(b"\n")
    if len(head) < _HEAD_BYTES:  # the whole file, so that its last line is whole too
        lines.append(rest)
    first = next(((number, line) for number, line in enumerate(lines, start=1) if line.strip()), None)
    if first is not None:
        _record(f"{path}, line {first[0]}", first[1], wanted)
    return bool(head)


def as_text(value: object, where: str, column: str) -> str:
    """`value` if it is a string of whole characters.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise DataError(f"{where}: expected a string in `{column}`, not {found}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: `{column}` holds half a surrogate pair, which is not text") from None
    return value


def as_label(value: object, where: str, column: str) -> str:
    """`value` as a label: a string as it is, an integer in decimal digits.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return as_text(value, where, column)
    found = "null" if value is None else type(value).__name__
    raise DataError(f"{where}: expected a label in `{column}`, a string or an integer, not {found}")


def listed(names: Iterable[object]) -> str:
    """Names for a message of one line."""
    shown = [" ".join(str(name).split()) for name in names]
    more = len(shown) - _SHOWN_NAMES
    return (", ".join(shown[:_SHOWN_NAMES]) or "none") + (f" and {more} more" if more > 0 else "")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever the operating system refuses becomes a DataError that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {one_line(error.strerror or error)}") from None


def one_line(message: object) -> str:
    """The first line of what another library has to say."""
    return next(iter(str(message).splitlines()), "")


def _refuse_labels(path: Path, wanted: Columns) -> None:
    if wanted.label is not None:
        raise DataError(f"{path}: a {path.suffix} has no column `{wanted.label}`; labels come in a .jsonl or a table")


def _head(path: Path) -> bytes:
    with reading(path), path.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    _check_bytes(path, head)
    return head


def _decoded(path: Path) -> Iterator[str]:
    """The file's characters, a chunk at a time, its byte order mark left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with reading(path), path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            text = _decode(path, decoder, chunk, position)
            yield text if position else text.removeprefix("\ufeff")
            position += len(chunk)
    _decode(path, decoder, b"", position, final=True)


def _decode(path: Path, decoder: codecs.IncrementalDecoder, chunk: bytes, position: int, *, final: bool = False) -> str:
    if b"\0" in chunk:
        raise DataError(f"{path}: binary (a NUL byte at {position + chunk.index(0)}); expected text in UTF-8")
    begun = len(decoder.getstate()[0])  # bytes of a character that the chunk before left unfinished
    try:
        return decoder.decode(chunk, final=final)
    except UnicodeDecodeError as error:
        byte = position - begun + error.start
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {byte}); convert it to UTF-8") from None


def _check_bytes(path: Path, data: bytes, *, whole: bool = False) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    _decode(path, decoder, data, 0, final=whole)


def _pieces(text: str, *, spare: int = 0) -> Iterator[str]:
    """`text` in pieces of at most `LONGEST_DOCUMENT`; up to `spare` more characters do not call for a cut yet."""
    start = 0
    while len(text) - start > LONGEST_DOCUMENT + spare:
        end = start + LONGEST_DOCUMENT
        cut = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield text[start:cut]
        start = cut
    yield text[start:]


def _record(where: str, line: bytes, wanted: Columns) -> Document:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        raise DataError(f"{where}: not JSON that can be read: {one_line(error)}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with a string in `{wanted.text}`")
    for column in wanted:
        if column is not None and column not in record:
            raise DataError(f"{where}: no field `{column}`; this line has: {listed(record)}")
    label = None if wanted.label is None else as_label(record[wanted.label], where, wanted.label)
    return Document(as_text(record[wanted.text], where, wanted.text), label)
