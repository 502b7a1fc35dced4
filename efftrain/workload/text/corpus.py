"""Text turned into tokens: de-duplicated, split, encoded once, and kept in a cache.

The encoded corpus is memory maps in the cache folder, under a key made of everything that decides on the tokens, so a
second run starts at once and two runs may prepare it side by side. No torch here.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from efftrain.workload.text.batches.labelled import LabelledTexts
from efftrain.workload.text.config import DataError, TextConfig
from efftrain.workload.text.encoding.cache import PARTS, Part, cache_root, part_file, temporary_root, token_type
from efftrain.workload.text.encoding.making import make
from efftrain.workload.text.encoding.recipe import Recipe, recipe
from efftrain.workload.text.reading.documents import check_source

__all__ = ["Corpus", "DataError", "SourceFacts", "check_source", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source of a corpus.

    Attributes:
        name: what reports call it.
        weight: its share of the sequences; the shares of all sources add up to 1.
        documents: how many there are, duplicates removed.
        train_tokens: tokens to train on.
        validation_tokens: tokens held out.
    """

    name: str
    weight: float
    documents: int
    train_tokens: int
    validation_tokens: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """An encoded corpus in the cache.

    Attributes:
        name: what reports call it.
        sha256: of the source files' bytes, in order.
        column: field or column that the text was read from.
        label_column: the one with the classes, or None.
        tokenizer_sha256: of the tokenizer.json that made the tokens, given or trained.
        characters: of all documents, duplicates removed.
        documents: how many there are, duplicates removed.
        duplicates_removed: documents that repeated an earlier one exactly.
        train_tokens: tokens to train on, an end-of-text token after each document.
        validation_tokens: tokens held out.
        vocab_size: ids of the tokenizer, at most what was asked for.
        unigram_entropy: of the training tokens, the sources by their weights, in nat/token: the loss of a model that
            knows frequencies alone.
        end_id: of the token that ends a document.
        mask_id: of the mask token, where the corpus is for masked-token training.
        classes: names of the documents' classes, sorted, where they have some.
        sources: each source.
        cleaning: what each cleaning step removed, as `Cleaner.report` tells it.
        preparation: seconds and workers that it took when it was made; two equal corpora may differ in it.
        folder: where the tokens and the tokenizer are.
    """

    name: str
    sha256: str
    column: str
    label_column: str | None
    tokenizer_sha256: str
    characters: int
    documents: int
    duplicates_removed: int
    train_tokens: int
    validation_tokens: int
    vocab_size: int
    unigram_entropy: float
    end_id: int
    mask_id: int | None
    classes: tuple[str, ...]
    sources: tuple[SourceFacts, ...]
    cleaning: dict[str, Any]
    preparation: dict[str, Any] = field(compare=False)
    folder: Path

    @property
    def train(self) -> np.ndarray:
        """Training tokens [train_tokens] of a corpus with one source, a read-only memory map."""
        (tokens,) = self.train_sources
        return tokens

    @property
    def validation(self) -> np.ndarray:
        """Held-out tokens [validation_tokens] of a corpus with one source, a read-only memory map."""
        (tokens,) = self.validation_sources
        return tokens

    @cached_property
    def train_sources(self) -> tuple[np.ndarray, ...]:
        """Training tokens of each source, read-only memory maps."""
        return tuple(self._tokens("train", i) for i in range(len(self.sources)))

    @cached_property
    def validation_sources(self) -> tuple[np.ndarray, ...]:
        """Held-out tokens of each source, read-only memory maps."""
        return tuple(self._tokens("validation", i) for i in range(len(self.sources)))

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of the sequences that each source has."""
        return tuple(source.weight for source in self.sources)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, for `load_tokenizer`."""
        return self.folder / "tokenizer.json"

    def labelled(self, part: Part) -> tuple[LabelledTexts, ...]:
        """The documents of a part of each source with their classes, read-only memory maps.

        Raises:
            DataError: the corpus was prepared without classes.
        """
        if not self.classes:
            raise DataError(f"{self.name}: was read without a label column")
        sources = self.train_sources if part == "train" else self.validation_sources
        return tuple(
            LabelledTexts(
                tokens,
                np.memmap(self.folder / part_file(part, i, "offsets"), dtype=np.int64, mode="r"),
                np.memmap(self.folder / part_file(part, i, "labels"), dtype=np.int32, mode="r"),
            )
            for i, tokens in enumerate(sources)
        )

    def as_dict(self) -> dict[str, Any]:
        """For the header of a journal: everything but the folder, and `tokens`, the sum of both parts."""
        facts = asdict(self)
        del facts["folder"]
        lists = {"classes": list(self.classes), "sources": [asdict(source) for source in self.sources]}
        return {**facts, **lists, "tokens": self.train_tokens + self.validation_tokens}

    def require(self, batch_tokens: int, *, seq_len: int = 1) -> None:
        """Check that there is enough text.

        Args:
            batch_tokens: tokens of one step, over all ranks; several sources repeat theirs, and need one sequence each.
            seq_len: tokens of one sequence; one must fit into the validation part of each source.

        Raises:
            DataError: there is not.
        """
        several = len(self.sources) > 1
        for source in self.sources:
            for part, present, needed in (
                ("training", source.train_tokens, (seq_len if several else batch_tokens) + 1),
                ("validation", source.validation_tokens, seq_len + 1),
            ):
                if present < needed:
                    raise DataError(
                        f"{source.name}: too short: its {part} part has {present} tokens, and one batch needs "
                        f"{needed}; give more text, or a smaller batch or sequence length"
                    )

    def _tokens(self, part: Part, source: int) -> np.ndarray:
        return np.memmap(self.folder / part_file(part, source), dtype=token_type(self.vocab_size), mode="r")


