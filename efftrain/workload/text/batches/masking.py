"""Tokens hidden from a model that has to tell them from what stands around them, as in BERT.

Devlin and others, arXiv:1810.04805, section 3.1: of the positions, 15 % are to be predicted; of those 80 % become the
mask token, 10 % a random token, and 10 % stay, so that a model cannot trust what it sees. How many there are in a
sequence is fixed, as in the authors' own data, so that every rank and micro-batch predicts equally many.
"""

from typing import Final

import numpy as np

from efftrain.workload.text.batches.order import hashed_words, mixed

IGNORED: Final = -100
"""The target of a position that is not to be predicted, torch's own `ignore_index`."""

_MASKED, _RANDOM = 0.8, 0.1
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step: counters that follow each other become unlike


def predicted(seq_len: int, rate: float = 0.15) -> int:
    """Positions of a sequence that are to be predicted."""
    return max(1, round(rate * seq_len))


def mask_tokens(
    rows: np.ndarray,
    *,
    step: int,
    first_row: int,
    seed: int,
    mask_id: int,
    vocab_size: int,
    end_id: int = 0,
    rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide tokens: inputs [B, T] and targets [B, T], both int64; a pure function of step, row in the step, and seed.

    Args:
        rows: token ids [B, T], as `batch` with a lookahead of 0.
        step: at least 0.
        first_row: place of the first row among all that all ranks read in this step.
        seed: of the choice.
        mask_id: the mask token's.
        vocab_size: ids from which random tokens are drawn, every one of them.
        end_id: the end-of-text token's; it is chosen only where there are too few others.
        rate: share of the positions that are to be predicted.

    Returns:
        The rows with tokens hidden, and the hidden tokens in their places with −100 everywhere else.
    """
    count, seq_len = rows.shape
    chance, fate, other = _draws(f"{seed}/mask/{step}", first_row, count, seq_len)
    # The positions with the smallest numbers are chosen; the highest bit puts the ends of texts behind all others.
    number = (chance >> np.uint64(1)) | ((rows == end_id).astype(np.uint64) << np.uint64(63))
    chosen = np.argsort(number, axis=1, kind="stable")[:, : predicted(seq_len, rate)]
    hidden = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(hidden, chosen, True, axis=1)
    uniform = (fate >> np.uint64(11)) / 2.0**53  # as many bits as a float64 holds
    instead = np.where(uniform < _MASKED, mask_id, (other >> np.uint64(32)) % np.uint64(vocab_size)).astype(np.int64)
    inputs = np.where(hidden & (uniform < _MASKED + _RANDOM), instead, rows)
    return inputs.astype(np.int64), np.where(hidden, rows, IGNORED).astype(np.int64)


def _draws(key: str, first_row: int, rows: int, seq_len: int) -> np.ndarray:
    """Three random words of 64 bits for each position, [3, rows, seq_len]: each hashes its row and its position."""
    row = np.arange(first_row, first_row + rows, dtype=np.uint64)[:, None]
    position = np.arange(seq_len, dtype=np.uint64)[None, :]
    words = hashed_words(key, 3)[:, None, None]
    return _hashed(_hashed(words + row * _GOLDEN) + position * _GOLDEN)


def _hashed(x: np.ndarray) -> np.ndarray:
    x = mixed(x)
    return x ^ (x >> np.uint64(31))
