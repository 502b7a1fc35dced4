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

from efftrain.workload.text import corpus
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import DataError, prepare
from efftrain.workload.text.encoding.cache import temporary_root, token_type
from efftrain.workload.text.encoding.tokenizer import END_OF_TEXT, load_tokenizer

VOCAB = 300


def text(*paths, **settings):
    return TextConfig(sources=tuple(Source(path=str(path)) for path in paths), **settings)


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def source(tmp_path):
    texts = [f"document {i} tells about {i * i} apples\n" * 3 for i in range(40)]
    return jsonl(tmp_path / "apples.jsonl", [*texts, texts[3], texts[3], texts[7]])


@pytest.fixture
def made(source, tmp_path):
    return prepare(text(source), VOCAB, cache=tmp_path / "cache")


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
    other = prepare(text(turned), VOCAB, cache=tmp_path / "cache")
    assert other.sha256 != made.sha256
    assert set(texts_of(other, "validation")) == set(texts_of(made, "validation"))


def test_a_single_document_is_cut_by_position(tmp_path):
    whole = "".join(f"line {i}\n" for i in range(500))
    (tmp_path / "one.txt").write_text(whole)
    made = prepare(text(tmp_path / "one.txt"), VOCAB, cache=tmp_path / "cache")
    train, validation = texts_of(made, "train"), texts_of(made, "validation")
    assert "".join(train + validation) == whole
    assert len(validation[0]) == round(0.05 * len(whole))


def test_two_documents_are_one_each(tmp_path):
    made = prepare(text(jsonl(tmp_path / "two.jsonl", ["first text", "second text"])), VOCAB, cache=tmp_path / "cache")
    assert (len(texts_of(made, "train")), len(texts_of(made, "validation"))) == (1, 1)


def test_wide_vocabularies_need_wide_tokens():
    assert [token_type(size) for size in (65_536, 65_537)] == [np.uint16, np.uint32]


def test_a_second_call_reads_the_cache(made, source, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(corpus, "make", fail)
    assert prepare(text(source), VOCAB, cache=tmp_path / "cache") == made
    with pytest.raises(AssertionError, match="encoded again"):
        prepare(text(source), VOCAB + 1, cache=tmp_path / "cache")
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(AssertionError, match="encoded again"):
        prepare(text(source), VOCAB, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "corpus.json", "preparation.json", "tokenizer.json"])
def test_a_damaged_cache_is_mended(made, source, tmp_path, name):
    before = made.train.tolist()
    damaged = made.folder / name
    if name == "tokenizer.json":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-1])
    mended = prepare(text(source), VOCAB, cache=tmp_path / "cache")
    assert mended == made
    assert mended.train.tolist() == before


def test_two_at_a_time_agree(source, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(text(source), VOCAB, cache=tmp_path / "cache"), range(4)))
    assert all(result == results[0] for result in results)
    names = sorted(path.name for path in results[0].folder.iterdir())
    assert names == ["corpus.json", "preparation.json", "tokenizer.json", "train.bin", "validation.bin"]


def test_two_processes_make_the_same_bytes(made, source, tmp_path):
    code = f"""
from pathlib import Path
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import prepare
prepare(TextConfig(sources=(Source(path={str(source)!r}),)), {VOCAB}, cache=Path({str(tmp_path / "other")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    other = tmp_path / "other" / made.folder.name
    for path in made.folder.iterdir():
        if path.name != "preparation.json":  # how long it took
            assert (other / path.name).read_bytes() == path.read_bytes()


def test_a_cache_that_cannot_be_written(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    made = prepare(text(source), VOCAB, cache=tmp_path / "file" / "cache")
    assert made.folder.is_relative_to(tmp_path / "tmp" / f"efftrain-{os.getuid()}")
    assert made.folder.parent.stat().st_mode & 0o777 == 0o700
    assert prepare(text(source), VOCAB, cache=tmp_path / "file" / "cache") == made


def test_a_temporary_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"efftrain-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert temporary_root() != tmp_path / f"efftrain-{os.getuid()}"


def test_the_cache_is_where_xdg_says(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(text(source), VOCAB).folder.parent == tmp_path / "xdg" / "efftrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(text(source), VOCAB).folder.parent == tmp_path / "home" / ".cache" / "efftrain"


@pytest.mark.parametrize("content", ["", " \n\t\n", "x"])
def test_nothing_to_train_on(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"a\.txt: is empty; training needs text"):
        prepare(text(tmp_path / "a.txt"), VOCAB, cache=tmp_path / "cache")


def test_bad_lines_leave_nothing_in_the_cache(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ["good text"] * 3)
    source.write_text(source.read_text() + '{"body": "bad"}\n')
    with pytest.raises(DataError, match="line 4"):
        prepare(text(source), VOCAB, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_too_short_for_a_batch(made):
    made.require(made.train_tokens - 1, seq_len=made.validation_tokens - 1)
    with pytest.raises(DataError, match=rf"apples.jsonl: too short: its training part has {made.train_tokens} tokens"):
        made.require(made.train_tokens)
    with pytest.raises(DataError, match="its validation part"):
        made.require(8, seq_len=made.validation_tokens)


def test_importing_it_does_not_load_torch():
    code = "import sys, efftrain.workload.text.corpus; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
