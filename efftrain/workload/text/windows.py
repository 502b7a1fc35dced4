"""Tokens dealt out in batches, without state: which windows a step reads is a function of step, rank and seed.

So resuming needs one integer, and what all ranks read together depends on the size of their common batch alone. No
torch here.
"""

import hashlib
from collections.abc import Iterator
from math import isqrt
from typing import Final

import numpy as np

from efftrain.workload.text.config import DataError

_ROUNDS: Final = 4


def batch(
    tokens: np.ndarray, *, step: int, rank: int, world_size: int, seed: int, batch_size: int, seq_len: int
) -> np.ndarray:
    """The sequences that `rank` reads in `step`, [batch_size, seq_len + 1] int64; a pure function of its arguments.

    The tokens are cut into windows of `seq_len`, each with the token after it. Every epoch deals them out in an order
    of its own, without repetition; ranks read disjoint windows, and the windows that do not fill a step at the end
    of an epoch are left out. What all ranks read together depends on world_size · batch_size alone.

    Args:
        tokens: [tokens], as `Corpus.train`.
        step: at least 0.
        rank: 0 to world_size − 1.
        world_size: ranks that train together.
        seed: of the order.
        batch_size: sequences of this rank.
        seq_len: tokens of a sequence to predict.

    Raises:
        DataError: fewer windows than one step reads.
    """
    windows, together = _windows(tokens, seq_len), world_size * batch_size
    if windows < together:
        raise DataError(f"too short: {windows} sequences of {seq_len} tokens, and one batch needs {together}")
    epoch, position = divmod(step, windows // together)
    first = position * together + rank * batch_size
    order = _permuted(np.arange(first, first + batch_size, dtype=np.uint64), windows, f"{seed}/{epoch}")
    return _gather(tokens, order.astype(np.int64), seq_len)


def validation_batches(tokens: np.ndarray, *, batches: int, batch_size: int, seq_len: int) -> Iterator[np.ndarray]:
    """The same held-out sequences for every run, evenly spread, [up to batch_size, seq_len + 1] int64 each.

    Args:
        tokens: [tokens], as `Corpus.validation`.
        batches: at most this many; fewer where there are fewer tokens, and the last may be smaller.
        batch_size: sequences of a batch.
        seq_len: tokens of a sequence to predict.

    Raises:
        DataError: not one sequence.
    """
    windows = _windows(tokens, seq_len)
    if not windows:
        raise DataError(f"too short: {len(tokens)} validation tokens, and one sequence needs {seq_len + 1}")
    count = min(windows, batches * batch_size)
    chosen = np.arange(count, dtype=np.int64) * windows // count
    for start in range(0, count, batch_size):
        yield _gather(tokens, chosen[start : start + batch_size], seq_len)


def _windows(tokens: np.ndarray, seq_len: int) -> int:
    return (len(tokens) - 1) // seq_len


def _gather(tokens: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
    positions = windows[:, None] * seq_len + np.arange(seq_len + 1)
    return np.asarray(tokens)[positions].astype(np.int64)


def _permuted(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a keyed permutation of 0 .. size − 1 sends `index` (uint64), without the permutation being written out.

    A Feistel network on the square just above `size` (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002); whatever leaves the range is sent on until it is back.
    """
    side = np.uint64(isqrt(size - 1) + 1)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8")
    value = index.copy()
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = np.divmod(value[outside], side)
        for round_key in keys:
            left, right = right, (left + _mix(right ^ round_key)) % side
        value[outside] = left * side + right
        outside = value >= size
    return value


def _mix(x: np.ndarray) -> np.ndarray:
    """The upper half of the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014); overflow wraps, as it should."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(32)
