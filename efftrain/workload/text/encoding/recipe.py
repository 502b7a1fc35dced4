"""What decides on the tokens of a corpus: files, what is done to them, the vocabulary, and the key made of it all."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from efftrain.workload.text.config import TextConfig
from efftrain.workload.text.reading.documents import content_hash, source_files, source_name
from efftrain.workload.text.reading.readers import reading

FORMAT: Final = 2
"""Raised when the same text would be encoded otherwise, so that older cache entries are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides on the tokens of a corpus.

    Attributes:
        text: sources, columns, cleaning, tokenizer.
        vocab_size: most entries that the vocabulary may have.
        masked: whether it has a mask token.
        files: of each source.
        names: of each source.
        weights: of each source, 1 in all.
        sha256: of all files.
        key: the same for equal recipes over equal files, wherever they are.
    """

    text: TextConfig
    vocab_size: int
    masked: bool
    files: tuple[list[Path], ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    sha256: str
    key: str

    @property
    def name(self) -> str:
        """What reports call the whole."""
        return " + ".join(self.names)


def recipe(text: TextConfig, vocab_size: int, *, masked: bool) -> Recipe:
    """Look at the files of `text`.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    paths = [source.file for source in text.sources] or [None]
    files = tuple(source_files(path) for path in paths)
    hashes = [content_hash(found) for found in files]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    given = [source.weight for source in text.sources] or [1.0]
    weights = tuple(weight / sum(given) for weight in given)
    tokenizer = _hash_of(Path(text.tokenizer)) if text.tokenizer else None
    decisive = (hashes, weights, text.column, text.label_column, text.cleaning, tokenizer, vocab_size, masked, FORMAT)
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
    names = tuple(source_name(path) for path in paths)
    return Recipe(
        text=text, vocab_size=vocab_size, masked=masked, files=files, names=names, weights=weights, sha256=sha256,
        key=f"{key}-v{vocab_size}-f{FORMAT}",
    )  # fmt: skip


def _hash_of(path: Path) -> str:
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
