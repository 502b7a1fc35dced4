"""Documents kept apart, each with its class, in batches that are functions of step, rank and seed. No torch here."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from efftrain.workload.text.batches.mixture import deal, spread

LabelledRows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Token ids [B, T], tokens of each document [B], and classes [B], all int64."""


class LabelledTexts(NamedTuple):
    """Encoded documents and their classes.

    Attributes:
        tokens: [tokens], each document's last being the end of the text.
        offsets: where each begins in `tokens`, and the end, [documents + 1].
        labels: each one's class, [documents].
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray


def labelled_batch(
    sources: Sequence[LabelledTexts],
    *,
    step: int,
    rank: int,
    world_size: int,
    seed: int,
    batch_size: int,
    seq_len: int,
    weights: Sequence[float] = (1.0,),
) -> LabelledRows:
    """The documents that `rank` reads in `step`, a pure function; `mixture.deal` tells their order.

    A shorter one is padded with id 0 on the right. A longer one is cut, and its last token is the end of the text
    still, so that a decoder reads the class off the same token everywhere.

    Args:
        sources: as `Corpus.labelled("train")`.
        step: at least 0.
        rank: 0 to world_size − 1.
        world_size: ranks that train together.
        seed: of the order.
        batch_size: documents of this rank.
        seq_len: tokens of a row.
        weights: shares of the sources.

    Returns:
        Token ids [B, T], tokens that are no padding [B], classes [B].

    Raises:
        DataError: one source with fewer documents than one step reads.
    """
    source, document = deal(
        [len(texts.labels) for texts in sources], weights, step=step, rank=rank, world_size=world_size, seed=seed,
        batch_size=batch_size, kind="documents",
    )  # fmt: skip
    return _rows(sources, source, document, seq_len)


def labelled_validation_batches(
    sources: Sequence[LabelledTexts], *, batches: int, batch_size: int, seq_len: int, weights: Sequence[float] = (1.0,)
) -> Iterator[LabelledRows]:
    """The same held-out documents for every run, evenly spread over each source, up to `batch_size` at a time.

    None comes twice; see `efftrain.workload.text.batches.mixture.spread`.

    Args:
        sources: as `Corpus.labelled("validation")`.
        batches: at most this many; fewer where there are fewer documents, in all or in one source for its share, and
            the last may be smaller.
        batch_size: documents of a batch.
        seq_len: tokens of a row.
        weights: shares of the sources.
    """
    source, document = spread([len(texts.labels) for texts in sources], weights, batches * batch_size)
    for start in range(0, len(source), batch_size):
        chosen = slice(start, start + batch_size)
        yield _rows(sources, source[chosen], document[chosen], seq_len)


def _rows(sources: Sequence[LabelledTexts], source: np.ndarray, document: np.ndarray, seq_len: int) -> LabelledRows:
    rows = np.zeros((len(source), seq_len), dtype=np.int64)
    lengths, labels = np.empty(len(source), dtype=np.int64), np.empty(len(source), dtype=np.int64)
    for row, (i, j) in enumerate(zip(source.tolist(), document.tolist(), strict=True)):
        texts = sources[i]
        start, stop = int(texts.offsets[j]), int(texts.offsets[j + 1])
        lengths[row], labels[row] = min(stop - start, seq_len), texts.labels[j]
        rows[row, : lengths[row]] = texts.tokens[start : start + lengths[row]]
        rows[row, lengths[row] - 1] = texts.tokens[stop - 1]
    return rows, lengths, labels
