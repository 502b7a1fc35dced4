"""The documents of a corpus while it is made: read and cleaned once, put on disk, de-duplicated and split.

The texts go to a file without a name, which is gone with the process whatever ends it. In memory stay some 30 bytes a
document (a hash, where its text ends, its length, its class), and about 70 for a moment while duplicates are sought:
350 MB for 5 million documents, however long they are.
"""

import hashlib
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np

from efftrain.workload.text.config import DataError, Document
from efftrain.workload.text.encoding.cache import PARTS, Part

VALIDATION_SHARE: Final = 0.05
_MOST_CLASSES: Final = 10_000
_DUPLICATE: Final = -1
_ROWS_AT_A_TIME: Final = 100_000


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents on disk, several sources one after the other.

    Attributes:
        file: their UTF-8.
        start: where each begins in `file`, [rows] int64.
        stop: where each ends, [rows] int64.
        characters: of each, [rows] int64.
        label: index of each one's class in `classes`, [rows] int32; 0 without classes.
        part: index of each one's part in `PARTS`, [rows] int8; −1 for what is left out.
        source: index of each one's source, [rows] int16.
        documents: documents of each source that are not left out.
        duplicates_removed: documents that repeated an earlier one exactly.
        classes: names of the classes, sorted.
    """

    file: IO[bytes]
    start: np.ndarray
    stop: np.ndarray
    characters: np.ndarray
    label: np.ndarray
    part: np.ndarray
    source: np.ndarray
    documents: tuple[int, ...]
    duplicates_removed: int
    classes: tuple[str, ...]

    def rows(self, source: int, part: Part) -> np.ndarray:
        """The rows of a part of a source, in the order in which they were read."""
        return np.flatnonzero((self.source == source) & (self.part == PARTS.index(part)))

    def text(self, row: int) -> str:
        """The text of a row."""
        return read_span(self.file.fileno(), int(self.start[row]), int(self.stop[row])).decode()


def read_span(descriptor: int, start: int, stop: int) -> bytes:
    """The bytes of an open file from `start` to `stop`; its position is not moved, so processes may share it."""
    pieces: list[bytes] = []
    while start < stop and (piece := os.pread(descriptor, stop - start, start)):  # one read gives 2 GiB at most
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def collect(
    folder: Path, names: Sequence[str], documents: Iterable[tuple[int, Document]], *, labelled: bool = False
) -> Texts:
    """Read all documents once and write their texts to a file without a name in `folder`.

    Of documents with the same text the first stays, across sources. Of each source the 5 % with the smallest hashes are
    held out, whatever their order; a source's only document is cut in two, its end being held out.

    Args:
        folder: where there is room for the texts.
        names: of the sources.
        documents: of all sources, one source after the other, each with its source's index.
        labelled: whether the documents have classes.

    Raises:
        DataError: a source without text or, where `labelled`, with one document; more classes than are likely.
        OSError: `folder` cannot be written, or is full.
    """
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # it outlives this call, in the result
    try:
        gathered = _Gathered()
        for source, document in documents:
            gathered.add(file, source, document)
        file.flush()
        return _selected(file, gathered, names, labelled=labelled)
    except BaseException:
        file.close()
        raise


def sample(texts: Texts, weights: Sequence[float], characters: int) -> Iterator[str]:
    """About `characters` of training text, evenly from each whole source, the sources by their weights.

    Where several sources hold less in all, as much as they hold; one that is too small for its share is repeated, as it
    is in training.
    """
    held = [int(texts.characters[texts.rows(i, "train")].sum()) for i in range(len(weights))]
    if len(weights) > 1:
        characters = min(characters, sum(held))
    for i, weight in enumerate(weights):
        wanted = round(characters * weight / sum(weights))
        while len(weights) > 1 and wanted > held[i]:
            yield from map(texts.text, texts.rows(i, "train"))
            wanted -= held[i]
        yield from _evenly(texts, i, wanted)


def _evenly(texts: Texts, source: int, characters: int) -> Iterator[str]:
    share = characters / int(texts.characters[(texts.source == source) & (texts.part != _DUPLICATE)].sum())
    seen = taken = 0
    for row, length in _each(texts.rows(source, "train"), texts.characters):
        seen += length
        if taken < share * seen:
            piece = texts.text(row)[: max(1, characters - taken)]
            taken += len(piece)
            yield piece


def _each(rows: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    for first in range(0, len(rows), _ROWS_AT_A_TIME):
        some = rows[first : first + _ROWS_AT_A_TIME]
        yield from zip(some.tolist(), lengths[some].tolist(), strict=True)


class _Gathered:
    """What is known of each document that was read, in compact arrays."""

    def __init__(self) -> None:
        self.hashes, self.stops, self.characters = array("Q"), array("q", [0]), array("q")
        self.sources, self.labels = array("h"), array("i")
        self.names: dict[str | None, int] = {}

    def add(self, file: IO[bytes], source: int, document: Document) -> None:
        """Write a document to `file` and note it."""
        data = document.text.encode()
        file.write(data)
        # 64 bits of SHA-256: among 5 million documents two unlike ones have the same with a chance below 10^-6.
        self.hashes.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
        self.stops.append(self.stops[-1] + len(data))
        self.characters.append(len(document.text))
        self.sources.append(source)
        self.labels.append(self.names.setdefault(document.label, len(self.names)))
        if len(self.names) > _MOST_CLASSES:
            raise DataError(f"more than {_MOST_CLASSES} classes; does the label column hold classes?")


def _selected(file: IO[bytes], gathered: _Gathered, names: Sequence[str], *, labelled: bool) -> Texts:
    hashes, source = np.frombuffer(gathered.hashes, np.uint64), np.frombuffer(gathered.sources, np.int16)
    part = np.full(len(hashes), _DUPLICATE, dtype=np.int8)
    part[np.unique(hashes, return_index=True)[1]] = 0
    kept = [int((part[source == i] == 0).sum()) for i in range(len(names))]
    for i, name in enumerate(names):
        _check_source(name, int((source == i).sum()), kept[i], labelled=labelled)
        part[source == i] = _held_out(hashes[source == i], part[source == i])
    stop = np.frombuffer(gathered.stops, np.int64)
    classes, label = _classes(gathered) if labelled else ((), np.zeros(len(part), dtype=np.int32))
    texts = Texts(
        file, stop[:-1], stop[1:], np.frombuffer(gathered.characters, np.int64), label, part, source, tuple(kept),
        len(hashes) - sum(kept), classes,
    )  # fmt: skip
    for i, name in enumerate(names):
        if kept[i] == 1:
            texts = _cut_in_two(texts, int(texts.rows(i, "train")[0]), name)
    return texts


def _check_source(name: str, read: int, kept: int, *, labelled: bool) -> None:
    if not read:
        raise DataError(f"{name}: is empty; training needs text")
    if not kept:
        raise DataError(f"{name}: repeats the sources before it and has no document of its own; leave it out")
    if labelled and kept == 1:
        raise DataError(f"{name}: one document; to classify, a source needs some to train on and some to hold out")


def _held_out(hashes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The parts of a source's rows where the smallest hashes of those kept are its validation part."""
    kept = hashes[part == 0]
    if len(kept) < 2:
        return part
    count = max(1, round(VALIDATION_SHARE * len(kept)))
    smallest = hashes <= np.partition(kept, count - 1)[count - 1]
    return np.where((part == 0) & smallest, PARTS.index("validation"), part)


