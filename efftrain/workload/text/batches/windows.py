"""Tokens in sequences of equal length, in batches that are functions of step, rank and seed. No torch here."""

from collections.abc import Iterator, Sequence

import numpy as np

from efftrain.workload.text.batches.mixture import deal, spread
from efftrain.workload.text.config import DataError

Tokens = np.ndarray | Sequence[np.ndarray]
"""[tokens] of one source, or one such array for each of several."""


def batch(
    tokens: Tokens,
    *,
    step: int,
    rank: int,
    world_size: int,
    seed: int,
    batch_size: int,
    seq_len: int,
    weights: Sequence[float] = (1.0,),
    lookahead: int = 1,
) -> np.ndarray:
    """The sequences that `rank` reads in `step`, [batch_size, seq_len + lookahead] int64; a pure function.

    Tokens are cut into windows of `seq_len`, each with the tokens after it that a causal model has to predict. In which
    order they come is told by `efftrain.workload.text.batches.mixture.deal`.

    Args:
        tokens: as `Corpus.train_sources`, or those of one source.
        step: at least 0.
        rank: 0 to world_size − 1.
        world_size: ranks that train together.
        seed: of the order.
        batch_size: sequences of this rank.
        seq_len: tokens of a sequence.
        weights: shares of the sources.
        lookahead: tokens after each window that come with it: 1 to predict the next token, 0 to predict masked ones.

    Raises:
        DataError: one source with fewer windows than one step reads, or one of several without any.
    """
    sources = _sources(tokens)
    source, window = deal(
        [count_windows(s, seq_len, lookahead) for s in sources], weights, step=step, rank=rank, world_size=world_size,
        seed=seed, batch_size=batch_size, kind=f"sequences of {seq_len} tokens",
    )  # fmt: skip
    return _gather(sources, source, window, seq_len, lookahead)


def validation_batches(
    tokens: Tokens, *, batches: int, batch_size: int, seq_len: int, weights: Sequence[float] = (1.0,),
    lookahead: int = 1,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The same held-out sequences for every run, evenly spread, [up to batch_size, seq_len + lookahead] int64 each.

    None comes twice; see `efftrain.workload.text.batches.mixture.spread`.

    Args:
        tokens: as `Corpus.validation_sources`, or those of one source.
        batches: at most this many; fewer where there are fewer tokens, of all or of one source for its share, and the
            last may be smaller.
        batch_size: sequences of a batch.
        seq_len: tokens of a sequence.
        weights: shares of the sources among the sequences.
        lookahead: tokens after each window that come with it.

    Raises:
        DataError: a source without one sequence.
    """
    sources = _sources(tokens)
    sizes = [count_windows(s, seq_len, lookahead) for s in sources]
    if not all(sizes):
        length = len(sources[sizes.index(0)])
        raise DataError(f"too short: {length} validation tokens, and one sequence needs {seq_len + lookahead}")
    source, window = spread(sizes, weights, batches * batch_size)
    for start in range(0, len(source), batch_size):
        chosen = slice(start, start + batch_size)
        yield _gather(sources, source[chosen], window[chosen], seq_len, lookahead)


def count_windows(tokens: np.ndarray, seq_len: int, lookahead: int) -> int:
    """Sequences of `seq_len` that `tokens` [tokens] hold, each with the tokens after it."""
    return max(0, len(tokens) - lookahead) // seq_len


def _sources(tokens: Tokens) -> Sequence[np.ndarray]:
    return [tokens] if isinstance(tokens, np.ndarray) else tokens


def _gather(
    sources: Sequence[np.ndarray], source: np.ndarray, window: np.ndarray, seq_len: int, lookahead: int
) -> np.ndarray:
    positions = window[:, None] * seq_len + np.arange(seq_len + lookahead)
    rows = np.empty(positions.shape, dtype=np.int64)
    for i in np.unique(source).tolist():
        rows[source == i] = np.asarray(sources[i])[positions[source == i]]
    return rows
