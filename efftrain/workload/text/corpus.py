"""Text turned into tokens: de-duplicated, split, encoded once, and kept in a cache.

The encoded corpus is a pair of memory maps in the cache folder, under a key made of the text's hash, the vocabulary
and the format, so a second run starts at once and two runs may prepare it side by side. No torch here.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, get_args

import numpy as np

from efftrain.workload.text.config import DataError
from efftrain.workload.text.documents import check_source, content_hash, documents, source_files, source_name
from efftrain.workload.text.tokenizer import WordEncoder, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Corpus", "DataError", "check_source", "prepare"]

Part = Literal["train", "validation"]

FORMAT: Final = 1
"""Raised when the same text would be encoded otherwise, so that older cache entries are not read."""

VALIDATION_SHARE: Final = 0.05
_CHARACTERS_PER_ENTRY: Final = 2000  # of text from which one entry of the vocabulary is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """An encoded corpus in the cache.

    Attributes:
        name: what reports call it.
        sha256: of the source files' bytes, in order.
        characters: of all documents, duplicates removed.
        documents: how many there are, duplicates removed.
        duplicates_removed: documents that repeated an earlier one exactly.
        train_tokens: tokens to train on, an end-of-text token after each document.
        validation_tokens: tokens held out.
        vocab_size: entries of the tokenizer, at most what was asked for.
        unigram_entropy: of the training tokens, in nat/token: the loss of a model that knows frequencies alone.
        folder: where the tokens and the tokenizer are.
    """

    name: str
    sha256: str
    characters: int
    documents: int
    duplicates_removed: int
    train_tokens: int
    validation_tokens: int
    vocab_size: int
    unigram_entropy: float
    folder: Path

    @property
    def train(self) -> np.ndarray:
        """Training tokens [train_tokens], a read-only memory map."""
        return self._tokens("train")

    @property
    def validation(self) -> np.ndarray:
        """Held-out tokens [validation_tokens], a read-only memory map."""
        return self._tokens("validation")

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, for `load_tokenizer`."""
        return self.folder / "tokenizer.json"

    def as_dict(self) -> dict[str, Any]:
        """For the header of a journal: everything but the folder, and `tokens`, the sum of both parts."""
        fields = asdict(self)
        del fields["folder"]
        return {**fields, "tokens": self.train_tokens + self.validation_tokens}

    def require(self, batch_tokens: int, *, seq_len: int = 1) -> None:
        """Check that there is enough text.

        Args:
            batch_tokens: tokens of one step, over all ranks.
            seq_len: tokens of one sequence; one must fit into the validation part.

        Raises:
            DataError: there is not.
        """
        for part, present, needed in (
            ("training", self.train_tokens, batch_tokens + 1),
            ("validation", self.validation_tokens, seq_len + 1),
        ):
            if present < needed:
                raise DataError(
                    f"{self.name}: too short: its {part} part has {present} tokens, and one batch needs {needed}; "
                    "give more text, or a smaller batch or sequence length"
                )

    def _tokens(self, part: Part) -> np.ndarray:
        return np.memmap(self.folder / f"{part}.bin", dtype=_token_type(self.vocab_size), mode="r")


def prepare(source: Path | None, vocab_size: int, *, cache: Path | None = None) -> Corpus:
    """Encode `source`, or find it encoded.

    Args:
        source: a .txt, a .jsonl, or a folder of those; None for the standard library of the running Python.
        vocab_size: most entries that the vocabulary may have, at least 257.
        cache: folder to keep it in; `$XDG_CACHE_HOME/efftrain` or `~/.cache/efftrain` by default. Where that cannot be
            written, a temporary folder of this user serves.

    Raises:
        DataError: the text cannot be used; one line that names the file and the need.
        ValueError: `vocab_size` below 257.
    """
    files = source_files(source)
    digest = content_hash(files)
    key = f"{digest[:32]}-v{vocab_size}-f{FORMAT}"
    name = source_name(source)
    try:
        return _prepared((cache or _cache_root()) / key, name, files, digest, vocab_size)
    except OSError:
        return _prepared(_temporary_root() / key, name, files, digest, vocab_size)


def _prepared(folder: Path, name: str, files: list[Path], digest: str, vocab_size: int) -> Corpus:
    found = _load(folder, name)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, files, digest, vocab_size)
        found = _load(folder, name)
    if found is None:
        raise OSError(f"{folder} does not keep what is written to it")
    return found


