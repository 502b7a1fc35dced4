"""Documents that all but repeat an earlier one, found by MinHash and locality-sensitive hashing (`datasketch`).

Two documents are near-duplicates where the Jaccard similarity of their shingles is 0.8 or more. Shingles are five words
long, as in Lee et al., "Deduplicating Training Data Makes Language Models Better" (arXiv:2107.06499). A word changed
among n spoils five of the n − 4 shingles on either side, which leaves (n − 9) / (n + 1): at 0.8, scattered changes to
one word in 50 are forgiven, and a paragraph that differs is not unless the document is five times as long. A text below
50 words, or in a script without spaces, is taken in runs of five characters instead.
"""

from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Final

from efftrain.workload.text.config import DataError

THRESHOLD: Final = 0.8
"""Jaccard similarity from which a document counts as a repetition."""

SHINGLE: Final = 5
"""Words, or characters, of one shingle."""

_SHORT: Final = 50  # words; of fewer, one changed word would hide a repetition
_PERMUTATIONS: Final = 120
# A pair of similarity s becomes a candidate with probability 1 − (1 − s⁶)²⁰: 0.998 at 0.8, 0.27 at 0.5, 0.015 at 0.3.
_BANDS: Final = 20
_ROWS: Final = 6
_BATCH: Final = 4096  # shingles hashed at once: a table of 4096 × 120 numbers


class NearDuplicates:
    """Remembers the documents it was shown and recognises what all but repeats one of them.

    The similarity of candidates is estimated from 120 hashes, with a standard error of √(0.8 · 0.2 / 120) = 0.04: pairs
    near the threshold may be told either way, always the same way. A text in words is never held against one in
    characters. Each document that is remembered takes 7.2 KB (measured with datasketch 2.0: 4 KB are the 20 buckets'
    sets), whatever its length: a million of them take 7 GB.

    Raises:
        DataError: `datasketch` is not installed.
    """

    def __init__(self) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise DataError("near-duplicates need datasketch; install efftrain[data]") from None
        self._empty = MinHash(num_perm=_PERMUTATIONS)
        self._index = MinHashLSH(num_perm=_PERMUTATIONS, params=(_BANDS, _ROWS))
        self._hashes: dict[Hashable, bytes] = {}

    def repeats(self, text: str) -> bool:
        """Whether `text` all but repeats an earlier one; if it does not, it is remembered."""
        import numpy as np

        minhash = self._empty.copy()
        encoded = iter(shingles(text))
        while batch := [shingle.encode() for shingle in islice(encoded, _BATCH)]:
            minhash.update_batch(batch)
        hashes = minhash.hashvalues.astype(np.uint32)
        for earlier in self._index.query(minhash):
            if np.mean(hashes == np.frombuffer(self._hashes[earlier], dtype=np.uint32)) >= THRESHOLD:
                return True
        number = len(self._hashes)
        self._index.insert(number, minhash, check_duplication=False)
        self._hashes[number] = hashes.tobytes()
        return False


def shingles(text: str) -> Iterator[str]:
    """All runs of `SHINGLE` words of `text`, or of characters where it has fewer than 50 words; case is ignored.

    Repeated ones are not left out. A text shorter than a shingle is one.
    """
    words = text.casefold().split()
    kind, parts, join = ("w", words, " ") if len(words) >= _SHORT else ("c", " ".join(words), "")
    for start in range(max(1, len(parts) - SHINGLE + 1)):
        yield f"{kind}{join.join(parts[start : start + SHINGLE])}"
