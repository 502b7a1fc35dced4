"""A shuffled order that needs no memory: a keyed permutation that is computed one place at a time."""

import hashlib
from math import isqrt
from typing import Final

import numpy as np

_ROUNDS: Final = 4


def permuted(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a keyed permutation of 0 .. size − 1 sends `index` (uint64), without the permutation being written out.

    A Feistel network on the square just above `size` (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002); whatever leaves the range is sent on until it is back.
    """
    side = np.uint64(isqrt(size - 1) + 1)
    keys = hashed_words(key, _ROUNDS)
    value = index.copy()
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = np.divmod(value[outside], side)
        for round_key in keys:
            left, right = right, (left + (mixed(right ^ round_key) >> np.uint64(32))) % side
        value[outside] = left * side + right
        outside = value >= size
    return value


def hashed_words(key: str, count: int) -> np.ndarray:
    """`count` (at most 8) words of 64 bits that only `key` decides."""
    return np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * count).digest(), dtype="<u8")


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) up to its last shift: the upper half is final.

    Overflow wraps, as it should.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