def _load(folder: Path, name: str) -> Corpus | None:
    """The corpus in `folder`; None where it is absent, half-written or damaged."""
    try:
        corpus = Corpus(name=name, folder=folder, **json.loads((folder / "corpus.json").read_text()))
        size = np.dtype(_token_type(corpus.vocab_size)).itemsize
        whole = all(
            (folder / f"{part}.bin").stat().st_size == count * size
            for part, count in (("train", corpus.train_tokens), ("validation", corpus.validation_tokens))
        )
        return corpus if whole and corpus.tokenizer_path.is_file() else None
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a first reading finds: sizes, and which documents (by the SHA-256 of their text) are held out."""

    characters: int
    documents: int
    duplicates_removed: int
    validation: frozenset[bytes]


def _survey(files: list[Path]) -> _Survey:
    digests: set[bytes] = set()
    characters = read = 0
    for text, _ in documents(files):
        read += 1
        digest = _digest(text)
        characters += 0 if digest in digests else len(text)
        digests.add(digest)
    held_out = sorted(digests)[: max(1, round(VALIDATION_SHARE * len(digests)))] if len(digests) > 1 else []
    return _Survey(characters, len(digests), read - len(digests), frozenset(held_out))


def _split(files: list[Path], survey: _Survey) -> Iterator[tuple[Part, str]]:
    """Every document once, with the part it belongs to; the only document of a corpus is cut in two."""
    seen: set[bytes] = set()
    for text, _ in documents(files):
        digest = _digest(text)
        if digest in seen:
            continue
        seen.add(digest)
        if survey.documents == 1:
            cut = len(text) - max(1, round(VALIDATION_SHARE * len(text)))
            yield "train", text[:cut]
            yield "validation", text[cut:]
        else:
            yield "validation" if digest in survey.validation else "train", text


def _sample(files: list[Path], survey: _Survey, characters: int) -> Iterator[str]:
    """About `characters` of training text, evenly from the whole corpus."""
    share = characters / survey.characters
    seen = taken = 0
    for part, text in _split(files, survey):
        if part == "train":
            seen += len(text)
            if taken < share * seen:
                piece = text[: max(1, characters - taken)]
                taken += len(piece)
                yield piece


def _write(folder: Path, files: list[Path], digest: str, vocab_size: int) -> None:
    survey = _survey(files)
    if survey.characters < 2:
        raise DataError(f"{os.path.commonpath(files)}: is empty; training needs text")
    tokenizer = train_tokenizer(_sample(files, survey, _CHARACTERS_PER_ENTRY * vocab_size), vocab_size)
    with _replacing(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str().encode())
    frequencies = _write_tokens(folder, _split(files, survey), tokenizer)
    facts = {
        "sha256": digest, "characters": survey.characters, "documents": survey.documents,
        "duplicates_removed": survey.duplicates_removed, "train_tokens": int(frequencies["train"].sum()),
        "validation_tokens": int(frequencies["validation"].sum()), "vocab_size": tokenizer.get_vocab_size(),
        "unigram_entropy": _entropy(frequencies["train"]),
    }  # fmt: skip
    with _replacing(folder / "corpus.json") as file:  # last: what makes the folder count as written
        file.write(json.dumps(facts, indent=1).encode())


def _write_tokens(folder: Path, texts: Iterator[tuple[Part, str]], tokenizer: "Tokenizer") -> dict[Part, np.ndarray]:
    """Write both parts' tokens; returns how often each entry of the vocabulary stands in each part."""
    entries = tokenizer.get_vocab_size()
    encoder = WordEncoder(tokenizer)
    frequencies: dict[Part, np.ndarray] = {part: np.zeros(entries, dtype=np.int64) for part in get_args(Part)}
    with ExitStack() as stack:
        files = {part: stack.enter_context(_replacing(folder / f"{part}.bin")) for part in get_args(Part)}
        for part, text in texts:
            ids = encoder.encode_document(text)
            files[part].write(ids.astype(_token_type(entries)).tobytes())
            frequencies[part] += np.bincount(ids, minlength=entries)
    return frequencies


def _entropy(frequencies: np.ndarray) -> float:
    """−Σ p ln p of the frequencies, in nat."""
    shares = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(shares * np.log(shares)).sum())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.uint32


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place at the end, whole, and leaves nothing behind if that does not come."""
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def _cache_root() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efftrain"
    except RuntimeError:  # a user without a home
        return _temporary_root()


def _temporary_root() -> Path:
    """A folder of this user alone under the temporary folder, the same one next time."""
    root = Path(tempfile.gettempdir()) / f"efftrain-{os.getuid()}"
    with suppress(OSError):
        root.mkdir(mode=0o700, exist_ok=True)
        if not root.is_symlink() and root.stat().st_uid == os.getuid() and os.access(root, os.W_OK):
            return root
    return Path(tempfile.mkdtemp(prefix="efftrain-"))
