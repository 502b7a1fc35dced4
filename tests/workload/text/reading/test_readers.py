"""Files written by `datasets`, pyarrow and json are read back as they were, in a stream, and damage is one line."""

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efftrain.workload.text.reading import readers
from efftrain.workload.text.reading.documents import (
    DataError,
    Document,
    check_source,
    content_hash,
    documents,
    source_files,
)

TEXTS = ["one\n", "日本 \U0001f600", "", "two\ftwo", "x" * 3000] * 50
LABELS = [0, 1, 2, -1, 7] * 50


def read(source, **columns):
    check_source(source, **columns)
    return list(documents(source_files(source), **columns))


def expected(texts=TEXTS, labels=None):
    labels = labels or [None] * len(texts)
    pairs = zip(texts, labels, strict=True)
    return [Document(text, None if label is None else str(label)) for text, label in pairs if text.strip()]


def one_line(source, **columns):
    with pytest.raises(DataError) as raised:
        read(source, **columns)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def table():
    return pa.table({"body": TEXTS, "label": LABELS, "name": [f"n{label}" for label in LABELS], "score": [0.5] * 250})


@pytest.mark.parametrize("settings", [{}, {"row_group_size": 7}, {"compression": "zstd", "use_dictionary": True}])
def test_parquet(tmp_path, table, settings):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, **settings)
    assert read(path, column="body") == expected()
    assert read(path, column="body", label_column="label") == expected(labels=LABELS)
    assert read(path, column="body", label_column="name")[1].label == "n1"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_kinds_of_strings(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(TEXTS).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path) == expected()


