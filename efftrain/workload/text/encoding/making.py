"""How a corpus is made: from documents on disk to the files of a folder."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from efftrain.workload.text.cleaning.cleaner import Cleaner
from efftrain.workload.text.config import DataError, Document
from efftrain.workload.text.encoding.cache import PARTS, Part, part_file, replacing, token_type
from efftrain.workload.text.encoding.recipe import Recipe
from efftrain.workload.text.encoding.texts import Texts, collect, sample
from efftrain.workload.text.encoding.tokenizer import MASKS, Vocabulary, load_tokenizer, train_tokenizer, vocabulary
from efftrain.workload.text.encoding.workers import Encoded, chunks, default_workers, encode_spans
from efftrain.workload.text.reading.documents import documents

_Tokenizer = tuple[bytes, Vocabulary]
"""The content of a tokenizer.json, and what a model has to know of it."""

_CHARACTERS_PER_ENTRY: Final = 2000  # of text from which one entry of the vocabulary is learnt


def make(folder: Path, todo: Recipe, workers: int | None) -> None:
    """Write a corpus to `folder`, its facts last: a folder without them does not count as written.

    Args:
        folder: an existing one.
        todo: what to make.
        workers: as `prepare`.

    Raises:
        DataError: the text or the tokenizer cannot be used.
        OSError: `folder` cannot be written, or is full.
    """
    started = time.perf_counter()
    given = _given_tokenizer(todo)
    reading = _Reading(todo)
    texts = collect(folder, todo.names, reading, labelled=todo.text.label_column is not None)
    with texts.file:
        _check_classes(texts, todo)
        known = _write_tokenizer(folder, given or _trained_tokenizer(texts, todo))
        if workers is None:
            workers = default_workers(int(texts.stop[-1]))
        frequencies = _write_tokens(folder, texts, known, workers)
    seconds = round(time.perf_counter() - started, 3)
    _write_json(folder / "preparation.json", {"seconds": seconds, "workers": workers})
    _write_json(folder / "corpus.json", {**_facts(texts, todo, known, frequencies), "cleaning": reading.report()})


class _Reading:
    """The documents of all sources in one stream, cleaned where that is wished."""

    def __init__(self, todo: Recipe) -> None:
        self._todo, self._source = todo, 0
        self._cleaner = Cleaner(todo.text.cleaning)

    def __iter__(self) -> Iterator[tuple[int, Document]]:
        """Each document with its source's index. The cleaner reads no document before it gave the one before it."""
        read = self._read()
        for document in self._cleaner.clean(read) if self._todo.text.cleaning else read:
            yield self._source, document

    def report(self) -> dict[str, Any]:
        """What each step removed; nothing without steps."""
        return self._cleaner.report()

    def _read(self) -> Iterator[Document]:
        text = self._todo.text
        for source, files in enumerate(self._todo.files):
            self._source = source
            yield from documents(files, column=text.column, label_column=text.label_column)


def _given_tokenizer(todo: Recipe) -> _Tokenizer | None:
    """The tokenizer of the wish, before any text is read; None where one is to be trained."""
    if todo.text.tokenizer is None:
        return None
    path = Path(todo.text.tokenizer)
    known = vocabulary(load_tokenizer(path), path)
    if known.size > todo.vocab_size:
        raise DataError(f"{path}: {known.size} tokens, and the model's vocabulary holds {todo.vocab_size}")
    if todo.masked and known.mask_id is None:
        raise DataError(f"{path}: no mask token; expected one of {' '.join(MASKS)}")
    return path.read_bytes(), known


def _trained_tokenizer(texts: Texts, todo: Recipe) -> _Tokenizer:
    parts = sample(texts, todo.weights, _CHARACTERS_PER_ENTRY * todo.vocab_size)
    trained = train_tokenizer(parts, todo.vocab_size, masked=todo.masked)
    return trained.to_str().encode(), vocabulary(trained, Path("tokenizer.json"))


def _write_tokenizer(folder: Path, tokenizer: _Tokenizer) -> Vocabulary:
    content, known = tokenizer
    with replacing(folder / "tokenizer.json") as file:
        file.write(content)
    return known