def _classes(gathered: _Gathered) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes' names, sorted, and each document's index among them."""
    names = sorted(str(name) for name in gathered.names)
    index = np.array([names.index(str(name)) for name in gathered.names], dtype=np.int32)
    return tuple(names), index[np.frombuffer(gathered.labels, np.int32)]


def _cut_in_two(texts: Texts, row: int, name: str) -> Texts:
    """The same with a row replaced by two: its text to train on, and its end, held out."""
    text = texts.text(row)
    if len(text) < 2:
        raise DataError(f"{name}: is empty; training needs text")
    cut = len(text) - max(1, round(VALIDATION_SHARE * len(text)))
    start, stop, source = int(texts.start[row]), int(texts.stop[row]), texts.source[row]
    middle = start + len(text[:cut].encode())
    texts.part[row] = _DUPLICATE
    return Texts(
        texts.file, np.append(texts.start, [start, middle]), np.append(texts.stop, [middle, stop]),
        np.append(texts.characters, [cut, len(text) - cut]), np.append(texts.label, np.zeros(2, dtype=np.int32)),
        np.append(texts.part, np.array([0, 1], dtype=np.int8)), np.append(texts.source, [source, source]),
        texts.documents, texts.duplicates_removed, texts.classes,
    )  # fmt: skip
