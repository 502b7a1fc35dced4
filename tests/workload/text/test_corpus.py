import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text import corpus, windows
from efftrain.workload.text.corpus import DataError, prepare
from efftrain.workload.text.tokenizer import END_OF_TEXT, load_tokenizer
from efftrain.workload.text.windows import batch, validation_batches

VOCAB = 300


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def source(tmp_path):
    texts = [f"document {i} tells about {i * i} apples\n" * 3 for i in range(40)]
    return jsonl(tmp_path / "apples.jsonl", [*texts, texts[3], texts[3], texts[7]])


@pytest.fixture
def made(source, tmp_path):
    return prepare(source, VOCAB, cache=tmp_path / "cache")


def texts_of(made, part):
    decoded = load_tokenizer(made.tokenizer_path).decode(getattr(made, part).tolist(), skip_special_tokens=False)
    *texts, rest = decoded.split(END_OF_TEXT)
    assert rest == ""
    return texts


def test_every_document_stands_in_one_part_once(made, source):
    train, validation = texts_of(made, "train"), texts_of(made, "validation")
    assert len(validation) == 2  # 5 % of 40
    assert sorted(train + validation) == sorted({json.loads(line)["text"] for line in source.read_text().splitlines()})


def test_facts_agree_with_the_tokens(made):
    assert (made.documents, made.duplicates_removed) == (40, 3)
    assert made.characters == sum(map(len, texts_of(made, "train") + texts_of(made, "validation")))
    assert (made.train_tokens, made.validation_tokens) == (len(made.train), len(made.validation))
    assert made.train.dtype == np.uint16
    counts = Counter(made.train.tolist())
    entropy = sum(n / made.train_tokens * math.log(made.train_tokens / n) for n in counts.values())
    assert made.unigram_entropy == pytest.approx(entropy, rel=1e-12)
    assert made.vocab_size == load_tokenizer(made.tokenizer_path).get_vocab_size() <= VOCAB
    assert made.name == "apples.jsonl"


def test_the_header_is_json_and_names_no_folder(made, tmp_path):
    facts = json.loads(json.dumps(made.as_dict()))
    assert facts["tokens"] == made.train_tokens + made.validation_tokens
    assert str(tmp_path) not in json.dumps(facts)


def test_the_split_does_not_depend_on_the_order(made, source, tmp_path):
    lines = source.read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(lines)))
    other = prepare(turned, VOCAB, cache=tmp_path / "cache")
    assert other.sha256 != made.sha256
    assert set(texts_of(other, "validation")) == set(texts_of(made, "validation"))


def test_a_single_document_is_cut_by_position(tmp_path):
    text = "".join(f"line {i}\n" for i in range(500))
    (tmp_path / "one.txt").write_text(text)
    made = prepare(tmp_path / "one.txt", VOCAB, cache=tmp_path / "cache")
    train, validation = texts_of(made, "train"), texts_of(made, "validation")
    assert "".join(train + validation) == text
    assert len(validation[0]) == round(0.05 * len(text))


def test_two_documents_are_one_each(tmp_path):
    made = prepare(jsonl(tmp_path / "two.jsonl", ["first text", "second text"]), VOCAB, cache=tmp_path / "cache")
    assert (len(texts_of(made, "train")), len(texts_of(made, "validation"))) == (1, 1)


def test_wide_vocabularies_need_wide_tokens():
    assert [corpus._token_type(size) for size in (65_536, 65_537)] == [np.uint16, np.uint32]


def test_the_tokenizer_learns_from_a_sample_of_the_whole(tmp_path):
    files = [jsonl(tmp_path / "a.jsonl", [chr(97 + i) * 1000 for i in range(20)])]
    survey = corpus._survey(files)
    sample = list(corpus._sample(files, survey, 5000))
    assert 5000 * 0.8 <= sum(map(len, sample)) <= 5000
    assert {text[0] for text in sample[-2:]} & set("pqrst")
    assert list(corpus._sample(files, survey, 10**6)) == [
        t for part, t in corpus._split(files, survey) if part == "train"
    ]


