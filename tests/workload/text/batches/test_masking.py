import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.batches.masking import IGNORED, mask_tokens, predicted

VOCAB, MASK = 1000, 1
ROWS = np.random.default_rng(0).integers(2, VOCAB, (64, 200))


def masked(rows=ROWS, step=0, first_row=0, seed=0, **settings):
    return mask_tokens(rows, step=step, first_row=first_row, seed=seed, mask_id=MASK, vocab_size=VOCAB, **settings)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**32), st.sampled_from([0.01, 0.15, 0.4, 1.0]))
def test_each_sequence_predicts_equally_many_and_the_rest_is_untouched(seq_len, seed, rate):
    rows = np.random.default_rng(seed).integers(2, VOCAB, (3, seq_len))
    inputs, targets = masked(rows, seed=seed, rate=rate)
    asked = targets != IGNORED
    assert asked.sum(axis=1).tolist() == [max(1, round(rate * seq_len))] * 3
    assert np.array_equal(inputs[~asked], rows[~asked])
    assert np.array_equal(targets[asked], rows[asked])
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.min() >= 0
    assert inputs.max() < VOCAB


def within(found, n, p):
    """4.5 standard deviations of a binomial: one test in 150 000 fails by chance, and the seeds are fixed."""
    return abs(found - n * p) <= 4.5 * math.sqrt(n * p * (1 - p))


def test_eight_of_ten_become_the_mask_one_is_random_and_one_stays():
    found = [masked(step=step) for step in range(20)]
    asked = np.stack([targets != IGNORED for _, targets in found])
    inputs = np.stack([inputs for inputs, _ in found])
    n = int(asked.sum())
    assert n == 20 * 64 * 30
    is_mask, same = asked & (inputs == MASK), asked & (inputs == ROWS)
    random = asked & ~is_mask & ~same
    assert within(is_mask.sum(), n, 0.8 + 0.1 / VOCAB)
    assert within(same.sum(), n, 0.1 + 0.1 / VOCAB)
    assert within(random.sum(), n, 0.1 * (VOCAB - 2) / VOCAB)
    drawn = inputs[random]
    assert within((drawn < VOCAB // 4).sum(), len(drawn), 0.25)
    assert within((drawn % 2 == 0).sum(), len(drawn), 0.5)


def test_every_position_is_equally_likely():
    asked = np.stack([masked(step=step)[1] != IGNORED for step in range(50)])
    per_position = asked.sum(axis=(0, 1))
    n = 50 * 64
    # 200 positions: 5 standard deviations; the choice without repetition makes them a little narrower yet.
    assert np.abs(per_position - 0.15 * n).max() < 5 * math.sqrt(n * 0.15 * 0.85)
    # Neighbours are chosen independently: both of a pair with k (k − 1) / T (T − 1).
    together = int((asked[:, :, 1:] & asked[:, :, :-1]).sum())
    assert abs(together - n * 199 * 30 * 29 / (200 * 199)) < 5 * math.sqrt(n * 199 * 0.0219)


def test_ranks_and_micro_batches_hide_what_one_process_hides():
    whole = masked(step=5, seed=7)
    parts = [masked(ROWS[i : i + 16], step=5, seed=7, first_row=i) for i in range(0, 64, 16)]
    for index in (0, 1):
        assert np.array_equal(np.concatenate([part[index] for part in parts]), whole[index])


def test_step_row_and_seed_each_change_the_choice():
    same = np.tile(ROWS[:1], (2, 1))
    first = masked(same)[1]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(masked(same, step=1)[1], first)
    assert not np.array_equal(masked(same, seed=1)[1], first)
    assert np.array_equal(masked(same)[1], first)


def test_the_end_of_a_text_is_hidden_only_where_little_else_is():
    rows = ROWS[:4].copy()
    rows[:, 50:] = 0
    targets = masked(rows, rate=0.25)[1]
    assert bool((targets[:, :50] != IGNORED).all())
    assert bool((targets[:, 50:] == IGNORED).all())
    assert (masked(rows, rate=0.5)[1] != IGNORED).sum(axis=1).tolist() == [100] * 4
    rows[:, 50:] = 7
    assert (masked(np.where(rows == 7, 3, rows), end_id=3)[1] == 3).sum() == 0


@pytest.mark.parametrize(("seq_len", "count"), [(1, 1), (2, 1), (10, 2), (128, 19), (512, 77)])
def test_how_many(seq_len, count):
    assert predicted(seq_len) == count


def test_the_choice_is_the_same_on_every_machine():
    # Worked out with Python's integers; a change would break resuming from older checkpoints.
    word, golden = 2**64, 0x9E3779B97F4A7C15

    def hashed(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % word
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % word
        return x ^ (x >> 31)

    key = int.from_bytes(hashlib.blake2b(b"5/mask/3", digest_size=24).digest()[:8], "little")
    numbers = [hashed((hashed((key + 11 * golden) % word) + t * golden) % word) >> 1 for t in range(40)]
    chosen = np.flatnonzero(masked(ROWS[:1, :40], step=3, first_row=11, seed=5)[1][0] != IGNORED)
    assert chosen.tolist() == sorted(sorted(range(40), key=numbers.__getitem__)[:6])