def prepare(
    text: TextConfig, vocab_size: int, *, masked: bool = False, cache: Path | None = None, workers: int | None = None
) -> Corpus:
    """Encode the sources of `text`, or find them encoded.

    Files are read twice: for the key of the cache, and, where it holds nothing under that, for their documents.

    Args:
        text: where it comes from and what is done to it; `TextConfig()` is the standard library of the running Python.
        vocab_size: most entries that the vocabulary may have: those that the model holds. At least 257.
        masked: whether tokens are to be masked, for which the vocabulary needs a mask token.
        cache: folder to keep it in; `$XDG_CACHE_HOME/efftrain` or `~/.cache/efftrain` by default. Where that cannot be
            written, a temporary folder of this user serves.
        workers: processes that turn text into tokens; None: as many as there are processors if the text is long. The
            result does not depend on it.

    Raises:
        DataError: the text cannot be used; one line that names the file and the need.
        ValueError: `vocab_size` below 257.
    """
    todo = recipe(text, vocab_size, masked=masked)
    try:
        return _prepared((cache or cache_root()) / todo.key, todo, workers)
    except OSError:
        folder = temporary_root() / todo.key
    try:
        return _prepared(folder, todo, workers)
    except OSError as error:
        raise DataError(
            f"{folder}: tokens cannot be kept: {error.strerror or error}; XDG_CACHE_HOME names a folder with room"
        ) from None


def _prepared(folder: Path, todo: Recipe, workers: int | None) -> Corpus:
    found = _load(folder, todo)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, todo, workers)
        found = _load(folder, todo)
    if found is None:
        raise OSError(f"{folder} does not keep what is written to it")
    return found


def _load(folder: Path, todo: Recipe) -> Corpus | None:
    """The corpus in `folder`; None where it is absent, half-written or damaged."""
    try:
        facts = json.loads((folder / "corpus.json").read_text())
        made = json.loads((folder / "preparation.json").read_text())
        sources = tuple(
            SourceFacts(name=name, weight=weight, **counts)
            for name, weight, counts in zip(todo.names, todo.weights, facts.pop("sources"), strict=True)
        )
        corpus = Corpus(
            name=todo.name,
            folder=folder,
            sources=sources,
            preparation=made,
            classes=tuple(facts.pop("classes")),
            column=todo.text.column,
            label_column=todo.text.label_column,
            tokenizer_sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
            **facts,
        )
        return corpus if _whole(corpus) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _whole(corpus: Corpus) -> bool:
    """Whether the files are as long as what they hold."""
    width = np.dtype(token_type(corpus.vocab_size)).itemsize
    return all(
        _size(corpus.folder / part_file(part, i)) == width * getattr(source, f"{part}_tokens")
        and (not corpus.classes or _labels_fit(corpus.folder, part, i))
        for i, source in enumerate(corpus.sources)
        for part in PARTS
    )


def _labels_fit(folder: Path, part: Part, source: int) -> bool:
    labels = _size(folder / part_file(part, source, "labels")) // 4
    return labels > 0 and _size(folder / part_file(part, source, "offsets")) == 8 * (labels + 1)


def _size(path: Path) -> int:
    return os.stat(path).st_size