def test_a_second_call_reads_the_cache(made, source, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(corpus, "_write", fail)
    assert prepare(source, VOCAB, cache=tmp_path / "cache") == made
    with pytest.raises(AssertionError, match="encoded again"):
        prepare(source, VOCAB + 1, cache=tmp_path / "cache")
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(AssertionError, match="encoded again"):
        prepare(source, VOCAB, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "corpus.json", "tokenizer.json"])
def test_a_damaged_cache_is_mended(made, source, tmp_path, name):
    before = made.train.tolist()
    damaged = made.folder / name
    if name == "tokenizer.json":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-1])
    mended = prepare(source, VOCAB, cache=tmp_path / "cache")
    assert mended == made
    assert mended.train.tolist() == before


def test_two_at_a_time_agree(source, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(source, VOCAB, cache=tmp_path / "cache"), range(4)))
    assert all(result == results[0] for result in results)
    names = sorted(path.name for path in results[0].folder.iterdir())
    assert names == ["corpus.json", "tokenizer.json", "train.bin", "validation.bin"]


def test_two_processes_make_the_same_bytes(made, source, tmp_path):
    code = f"""
from pathlib import Path
from efftrain.workload.text.corpus import prepare
prepare(Path({str(source)!r}), {VOCAB}, cache=Path({str(tmp_path / "other")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    other = tmp_path / "other" / made.folder.name
    for path in made.folder.iterdir():
        assert (other / path.name).read_bytes() == path.read_bytes()


def test_a_cache_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    made = prepare(source, VOCAB, cache=tmp_path / "file" / "cache")
    assert made.folder.is_relative_to(tmp_path / "tmp" / f"efftrain-{os.getuid()}")
    assert made.folder.parent.stat().st_mode & 0o777 == 0o700
    assert prepare(source, VOCAB, cache=tmp_path / "file" / "cache") == made


def test_a_temporary_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"efftrain-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert corpus._temporary_root() != tmp_path / f"efftrain-{os.getuid()}"


def test_the_cache_is_where_xdg_says(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(source, VOCAB).folder.parent == tmp_path / "xdg" / "efftrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(source, VOCAB).folder.parent == tmp_path / "home" / ".cache" / "efftrain"


@pytest.mark.parametrize("content", ["", " \n\t\n", "x"])
def test_nothing_to_train_on(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"a\.txt: is empty; training needs text"):
        prepare(tmp_path / "a.txt", VOCAB, cache=tmp_path / "cache")


def test_bad_lines_leave_nothing_in_the_cache(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["good text"] * 3)
    source.write_text(source.read_text() + '{"body": "bad"}\n')
    with pytest.raises(DataError, match="line 4"):
        prepare(source, VOCAB, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_too_short_for_a_batch(made):
    made.require(made.train_tokens - 1, seq_len=made.validation_tokens - 1)
    with pytest.raises(DataError, match=rf"apples.jsonl: too short: its training part has {made.train_tokens} tokens"):
        made.require(made.train_tokens)
    with pytest.raises(DataError, match="its validation part"):
        made.require(8, seq_len=made.validation_tokens)


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
    order = windows._permuted(np.arange(size, dtype=np.uint64), size, "0/0").astype(np.int64)
    assert sorted(order.tolist()) == list(range(size))
    # For a random permutation these correlations are about N(0, 1 / size); 4 standard deviations are allowed.
    for lag in (1, 2, 101):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 4 / math.sqrt(size)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / math.sqrt(size)
    # An affine order repeats one difference; of a random one, 9 of 10 differences modulo the size stand alone or so.
    assert len(set(np.diff(order) % size)) > 0.55 * size
    assert (order == np.arange(size)).sum() < 10


def test_validation_is_spread_evenly_and_repeats():
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


def test_importing_it_does_not_load_torch():
    code = "import sys, efftrain.workload.text.corpus; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
