"""A byte-level BPE that is trained on the corpus itself: any text is encodable, and decoding gives it back.

Text is cut into words first, and merges happen inside words. The cut uses ASCII classes alone, so that Python's `re`
and the `tokenizers` library agree on it; a corpus is then encoded word by word from a dictionary, some four times
faster than document by document. The same texts in the same order give the same vocabulary. A tokenizer.json of
somebody else's serves too; the library itself encodes with that.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from efftrain.workload.text.config import DataError
from efftrain.workload.text.reading.readers import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT: Final = "<|endoftext|>"
"""Stands after every document, with id 0; never the result of encoding text, not even of text that spells it."""

MASK: Final = "<|mask|>"
"""Stands for a token that is to be predicted, with id 1, where the corpus is for masked-token training."""

SMALLEST_VOCABULARY: Final = 257
"""Every byte, and the end of a document; a masked corpus needs one entry more."""

MASKS: Final = (MASK, "[MASK]", "<mask>")
"""What the mask token is called, in our tokenizers and in others."""

_ENDS: Final = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

# An optional space and a run of letters, where every character beyond ASCII counts as one; then digits in threes,
# punctuation, and blanks, which leave their last one to the word that follows, as in GPT-2. Runs are bounded, so that
# text without blanks does not make words without end.
_WORDS: Final = (
    r" ?[^\x00-@\[-`{-\x7f]{1,48}| ?[0-9]{1,3}| ?[!-/:-@\[-`{-~]{1,48}"
    r"|[\x00-\x20\x7f]{1,48}(?![^\x00-\x20\x7f])|[\x00-\x20\x7f]{1,48}"
)
_CACHED_WORDS: Final = 300_000  # each takes some 200 bytes


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, masked: bool = False) -> "Tokenizer":
    """Learn at most `vocab_size` entries from `texts`; fewer where the texts hold fewer repetitions.

    Args:
        texts: to learn from.
        vocab_size: at least 257, or 258 where `masked`.
        masked: whether there is a mask token.

    Raises:
        ValueError: `vocab_size` too small.
    """
    special = [END_OF_TEXT, MASK] if masked else [END_OF_TEXT]
    if vocab_size < 256 + len(special):
        raise ValueError(
            f"vocab_size {vocab_size}: 256 bytes and {' and '.join(special)} need at least {256 + len(special)}"
        )
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer.json, our own or another: without padding, truncation, or special tokens found in text.

    Raises:
        DataError: it cannot be read, or is not one.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: not a tokenizer.json of the tokenizers library: {one_line(error)}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # not part of the file
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a model has to know of a tokenizer.

    Attributes:
        size: one more than the largest id.
        end_id: of the token that ends a document.
        mask_id: of the mask token, where there is one.
    """

    size: int
    end_id: int
    mask_id: int | None


def vocabulary(tokenizer: "Tokenizer", path: Path) -> Vocabulary:
    """The ids that matter in `tokenizer`, which was read from `path`.

    Raises:
        DataError: no token ends a document.
    """
    ends, masks = (
        [i for token in tokens if (i := tokenizer.token_to_id(token)) is not None] for tokens in (_ENDS, MASKS)
    )
    if not ends:
        raise DataError(f"{path}: no token ends a text; expected one of {' '.join(_ENDS)}")
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return Vocabulary(size=size, end_id=ends[0], mask_id=masks[0] if masks else None)


class Encoder(Protocol):
    """Turns texts into ids."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, the end-of-text id after each, [ids] uint32, and how many each has, [texts] int64."""
        ...


def encoder(path: Path) -> Encoder:
    """What encodes with the tokenizer in `path`.

    Raises:
        DataError: as `load_tokenizer` and `vocabulary`.
    """
    tokenizer = load_tokenizer(path)
    return WordEncoder(tokenizer) if _is_ours(path) else LibraryEncoder(tokenizer, path)


def _is_ours(path: Path) -> bool:
    """Whether text is cut into words as here, and by nothing else, so that it may be encoded word by word."""
    made = json.loads(path.read_text(encoding="utf-8"))
    cuts = (made.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    tokens = [token.get("content") for token in made.get("added_tokens") or [{}]]
    return (
        made.get("normalizer") is None
        and cuts[0].get("pattern") == {"Regex": _WORDS}
        and tokens in ([END_OF_TEXT], [END_OF_TEXT, MASK])
    )


class LibraryEncoder:
    """Encodes text with the tokenizers library alone, whatever the tokenizer is.

    Attributes:
        tokenizer: from `load_tokenizer`.
        path: its file.
    """

    def __init__(self, tokenizer: "Tokenizer", path: Path) -> None:
        self.tokenizer, self.path = tokenizer, path
        self._end = vocabulary(tokenizer, path).end_id

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `Encoder.encode`; no special tokens are added but the end of a text.

        Raises:
            DataError: the tokenizer has no token for what the text holds.
        """
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{self.path}: cannot encode this text: {one_line(error)}") from None
        found = [[*encoding.ids, self._end] for encoding in encodings]
        counts = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        return np.fromiter(chain.from_iterable(found), dtype=np.uint32, count=int(counts.sum())), counts


class WordEncoder:
    """Encodes text as `tokenizer` does, and remembers the words that it has met.

    Attributes:
        tokenizer: one that `train_tokenizer` made.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        self._words = re.compile(_WORDS)
        self._end = tokenizer.token_to_id(END_OF_TEXT)
        self._forget()

    def encode_document(self, text: str) -> np.ndarray:
        """The ids of `text` and the end-of-text id after them, uint32."""
        return self.encode([text])[0]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `Encoder.encode`."""
        if len(self._numbers) > _CACHED_WORDS:
            self._forget()
        words = [self._words.findall(text) for text in texts]
        number_of = self._numbers.__getitem__
        numbers = np.fromiter(
            chain.from_iterable(chain(map(number_of, found), (0,)) for found in words), dtype=np.int64
        )
        self._learn()
        lengths = self._lengths[numbers]
        stops = np.cumsum(lengths)
        ids = self._ids[np.arange(stops[-1]) - np.repeat(stops - lengths - self._starts[numbers], lengths)]
        last = np.cumsum([len(found) + 1 for found in words]) - 1
        return ids, np.diff(stops[last], prepend=0)

    def _forget(self) -> None:
        """Know the word 0 alone, which is the end of a text."""
        self._numbers = _Numbers()
        self._ids = np.array([self._end], dtype=np.uint32)  # of all words, one after the other
        self._starts, self._lengths = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)

    def _learn(self) -> None:
        """Encode the words that were numbered for the first time."""
        new = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(self._numbers.new)]
        self._numbers.new.clear()
        lengths = np.array([len(ids) for ids in new], dtype=np.int64)
        self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(new), dtype=np.uint32)])


class _Numbers(dict[str, int]):
    """Numbers words from 1, in the order in which they are first asked for.

    Attributes:
        new: those that were asked for the first time since somebody cleared this list.
    """

    def __init__(self) -> None:
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self.new.append(word)
        self[word] = number = len(self) + 1
        return number
