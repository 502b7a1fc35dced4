"""A byte-level BPE that is trained on the corpus itself: any text is encodable, and decoding gives it back.

Text is cut into words first, and merges happen inside words. The cut uses ASCII classes alone, so that Python's `re`
and the `tokenizers` library agree on it; a corpus is then encoded word by word from a dictionary, some four times
faster than document by document. The same texts in the same order give the same vocabulary.
"""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT: Final = "<|endoftext|>"
"""Stands after every document, with id 0; never the result of encoding text, not even of text that spells it."""

SMALLEST_VOCABULARY: Final = 257
"""Every byte, and the end of a document."""

# An optional space and a run of letters, where every character beyond ASCII counts as one; then digits in threes,
# punctuation, and blanks, which leave their last one to the word that follows, as in GPT-2. Runs are bounded, so that
# text without blanks does not make words without end.
_WORDS: Final = (
    r" ?[^\x00-@\[-`{-\x7f]{1,48}| ?[0-9]{1,3}| ?[!-/:-@\[-`{-~]{1,48}"
    r"|[\x00-\x20\x7f]{1,48}(?![^\x00-\x20\x7f])|[\x00-\x20\x7f]{1,48}"
)
_CACHED_WORDS: Final = 1_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Learn at most `vocab_size` entries from `texts`; fewer where the texts hold fewer repetitions.

    Raises:
        ValueError: `vocab_size` below 257.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size {vocab_size}: 256 bytes and {END_OF_TEXT} need at least {SMALLEST_VOCABULARY}")
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
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer that was written with `Tokenizer.save` or `to_str`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # not part of the file
    return tokenizer


class WordEncoder:
    """Encodes text as `tokenizer` does, and remembers the words that it has met.

    Attributes:
        tokenizer: one that `train_tokenizer` made.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        self._end = tokenizer.token_to_id(END_OF_TEXT)
        self._words = re.compile(_WORDS)
        self._known: dict[str, list[int]] = {}

    def encode_document(self, text: str) -> np.ndarray:
        """The ids of `text` and the end-of-text id after them, uint32."""
        words = self._words.findall(text)
        if len(self._known) > _CACHED_WORDS:
            self._known.clear()
        unknown = [word for word in set(words) if word not in self._known]
        for word, encoding in zip(unknown, self.tokenizer.encode_batch_fast(unknown), strict=True):
            self._known[word] = encoding.ids
        ids = chain.from_iterable(map(self._known.__getitem__, words))
        return np.fromiter(chain(ids, (self._end,)), dtype=np.uint32)
