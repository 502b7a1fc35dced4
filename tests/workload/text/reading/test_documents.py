import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from efftrain.workload.text.reading.documents import (
    DataError,
    Document,
    check_source,
    content_hash,
    documents,
    source_files,
    source_name,
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(source):
    return [document.text for document in documents(source_files(source))]


def test_a_text_file_is_one_document(tmp_path):
    assert read(write(tmp_path / "a.txt", "one\n\ntwo\r\n")) == ["one\n\ntwo\r\n"]


@pytest.mark.parametrize("separator", ["\f", "<|endoftext|>"])
def test_separators_cut_a_text_file(tmp_path, separator):
    source = write(tmp_path / "a.txt", separator.join(["one", "two", "  \n", "", "three"]))
    assert read(source) == ["one", "two", "three"]


def test_lines_of_jsonl(tmp_path):
    rows = [{"text": "one\ftwo", "id": 1}, {"text": ""}, {"text": "日本"}]
    source = write(tmp_path / "a.jsonl", "\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    assert read(source) == ["one\ftwo", "日本"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    write(tmp_path / "b.txt", "2")
    write(tmp_path / "a" / "z.jsonl", '{"text": "1"}\n')
    write(tmp_path / "c" / "d" / "e.txt", "3")
    write(tmp_path / "c" / "ignored.md", "4")
    assert read(tmp_path) == ["1", "2", "3"]


def test_the_default_is_the_standard_library_without_its_tests():
    files = source_files(None)
    library = Path(os.__file__).parent
    assert library / "os.py" in files
    assert library / "json" / "decoder.py" in files
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(f.relative_to(library).parts) for f in files)
    assert not any(f.name.startswith("_sysconfigdata") for f in files)
    assert files == sorted(files)
    assert source_name(None).startswith("python-3.")


def test_library_files_that_are_not_utf8_are_left_out(tmp_path):
    files = [write(tmp_path / "a.py", "x = 1"), write(tmp_path / "b.py", b"\xff")]
    assert list(documents(files)) == [Document("x = 1")]


def test_the_hash_is_of_the_content_alone(tmp_path):
    first = [write(tmp_path / "a.txt", "one"), write(tmp_path / "b.txt", "two")]
    moved = [write(tmp_path / "x" / "1.txt", "one"), write(tmp_path / "x" / "2.txt", "two")]
    other = [write(tmp_path / "y" / "1.txt", "onet"), write(tmp_path / "y" / "2.txt", "wo")]
    assert content_hash(first) == content_hash(moved)
    assert content_hash(first) != content_hash(other)
    assert content_hash(first) != content_hash(first[::-1])


BAD = {
    "missing.txt": (None, "no such file or folder; expected a .txt, a .jsonl"),
    "paper.pdf": ("%PDF", "expected a .txt, a .jsonl"),
    "empty.txt": ("", "is empty"),
    "binary.txt": (b"ab\x00cd", "binary .a NUL byte at 2.; expected text in UTF-8"),
    "latin.txt": ("é".encode("latin-1") + b" a", "not UTF-8"),
    "cut.txt": ("é".encode()[:1], "not UTF-8"),
    "binary.jsonl": (b'{"text": "a\x00"}\n', "binary"),
    "other.jsonl": ('{"text": "a"}\n\n{"content": "b"}\n', "line 3: no field `text`; this line has: content"),
    "list.jsonl": ('["text"]\n', "line 1: expected an object"),
    "number.jsonl": ('{"text": 3}\n', "line 1: expected a string in `text`, not int"),
    "broken.jsonl": ('\n{"text": \n', "line 2: not JSON: Expecting value"),
    "cut.jsonl": ('{"text": "a"}\n{"te', "line 2: not JSON"),
    "surrogate.jsonl": ('{"text": "\\ud800"}', "line 1: `text` holds half a surrogate pair"),
}


def checked_and_read(source):
    check_source(source)
    return read(source)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_the_file(tmp_path, name):
    content, message = BAD[name]
    source = tmp_path / name
    if content is not None:
        write(source, content)
    with pytest.raises(DataError, match=message) as raised:
        checked_and_read(source)
    assert str(source) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [n for n in BAD if n not in {"cut.txt", "other.jsonl", "cut.jsonl"}])
def test_the_early_check_finds_what_stands_at_the_beginning(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        check_source(tmp_path / name)


def test_the_early_check_accepts_what_can_be_read(tmp_path):
    write(tmp_path / "a.txt", "é" * 70_000)  # the first 64 KiB end within a character or not: both must pass
    write(tmp_path / "b.txt", "x" + "é" * 70_000)
    write(tmp_path / "c.jsonl", json.dumps({"text": "y" * 100_000}) + "\n")
    write(tmp_path / "empty.txt", "")
    check_source(tmp_path)
    assert len(read(tmp_path)) == 3


def test_a_folder_without_text(tmp_path):
    write(tmp_path / "a.md", "x")
    with pytest.raises(DataError, match=r"holds no .txt, no .jsonl and no .parquet"):
        check_source(tmp_path)


@pytest.mark.parametrize("use", [check_source, read, lambda source: content_hash([source])])
def test_an_unreadable_file(tmp_path, monkeypatch, use):
    source = write(tmp_path / "a.txt", "text")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.txt: cannot be read: Permission denied"):
        use(source)


def test_importing_it_loads_neither_torch_nor_numpy():
    code = "import sys, efftrain.workload.text.reading.documents; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