def test_jsonl_with_labels(tmp_path):
    rows = [{"body": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path, column="body", label_column="label") == expected(labels=LABELS)


def test_a_folder_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.jsonl").write_text('{"text": "2"}')
    pq.write_table(pa.table({"text": ["3"]}), tmp_path / "c.parquet")
    assert [document.text for document in read(tmp_path)] == ["1", "2", "3"]


@pytest.fixture
def saved(tmp_path):
    """A dataset of 250 rows, and a folder of splits, as `datasets` writes them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(num_classes=8),
        "n": datasets.Value("int64"),
    }
    labels = [max(label, 0) for label in LABELS]
    whole = datasets.Dataset.from_dict(
        {"text": TEXTS, "label": labels, "n": range(250)}, features=datasets.Features(features)
    )
    whole.save_to_disk(tmp_path / "whole", num_shards=3)
    whole.select([3, 0, 1]).save_to_disk(tmp_path / "selected")
    splits = {"train": whole.select(range(5)), "test": whole.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"test": splits["test"]}).save_to_disk(tmp_path / "tests")
    whole.select([]).save_to_disk(tmp_path / "empty")
    return tmp_path


def test_dataset_folders(saved):
    labels = [max(label, 0) for label in LABELS]
    assert read(saved / "whole", label_column="label") == expected(labels=labels)
    assert len(source_files(saved / "whole")) == 3
    assert [document.text for document in read(saved / "selected")] == [TEXTS[3], TEXTS[0], TEXTS[1]]
    assert read(saved / "splits") == expected(TEXTS[:5])
    assert read(saved / "splits" / "test") == expected([TEXTS[1]])
    hashes = [content_hash(source_files(saved / name)) for name in ("whole", "selected", "splits")]
    assert len(set(hashes)) == 3


def test_bad_dataset_folders(saved):
    assert "no split `train`; it has: test; name one of its folders" in one_line(saved / "tests")
    assert "is empty" in one_line(saved / "empty")
    assert "no column `body`; its columns are: text, label, n" in one_line(saved / "whole", column="body")
    shard = source_files(saved / "whole")[1]
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], b"\xff" * 40, b""):
        shard.write_bytes(damaged)
        assert str(shard) in one_line(saved / "whole")
    shard.unlink()
    assert f"{shard}: no such file, but state.json names it" in one_line(saved / "whole")
    for description in ("{", "[]", "{}", '{"_data_files": [{}]}', '{"_data_files": ["a"]}'):
        (saved / "whole" / "state.json").write_text(description)
        assert "state.json: " in one_line(saved / "whole")


BAD_ROWS = {
    "null text": ([None, "a"], ["x", "y"], "row 1: expected a string in `text`, not null"),
    "later null": (["a"] * 100 + [None], ["x"] * 101, "row 101: expected a string in `text`, not null"),
    "null label": (["a", "b"], [1, None], "row 2: expected a label in `label`, a string or an integer, not null"),
    "floats": (["a"], [0.5], "expected strings or integers in column `label`, not double"),
    "truth": (["a"], [True], "expected strings or integers in column `label`, not bool"),
    "numbers": ([1], ["x"], "expected strings in column `text`, not int64"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(tmp_path, name):
    texts, labels, message = BAD_ROWS[name]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts, "label": labels}), path)
    assert message in one_line(path, label_column="label")


def test_bytes_that_are_no_text(tmp_path):
    bad = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    assert "rows 1 to 2: not UTF-8 in `text`" in one_line(tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 100, -9])
def test_damaged_parquet(tmp_path, table, cut):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    path.write_bytes(path.read_bytes()[:cut])
    assert str(path) in one_line(path, column="body")


def test_a_parquet_without_rows_is_empty(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "is empty" in one_line(tmp_path)


BAD_LINES = {
    '{"text": "a", "label": null}': "line 1: expected a label in `label`, a string or an integer, not null",
    '{"text": "a", "label": true}': "not bool",
    '{"text": "a", "label": [1]}': "not list",
    '{"text": "a", "label": "\\ud800"}': "half a surrogate pair",
    '{"text": null, "label": 1}': "line 1: expected a string in `text`, not null",
    '{"text": "a", "class": 1}': "line 1: no field `label`; this line has: text, class",
    "[" * 100_000: "line 1: not JSON that can be read",
    '{"text": "a", "label": ' + "9" * 5000 + "}": "line 1: not JSON that can be read",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    assert BAD_LINES[line] in one_line(path, label_column="label")


def test_plain_text_has_no_labels(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    assert "a .txt has no column `label`" in one_line(path, label_column="label")


@pytest.mark.parametrize("chunk", [3, 4, 5, 64])
def test_chunks_do_not_show(tmp_path, monkeypatch, chunk):
    path = tmp_path / "a.txt"
    pieces = ["one 日本", "<|endof", "text|>", "", "é\r\nb", "\U0001f600"]
    path.write_bytes(("\ufeff" + "<|endoftext|>".join([*pieces, "\f".join(pieces)])).encode())
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk)
    assert [d.text for d in read(path)] == [piece for piece in pieces * 2 if piece]
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 10)
    path.write_text("ab cd\nefg hi jkl\n\n0123456789012<|endoftext|>0123456789<|endoftext|>end")
    cut = ["ab cd\n", "efg hi ", "jkl\n\n", "0123456789", "012", "0123456789", "end"]
    assert [d.text for d in read(path)] == cut


@pytest.mark.parametrize(("content", "place"), [(b"ab\xffcd", 2), ("aé".encode() + b"\x00", 3), (b"abcd\xc3", 4)])
def test_the_place_of_a_wrong_byte(tmp_path, monkeypatch, content, place):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 3)
    with pytest.raises(DataError, match=rf"(byte|at) {place}\)"):
        list(documents([path]))


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in documents([path])) > 0.9 * path.stat().st_size
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_text_is_never_held_whole(tmp_path):
    path = tmp_path / "a.txt"
    line = "The quick brown fox jumps over the lazy dog, and on. \n" * 20_000
    with path.open("w") as file:
        for _ in range(56):
            file.write(line)
    assert path.stat().st_size > 60e6
    assert peak_bytes(path) < 12e6


def test_a_large_table_is_never_held_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["x" * 6000 + str(row) for row in range(10_000)], "other": ["y"] * 10_000})
    pq.write_table(table, path, compression="none", use_dictionary=False)  # one group of 60 MB
    del table
    assert path.stat().st_size > 60e6
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        assert peak_bytes(path) < 5e6
        assert pool.max_memory() < 15e6
    finally:
        pa.set_memory_pool(before)