def _check_classes(texts: Texts, todo: Recipe) -> None:
    if todo.text.label_column is None:
        return
    if len(texts.classes) < 2:
        raise DataError(f"{todo.name}: one class in `{todo.text.label_column}`; to classify, two are needed")
    trained = np.bincount(texts.label[texts.part == PARTS.index("train")], minlength=len(texts.classes))
    held = np.bincount(texts.label[texts.part == PARTS.index("validation")], minlength=len(texts.classes))
    for name, seen, kept in zip(texts.classes, trained, held, strict=True):
        if not seen and kept:
            raise DataError(
                f"{todo.name}: class {name[:40]!r} in `{todo.text.label_column}` has {kept} documents, all held out to "
                "validate; give more of it, or leave it out"
            )


def _write_tokens(folder: Path, texts: Texts, known: Vocabulary, workers: int) -> dict[tuple[int, Part], np.ndarray]:
    """Write all tokens, each part of each source to a file; returns how often each id stands in it, [size] int64."""
    groups: list[tuple[int, Part]] = [(source, part) for source in range(len(texts.documents)) for part in PARTS]
    rows = [texts.rows(*group) for group in groups]
    spans = np.stack([texts.start, texts.stop], axis=1)[np.concatenate(rows)]
    pieces = chunks(spans, [len(mine) for mine in rows])
    every = [piece for mine in pieces for piece in mine]
    frequencies = {}
    with closing(encode_spans(texts.file, spans, folder / "tokenizer.json", every, workers)) as encoded:
        for (source, part), mine, some in zip(groups, rows, pieces, strict=True):
            with ExitStack() as stack:
                kinds = ("", "offsets") if texts.classes else ("",)
                tokens, *offsets = [
                    stack.enter_context(replacing(folder / part_file(part, source, kind))) for kind in kinds
                ]
                frequencies[source, part] = _write_part(islice(encoded, len(some)), known, tokens, *offsets)
            if texts.classes:
                with replacing(folder / part_file(part, source, "labels")) as file:
                    file.write(texts.label[mine].data)
    return frequencies


def _write_part(
    encoded: Iterator[Encoded], known: Vocabulary, tokens: BinaryIO, offsets: BinaryIO | None = None
) -> np.ndarray:
    frequencies = np.zeros(known.size, dtype=np.int64)
    if offsets:
        offsets.write(np.zeros(1, dtype=np.int64).data)
    for ids, counts in encoded:
        if offsets:
            offsets.write((frequencies.sum() + np.cumsum(counts)).data)
        tokens.write(ids.astype(token_type(known.size)).data)
        frequencies += np.bincount(ids, minlength=known.size)
    return frequencies


def _facts(
    texts: Texts, todo: Recipe, known: Vocabulary, frequencies: dict[tuple[int, Part], np.ndarray]
) -> dict[str, Any]:
    counts = [{f"{part}_tokens": int(frequencies[i, part].sum()) for part in PARTS} for i in range(len(todo.names))]
    return {
        "sha256": todo.sha256, "characters": int(texts.characters[texts.part >= 0].sum()),
        "documents": sum(texts.documents), "duplicates_removed": texts.duplicates_removed,
        "train_tokens": sum(count["train_tokens"] for count in counts),
        "validation_tokens": sum(count["validation_tokens"] for count in counts),
        "vocab_size": known.size, "unigram_entropy": _entropy([frequencies[i, "train"] for i in range(len(counts))],
        todo.weights), "end_id": known.end_id, "mask_id": known.mask_id if todo.masked else None,
        "classes": texts.classes, "sources": [
            {"documents": documents, **count} for documents, count in zip(texts.documents, counts, strict=True)
        ],
    }  # fmt: skip


def _entropy(frequencies: Sequence[np.ndarray], weights: Sequence[float]) -> float:
    """−Σ p ln p of the frequencies [ids] of each source, mixed by weight, in nat."""
    p = sum(weight * found / found.sum() for weight, found in zip(weights, frequencies, strict=True))
    shares = np.asarray(p)[np.asarray(p) > 0]
    return float(-(shares * np.log(shares)).sum())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())
