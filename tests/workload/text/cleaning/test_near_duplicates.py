"""Near-duplicates against Jaccard similarities computed from the sets themselves."""

import random
import sys

import pytest

from efftrain.workload.text.cleaning.near_duplicates import THRESHOLD, DataError, NearDuplicates, shingles

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "se", "to") for b in ("bar", "dun", "fel", "gos", "hin", "pal")]


def jaccard(one, other):
    one, other = set(one), set(other)
    return len(one & other) / len(one | other)


def runs(parts):
    return [tuple(parts[i : i + 5]) for i in range(len(parts) - 4)]


def told_apart(one, other):
    found = NearDuplicates()
    assert not found.repeats(one)
    return not found.repeats(other)


def changed(words, count, rng):
    """`words` with `count` of them replaced, evenly spread."""
    words = list(words)
    for i in range(count):
        words[(2 * i + 1) * len(words) // (2 * count)] = f"new{rng.random()}"
    return words


@pytest.mark.parametrize("seed", range(6))
def test_against_exact_similarity(seed):
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=400)
    kinds = set()
    for count in (0, 1, 2, 4, 8, 12, 20, 40):
        other = changed(words, count, rng)
        similarity = jaccard(runs(words), runs(other))
        if abs(similarity - THRESHOLD) > 0.12:  # three standard errors of 120 hashes: √(0.8 · 0.2 / 120) = 0.037
            assert told_apart(" ".join(words), " ".join(other)) == (similarity < THRESHOLD), (count, similarity)
            kinds.add(similarity < THRESHOLD)
    assert kinds == {False, True}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The committee met on Tuesday and approved the budget for the coming year without any debate at all.",
         "The committee met on Tuesday and approved the budget for the coming year without any debate at all!!"),
        ("日本の首都は東京であり、人口は約千四百万人である。大阪は第二の都市として知られている。" * 3,
         "日本の首都は東京であり、人口は約千四百万人である。大阪は第二の都市として知られている。" * 2
         + "日本の首都は東京であり、人口は約千四百万人である。大阪は第三の都市として知られている。"),
        ("The committee met on Tuesday and approved the budget.", "The committee met on Friday and rejected the plan."),
        ("a", "b"), ("a", "A "),
    ],
)  # fmt: skip
def test_short_texts_are_compared_in_characters(one, other):
    similarity = jaccard(*(["".join(run) for run in runs(" ".join(t.casefold().split()))] or [t.casefold().strip()]
                           for t in (one, other)))  # fmt: skip
    assert abs(similarity - THRESHOLD) > 0.05
    assert told_apart(one, other) == (similarity < THRESHOLD)


def test_shingles_are_runs_of_five():
    words = WORDS[:36] + WORDS[:20]
    assert [tuple(s[1:].split()) for s in shingles(" ".join(words))] == runs(words)
    assert [s[1:] for s in shingles("Abc  def")] == ["abc d", "bc de", "c def"]


def test_unrelated_documents_are_all_kept():
    rng = random.Random(0)
    found = NearDuplicates()
    assert not any(found.repeats(" ".join(rng.choices(WORDS, k=120))) for _ in range(200))


def test_a_long_document_is_hashed_in_parts():
    rng = random.Random(1)
    words = [str(rng.random()) for _ in range(10_000)]
    assert told_apart(" ".join(words), " ".join(words[:7_000]))  # Jaccard 0.7
    assert not told_apart(" ".join(words), " ".join(words[:9_500]))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"near-duplicates need datasketch; install efftrain\[data\]"):
        NearDuplicates()
