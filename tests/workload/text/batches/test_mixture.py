import hashlib
from collections import Counter
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.batches.mixture import block_size, deal, places_without_repetition, shares, shortage, spread
from efftrain.workload.text.config import DataError

WORD = 2**64


def shuffled(size, key):
    """The keyed permutation, place by place, in Python's own integers."""
    digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(4)]
    side = isqrt(size - 1) + 1

    def once(value):
        left, right = divmod(value, side)
        for round_key in keys:
            x = right ^ round_key
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB % WORD) >> 32
            left, right = right, (left + x) % side
        return left * side + right

    order = []
    for start in range(size):
        value = once(start)
        while value >= size:
            value = once(value)
        order.append(value)
    return order


def enumerated(sizes, counts, seed, blocks):
    """The mixture written out: each block's places are shuffled, and each source's items are a list that is drawn."""
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    within = [j for count in counts for j in range(count)]
    endless = [[item for e in range(99) for item in shuffled(size, f"{seed}/{i}/{e}")] for i, size in enumerate(sizes)]
    return [
        (owners[slot], endless[owners[slot]][b * counts[owners[slot]] + within[slot]])
        for b in range(blocks)
        for slot in shuffled(len(owners), f"{seed}/mixture/{b}")
    ]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_every_rank_reads_what_the_enumeration_says(ranks, batch_size):
    sizes, weights = (7, 3, 50), (0.5, 0.3, 0.2)
    expected = enumerated(sizes, (5, 3, 2), seed=9, blocks=12)
    for step in range(20):
        found = [
            pair
            for rank in range(ranks)
            for pair in zip(
                *deal(sizes, weights, step=step, rank=rank, world_size=ranks, seed=9, batch_size=batch_size),
                strict=True,
            )
        ]
        assert found == expected[6 * step : 6 * step + 6]


def test_one_source_is_the_plain_shuffled_epoch():
    for step in (0, 1, 2, 5):
        source, item = deal((23,), (2.0,), step=step, rank=1, world_size=2, seed=3, batch_size=4)
        epoch, position = divmod(step, 2)  # 23 items are 2 steps of 8
        assert item.tolist() == shuffled(23, f"3/{epoch}")[8 * position + 4 : 8 * position + 8]
        assert source.tolist() == [0] * 4


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.001, 0.1, 1 / 3, 0.7, 1.0, 5.0, 12.5]), min_size=2, max_size=5), st.integers(0, 9))
def test_each_block_holds_exactly_the_shares(weights, block):
    places = block_size(weights)
    counts = shares(weights, places)
    source, _ = deal([11] * len(weights), weights, step=block, rank=0, world_size=1, seed=0, batch_size=places)
    assert [Counter(source.tolist())[i] for i in range(len(weights))] == counts
    assert min(counts) >= 1
    for weight, count in zip(weights, counts, strict=True):  # no share is off by a place
        assert abs(count - places * Fraction(weight) / sum(map(Fraction, weights))) < 1


@pytest.mark.parametrize(
    ("weights", "places", "counts"),
    [((0.5, 0.3, 0.2), 10, [5, 3, 2]), ((1, 1), 2, [1, 1]), ((0.7, 0.1, 0.1, 0.1), 10, [7, 1, 1, 1]),
     ((1, 1999), 2000, [1, 1999]), ((2**0.5, 1), 1000, [586, 414])],
)  # fmt: skip
def test_blocks_worked_out_by_hand(weights, places, counts):
    assert (block_size(weights), shares(weights, places)) == (places, counts)


def test_the_largest_remainders_have_the_places_left():
    # Quotas 4.7, 2.9, 2.4: 4 + 2 + 2, and the two places left go to .9 and .7. Of equals the first has it.
    assert shares((47, 29, 24), 10) == [5, 3, 2]
    assert shares((1, 1, 1), 10) == [4, 3, 3]


def test_a_source_goes_through_all_its_items_before_it_repeats_one():
    drawn = []
    for step in range(30):
        source, item = deal((5, 100), (1, 1), step=step, rank=0, world_size=1, seed=1, batch_size=2)
        drawn += item[source == 0].tolist()
    assert [sorted(drawn[k : k + 5]) for k in range(0, 30, 5)] == [list(range(5))] * 6
    assert len({tuple(drawn[k : k + 5]) for k in range(0, 30, 5)}) > 3  # each time in another order


def test_far_into_a_run_costs_no_more():
    source, item = deal((5, 10**9), (1, 3), step=10**12, rank=0, world_size=1, seed=1, batch_size=4)
    assert sorted(source.tolist()) == [0, 1, 1, 1]
    assert bool((item < np.array([5, 10**9])[source]).all())


def test_what_cannot_be_dealt():
    with pytest.raises(DataError, match="too short: 7 documents, and one batch needs 8"):
        deal((7,), (1,), step=0, rank=0, world_size=2, seed=0, batch_size=4, kind="documents")
    with pytest.raises(DataError, match="source 2 of 2 holds nothing"):
        deal((7, 0), (1, 1), step=0, rank=0, world_size=1, seed=0, batch_size=4)


def test_validation_is_spread_by_weight():
    source, item = spread((100, 100), (1, 3), 8)
    # Places at 1/4 and 3/4 of one source, at 1/12, 3/12 and so on of the other, in order.
    assert source.tolist() == [1, 0, 1, 1, 1, 0, 1, 1]
    assert item[source == 0].tolist() == [0, 50]
    assert item[source == 1].tolist() == [0, 16, 33, 50, 66, 83]
    source, item = spread((3, 2), (1, 1), 40)  # no more than there are
    assert (source.tolist(), item.tolist()) == ([0, 1, 0, 1, 0], [0, 0, 1, 1, 2])
    source, item = spread((30,), (1,), 10)
    assert item.tolist() == list(range(0, 30, 3))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.001, 0.1, 1 / 3, 0.7, 1.0, 12.5])), min_size=2, max_size=4
    ),
    st.integers(1, 90),
)
def test_validation_reads_as_much_as_there_is_by_weight_and_nothing_twice(sources, count):
    sizes, weights = zip(*sources, strict=True)
    source, item = spread(sizes, weights, count)
    pairs = list(zip(source.tolist(), item.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= j < sizes[i] for i, j in pairs)
    assert [Counter(source.tolist())[i] for i in range(len(sizes))] == shares(weights, len(pairs))
    wanted = min(count, sum(sizes))
    for more in range(len(pairs) + 1, wanted + 1):  # whatever is more would read something twice
        assert any(places > size for places, size in zip(shares(weights, more), sizes, strict=True))
    said = shortage([str(size) for size in sizes], sizes, weights, count)
    assert (said is None) == (len(pairs) == wanted)


def test_every_stretch_of_the_validation_holds_the_mixture():
    source, _ = spread((1000, 1000, 1000), (5, 3, 2), 400)
    assert all(sorted(source[k : k + 10].tolist()) == [0] * 5 + [1] * 3 + [2] * 2 for k in range(0, 400, 10))


def test_a_validation_that_is_cut_short_says_why():
    said = shortage(("wiki", "notes"), (500, 6), (0.95, 0.05), 256)
    assert said == (
        "validation reads 130 sequences instead of 256, each once: notes holds out 6 and has a share of 5.00%; more of "
        "it makes the loss surer"
    )
    assert sum(places_without_repetition((500, 6), (0.95, 0.05), 256)) == 130
    assert shortage(("wiki", "notes"), (500, 30), (0.95, 0.05), 256) is None
    assert shortage(("all",), (3,), (1,), 256) is None  # all that there is, which is nobody's share
