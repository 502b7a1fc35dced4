import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.batches.order import permuted
from efftrain.workload.text.batches.windows import batch, validation_batches
from efftrain.workload.text.config import DataError

COUNTING = np.arange(1001, dtype=np.uint16)  # a token says where it stands: 100 windows of 10, and one token more


def test_a_row_is_a_window_and_the_token_after_it():
    rows = batch(COUNTING, step=0, rank=0, world_size=1, seed=0, batch_size=8, seq_len=10)
    assert (rows.shape, rows.dtype) == ((8, 11), np.int64)
    assert bool((rows[:, 0] % 10 == 0).all())
    assert np.array_equal(rows - rows[:, :1], np.tile(np.arange(11), (8, 1)))


@settings(deadline=None, max_examples=60)
@given(
    windows=st.integers(1, 300), world_size=st.integers(1, 3), batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**32), epoch=st.integers(0, 3),
)  # fmt: skip
def test_an_epoch_deals_every_window_at_most_once(windows, world_size, batch_size, seed, epoch):
    steps = windows // (world_size * batch_size)
    settings = {"world_size": world_size, "seed": seed, "batch_size": batch_size, "seq_len": 2}
    tokens = np.arange(2 * windows + 1, dtype=np.uint32)
    if steps == 0:
        with pytest.raises(DataError, match="too short"):
            batch(tokens, step=0, rank=0, **settings)
        return
    dealt = [
        int(row[0])
        for step in range(epoch * steps, (epoch + 1) * steps)
        for rank in range(world_size)
        for row in batch(tokens, step=step, rank=rank, **settings)
    ]
    assert len(dealt) == len(set(dealt)) == steps * world_size * batch_size
    if windows % (world_size * batch_size) == 0:
        assert sorted(dealt) == list(range(0, 2 * windows, 2))


def starts(step, seed=0, rank=0, world_size=1, batch_size=100):
    rows = batch(
        COUNTING, step=step, rank=rank, world_size=world_size, seed=seed, batch_size=batch_size, seq_len=10
    )  # fmt: skip
    return rows[:, 0].tolist()


def test_a_batch_is_a_function_of_step_and_seed():
    assert starts(3) == starts(3)
    assert starts(3) != starts(4)  # another epoch has another order
    assert starts(3) != starts(3, seed=1)
    # Two ranks of 10 read what one rank of 20 reads.
    assert starts(7, batch_size=20) == [s for r in (0, 1) for s in starts(7, rank=r, world_size=2, batch_size=10)]


def test_the_order_is_the_same_on_every_machine():
    # Worked out with Python's integers; a change would break resuming from older checkpoints.
    assert starts(0)[:8] == [160, 940, 520, 210, 80, 760, 650, 870]


def test_the_order_has_no_pattern():
    size = 10_007
    order = permuted(np.arange(size, dtype=np.uint64), size, "0/0").astype(np.int64)
    assert sorted(order.tolist()) == list(range(size))
    # For a random permutation these correlations are about N(0, 1 / size); 4 standard deviations are allowed.
    for lag in (1, 2, 101):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 4 / math.sqrt(size)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / math.sqrt(size)
    # An affine order repeats one difference; of a random one, 9 of 10 differences modulo the size stand alone or so.
    assert len(set(np.diff(order) % size)) > 0.55 * size
    assert (order == np.arange(size)).sum() < 10


def test_validation_is_spread_evenly_and_the_same_every_time():
    found = list(validation_batches(COUNTING, batches=3, batch_size=4, seq_len=10))
    assert [b.shape for b in found] == [(4, 11)] * 3
    first = np.concatenate(found)[:, 0]
    assert np.array_equal(first, np.arange(12) * 100 // 12 * 10)
    again = np.concatenate(list(validation_batches(COUNTING, batches=3, batch_size=4, seq_len=10)))
    assert np.array_equal(again, np.concatenate(found))


def test_validation_with_few_tokens():
    found = list(validation_batches(COUNTING[:65], batches=10, batch_size=4, seq_len=10))
    assert [b.shape for b in found] == [(4, 11), (2, 11)]
    assert np.concatenate(found)[:, 0].tolist() == [0, 10, 20, 30, 40, 50]
    with pytest.raises(DataError, match="10 validation tokens, and one sequence needs 11"):
        list(validation_batches(COUNTING[:10], batches=1, batch_size=1, seq_len=10))


def test_windows_to_be_masked_need_no_token_after_them():
    settings = {"step": 0, "rank": 0, "world_size": 1, "seed": 0, "batch_size": 5, "seq_len": 10, "lookahead": 0}
    assert sorted(batch(COUNTING[:50], **settings)[:, 0].tolist()) == [0, 10, 20, 30, 40]
    assert batch(COUNTING[:50], **settings).shape == (5, 10)
    found = np.concatenate(list(validation_batches(COUNTING[:50], batches=9, batch_size=2, seq_len=10, lookahead=0)))
    assert np.array_equal(found, COUNTING[:50].reshape(5, 10))


def test_several_sources_are_told_apart_by_what_they_hold():
    tokens = [COUNTING, COUNTING + 5000]
    rows = batch(
        tokens, weights=(3, 1), step=0, rank=0, world_size=1, seed=0, batch_size=40, seq_len=10
    )  # fmt: skip
    assert (rows[:, 0] >= 5000).sum() == 10
    assert bool((rows[:, 0] % 10 == 0).all())
    assert np.array_equal(rows - rows[:, :1], np.tile(np.arange(11), (40, 1)))
    held = np.concatenate(list(validation_batches(tokens, weights=(3, 1), batches=2, batch_size=4, seq_len=10)))
    assert held[:, 0].tolist() == [0, 160, 5000, 330, 500, 660, 5500, 830]
    held = np.concatenate(list(validation_batches([COUNTING, COUNTING[:31]], weights=(1, 1), batches=9, batch_size=4,
                                                  seq_len=10)))  # fmt: skip
    assert held[:, 0].tolist() == [0, 0, 250, 10, 500, 20, 750]  # three of the small one, none twice
    with pytest.raises(DataError, match="10 validation tokens, and one sequence needs 11"):
        list(validation_batches([COUNTING, COUNTING[:10]], weights=(1, 1), batches=1, batch_size=1, seq_len=10))
