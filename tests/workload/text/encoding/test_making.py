import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from efftrain.workload.text.batches.windows import batch
from efftrain.workload.text.config import DataError, Source, TextConfig
from efftrain.workload.text.corpus import prepare
from efftrain.workload.text.encoding import workers
from efftrain.workload.text.encoding.tokenizer import END_OF_TEXT, load_tokenizer

VOCAB = 300


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text, "body": text.upper()}) + "\n" for text in texts))
    return path


@pytest.fixture
def stories(tmp_path):
    return jsonl(tmp_path / "stories.jsonl", [f"story {i} of a {i * i} year old\n" * 4 for i in range(60)])


@pytest.fixture
def code(tmp_path):
    return jsonl(tmp_path / "code.jsonl", [f"def f_{i}(x):\n    return x + {i}\n" * 3 for i in range(40)])


def texts_of(made, part, source):
    tokens = (made.train_sources if part == "train" else made.validation_sources)[source]
    decoded = load_tokenizer(made.tokenizer_path).decode(tokens.tolist(), skip_special_tokens=False)
    return decoded.split(END_OF_TEXT)[:-1]


def two(stories, code, **settings):
    return TextConfig(sources=(Source(path=str(stories), weight=3), Source(path=str(code), weight=1)), **settings)


def test_each_source_has_tokens_of_its_own(stories, code, tmp_path):
    jsonl(
        code, [*(json.loads(line)["text"] for line in code.read_text().splitlines()), "story 0 of a 0 year old\n" * 4]
    )
    made = prepare(two(stories, code), VOCAB, cache=tmp_path / "cache")
    for i, path in enumerate((stories, code)):
        train, validation = texts_of(made, "train", i), texts_of(made, "validation", i)
        expected = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        assert sorted(train + validation) == sorted(expected if i == 0 else expected[:-1])  # the last repeats a story
        assert len(validation) == round(0.05 * len(train + validation))
    assert made.name == "stories.jsonl + code.jsonl"
    assert made.weights == (0.75, 0.25)
    facts = json.loads(json.dumps(made.as_dict()))
    assert [source["name"] for source in facts["sources"]] == ["stories.jsonl", "code.jsonl"]
    assert [source["documents"] for source in facts["sources"]] == [60, 40]
    assert (facts["documents"], facts["duplicates_removed"]) == (100, 1)
    for part in ("train", "validation"):
        sizes = [len(tokens) for tokens in getattr(made, f"{part}_sources")]
        assert [source[f"{part}_tokens"] for source in facts["sources"]] == sizes
        assert facts[f"{part}_tokens"] == sum(sizes)
    assert facts["cleaning"] == {}
    assert facts["preparation"]["workers"] == 1
    assert facts["preparation"]["seconds"] > 0
    with pytest.raises(ValueError, match="too many values"):
        made.train  # noqa: B018
    rows = batch(
        made.train_sources, weights=made.weights, step=0, rank=0, world_size=1, seed=0, batch_size=40, seq_len=8
    )
    assert rows.shape == (40, 9)


def test_entropy_is_that_of_the_mixture(stories, code, tmp_path):
    made = prepare(two(stories, code), VOCAB, cache=tmp_path / "cache")
    p = np.zeros(made.vocab_size)
    for weight, tokens in zip((0.75, 0.25), made.train_sources, strict=True):
        for token, count in Counter(tokens.tolist()).items():
            p[token] += weight * count / len(tokens)
    assert made.unigram_entropy == pytest.approx(-sum(x * math.log(x) for x in p if x), rel=1e-12)


def test_each_source_needs_a_sequence(stories, code, tmp_path):
    made = prepare(two(stories, code), VOCAB, cache=tmp_path / "cache")
    shortest = made.sources[1].validation_tokens
    made.require(10**9, seq_len=shortest - 1)  # several sources begin anew as often as is needed
    with pytest.raises(DataError, match=rf"code\.jsonl: too short: its validation part has {shortest} tokens"):
        made.require(1, seq_len=shortest)


@pytest.mark.parametrize("labelled", [False, True])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, monkeypatch, labelled):
    monkeypatch.setattr(workers, "_CHUNK_BYTES", 2000)
    rng = random.Random(1)
    records = [
        {"text": " ".join(rng.choices(["one", "two", "three", "4", "\n"], k=rng.randint(1, 99))), "class": i % 3}
        for i in range(300)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps(record | {"text": "one b two"}) + "\n" for record in records[:2])
    )
    sources = (Source(path=str(tmp_path / "a.jsonl")), *([Source(path=str(tmp_path / "b.jsonl"))] * (not labelled)))
    text = TextConfig(sources=sources, label_column="class" if labelled else None)
    made = [prepare(text, VOCAB, cache=tmp_path / f"cache-{workers}", workers=workers) for workers in (1, 2, 3)]
    assert [each.preparation["workers"] for each in made] == [1, 2, 3]
    names = {path.name for path in made[0].folder.iterdir()}
    assert len(names) == 3 + (6 if labelled else 4)
    for other in made[1:]:
        assert {path.name for path in other.folder.iterdir()} == names
        for name in names - {"preparation.json"}:
            assert (other.folder / name).read_bytes() == (made[0].folder / name).read_bytes()


