"""Which item of which source is read when: sequences or documents, dealt out by arithmetic, without state.

One source is dealt out epoch by epoch. Several are mixed in blocks: in each block every source has exactly its share of
the places, in a shuffled order, and goes through its own items at its own pace. So what a step reads is a function of
step, rank and seed; resuming needs one integer, and what all ranks read together depends on the size of their common
batch alone.
"""

from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import Final

import numpy as np

from efftrain.workload.text.batches.order import permuted
from efftrain.workload.text.config import DataError

_BLOCK: Final = 1000  # places in which shares are represented where no fewer do
_ROUNDING: Final = 1e-9  # of a place: 10 × 0.3 is a little over 3


def deal(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    step: int,
    rank: int,
    world_size: int,
    seed: int,
    batch_size: int,
    kind: str = "sequences",
) -> tuple[np.ndarray, np.ndarray]:
    """What `rank` reads in `step`: sources [batch_size] and the items in them [batch_size], both int64.

    Every epoch of one source deals its items out in an order of its own, without repetition; ranks read disjoint items,
    and those that do not fill a step at the end of an epoch are left out. With several sources nothing is left out, and
    a small source may begin another epoch within a step.

    Args:
        sizes: items of each source.
        weights: shares of the sources, in any unit.
        step: at least 0.
        rank: 0 to world_size − 1.
        world_size: ranks that train together.
        seed: of the order.
        batch_size: items of this rank.
        kind: what the items are, for the error.

    Raises:
        DataError: one source with fewer items than a step reads, or an empty one among several.
    """
    together = world_size * batch_size
    if len(sizes) > 1:
        first = step * together + rank * batch_size
        return _mixed(sizes, weights, np.arange(first, first + batch_size, dtype=np.int64), seed)
    (size,) = sizes
    if size < together:
        raise DataError(f"too short: {size} {kind}, and one batch needs {together}")
    epoch, position = divmod(step, size // together)
    first = position * together + rank * batch_size
    order = permuted(np.arange(first, first + batch_size, dtype=np.uint64), size, f"{seed}/{epoch}")
    return np.zeros(batch_size, dtype=np.int64), order.astype(np.int64)


def spread(sizes: Sequence[int], weights: Sequence[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` different items, evenly spread over each source: sources [≤ count] and items [≤ count], int64.

    How many they are is told by `places_without_repetition`. Several sources alternate, so that every stretch of them
    holds about the same mixture: means over stretches then differ by what is in the items, and not by where they are
    from.
    """
    counts = places_without_repetition(sizes, weights, count)
    sources = np.repeat(np.arange(len(sizes), dtype=np.int64), counts)
    items = [np.arange(n, dtype=np.int64) * size // max(1, n) for size, n in zip(sizes, counts, strict=True)]
    order = np.argsort(np.concatenate([(np.arange(n) + 0.5) / max(1, n) for n in counts]), kind="stable")
    return sources[order], np.concatenate(items)[order]


def places_without_repetition(sizes: Sequence[int], weights: Sequence[float], count: int) -> list[int]:
    """Places of each source among at most `count`, by weight, of which none has more than it has items.

    Where a source is too small for its share, all of them have fewer: an item that is read twice tells nothing new, and
    the more of a smaller source would make the mixture another.
    """
    count = min(count, sum(sizes))
    if len(sizes) == 1:
        return [count]
    # A source has at least the whole places of its quota, so a quota of one place too many is beyond what fits.
    most = min((size + 1) * sum(weights) / weight for size, weight in zip(sizes, weights, strict=True))
    count = min(count, ceil(most))
    while any(places > size for places, size in zip(shares(weights, count), sizes, strict=True)):
        count -= 1
    return shares(weights, count)


def shortage(
    names: Sequence[str], sizes: Sequence[int], weights: Sequence[float], count: int, *, kind: str = "sequences"
) -> str | None:
    """Why there are fewer items without repetition than `count` and than all sources hold; None where there are not.

    Args:
        names: of the sources.
        sizes: items of each.
        weights: shares of the sources, in any unit.
        count: items that are asked for.
        kind: what the items are.
    """
    wanted, found = min(count, sum(sizes)), sum(places_without_repetition(sizes, weights, count))
    if found == wanted:
        return None
    scarcest = min(range(len(sizes)), key=lambda i: sizes[i] / weights[i])
    return (
        f"validation reads {found} {kind} instead of {wanted}, each once: {names[scarcest]} holds out "
        f"{sizes[scarcest]} and has a share of {weights[scarcest] / sum(weights):.2%}; more of it makes the loss surer"
    )


def shares(weights: Sequence[float], places: int) -> list[int]:
    """How many of `places` each source has: the largest remainders decide, and the first source where they are equal.

    That is Hamilton's method; the sum is `places`.
    """
    total = sum(weights)
    quotas = [places * weight / total for weight in weights]
    counts = [floor(quota + _ROUNDING) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: (round(counts[i] - quotas[i], 9), i))
    for i in by_remainder[: places - sum(counts)]:
        counts[i] += 1
    return counts


def block_size(weights: Sequence[float]) -> int:
    """Places of a block: as few as represent the weights exactly, or 1000, or so many that each source has one."""
    total = sum(weights)
    for places in range(1, _BLOCK + 1):
        if all(abs(places * w / total - max(1, round(places * w / total))) < _ROUNDING * places for w in weights):
            return places
    return max(_BLOCK, ceil(total / min(weights)))


def _mixed(
    sizes: Sequence[int], weights: Sequence[float], sequence: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and items of the places `sequence` [n] in the endless mixture."""
    if not all(sizes):
        raise DataError(f"too short: source {sizes.index(0) + 1} of {len(sizes)} holds nothing to draw")
    places = block_size(weights)
    counts = np.array(shares(weights, places), dtype=np.int64)
    ends = np.cumsum(counts)
    block, place = np.divmod(sequence, places)
    slot = _permuted_by(block, place, lambda b: (places, f"{seed}/mixture/{b}"))
    source = np.searchsorted(ends, slot, side="right").astype(np.int64)
    draw = block * counts[source] + slot - (ends - counts)[source]
    epoch, position = np.divmod(draw, np.array(sizes, dtype=np.int64)[source])
    item = np.empty_like(position)
    for i in np.unique(source).tolist():
        mine = source == i
        item[mine] = _permuted_by(epoch[mine], position[mine], lambda e, i=i: (sizes[i], f"{seed}/{i}/{e}"))
    return source, item


def _permuted_by(group: np.ndarray, index: np.ndarray, permutation: Callable[[int], tuple[int, str]]) -> np.ndarray:
    """`index` [n], sent on by the permutation (its size, its key) of the group in which each stands; int64."""
    sent = np.empty_like(index)
    for value in np.unique(group).tolist():
        inside = group == value
        sent[inside] = permuted(index[inside].astype(np.uint64), *permutation(value)).astype(np.int64)
    return sent