def test_everything_that_changes_the_tokens_is_in_the_key(stories, code, tmp_path):
    (tmp_path / "own.json").write_bytes(prepare(
        TextConfig(sources=(Source(path=str(code)),)), VOCAB, cache=tmp_path / "cache"
    ).tokenizer_path.read_bytes())  # fmt: skip
    one = TextConfig(sources=(Source(path=str(stories)),))
    own = {"tokenizer": str(tmp_path / "own.json")}
    made = [
        prepare(text, vocab, masked=masked, cache=tmp_path / "cache").folder
        for text, vocab, masked in (
            (one, VOCAB, False), (one, VOCAB + 1, False), (one, VOCAB, True), (two(stories, code), VOCAB, False),
            (two(code, stories), VOCAB, False), (two(stories, code, column="body"), VOCAB, False),
            (TextConfig(sources=one.sources, cleaning=("control",)), VOCAB, False),
            (TextConfig(sources=one.sources, **own), VOCAB, False),
        )
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    doubled = TextConfig(sources=tuple(Source(path=s.path, weight=2 * s.weight) for s in two(stories, code).sources))
    assert prepare(doubled, VOCAB, cache=tmp_path / "cache").folder == made[3]  # shares are what counts


def test_cleaning_is_done_and_told(tmp_path):
    texts = [f"text {i}\x07 from ann@example.org" for i in range(20)]
    text = TextConfig(sources=(Source(path=str(jsonl(tmp_path / "a.jsonl", texts))),), cleaning=("control", "contacts"))
    made = prepare(text, VOCAB, cache=tmp_path / "cache")
    found = texts_of(made, "train", 0) + texts_of(made, "validation", 0)
    assert len(found) == 20
    assert not any("\x07" in text or "ann@" in text for text in found)
    assert made.cleaning["control"]["characters_removed"] == 20
    assert made.cleaning["contacts"]["emails_masked"] == 20
    assert prepare(text, VOCAB, cache=tmp_path / "cache").cleaning == made.cleaning


def test_near_duplicates_are_found_across_sources(tmp_path):
    base = " ".join(str(i * i) for i in range(200))
    first = jsonl(tmp_path / "a.jsonl", [base, *(f"other {i}" for i in range(9))])
    second = jsonl(tmp_path / "b.jsonl", [base + " more", *(f"again {i}" for i in range(9))])
    made = prepare(two(first, second, cleaning=("near-duplicates",)), VOCAB, cache=tmp_path / "cache")
    assert [source.documents for source in made.sources] == [10, 9]


def test_a_masked_corpus_has_a_mask_token(stories, tmp_path):
    text = TextConfig(sources=(Source(path=str(stories)),))
    made = prepare(text, VOCAB, masked=True, cache=tmp_path / "cache")
    assert (made.end_id, made.mask_id) == (0, 1)
    assert not (made.train == 1).any()
    assert prepare(text, VOCAB, cache=tmp_path / "cache").mask_id is None


def wordlevel(path, texts, end, vocab_size=200):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "<mask>", end])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return tokenizer


def test_a_foreign_tokenizer_is_used_and_kept(stories, tmp_path):
    texts = [json.loads(line)["text"] for line in stories.read_text().splitlines()]
    reference = wordlevel(tmp_path / "words.json", texts, "<eos>")
    text = TextConfig(sources=(Source(path=str(stories)),), tokenizer=str(tmp_path / "words.json"))
    made = prepare(text, 50_000, masked=True, cache=tmp_path / "cache")
    assert (made.vocab_size, made.end_id, made.mask_id) == (reference.get_vocab_size(), 2, 1)
    assert made.tokenizer_path.read_bytes() == (tmp_path / "words.json").read_bytes()
    expected = sorted([*reference.encode(t, add_special_tokens=False).ids, 2] for t in texts)
    tokens = [*made.train.tolist(), *made.validation.tolist()]
    ends = [i for i, token in enumerate(tokens) if token == 2]
    found = sorted(tokens[a + 1 : b + 1] for a, b in zip([-1, *ends], ends, strict=False))
    assert found == expected
    with pytest.raises(DataError, match=rf"words\.json: {made.vocab_size} tokens, and the model's vocabulary holds 99"):
        prepare(text, 99, cache=tmp_path / "cache")
    wordlevel(tmp_path / "words.json", texts, "<end>")
    with pytest.raises(DataError, match=r"words\.json: no token ends a text"):
        prepare(text, 50_000, cache=tmp_path / "cache")


def test_a_tokenizer_of_ours_encodes_other_text_as_before(stories, code, tmp_path):
    first = prepare(TextConfig(sources=(Source(path=str(stories)),)), VOCAB, cache=tmp_path / "cache")
    text = TextConfig(sources=(Source(path=str(code)),), tokenizer=str(first.tokenizer_path))
    made = prepare(text, VOCAB, cache=tmp_path / "cache")
    assert made.tokenizer_path.read_bytes() == first.tokenizer_path.read_bytes()
    assert len(texts_of(made, "train", 0)) == 38
    with pytest.raises(DataError, match=r"tokenizer\.json: no mask token; expected one of <\|mask\|>"):
        prepare(text, VOCAB, masked=True, cache=tmp_path / "cache")
    missing = TextConfig(sources=text.sources, tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        prepare(missing, VOCAB, cache=tmp_path / "cache")


def test_a_full_disk_is_one_clear_line(stories, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("efftrain.workload.text.encoding.making.collect", full)
    with pytest.raises(DataError, match="cannot be kept: No space left on device; XDG_CACHE_HOME names"):
        prepare(TextConfig(sources=(Source(path=str(stories)),)), VOCAB, cache=tmp_path / "cache")
