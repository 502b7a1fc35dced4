import json
import math
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.record.journal import SCHEMA, JournalError, JournalWriter, append_line, read_journal


def write(path: Path, lines: int = 3) -> None:
    journal = JournalWriter(path)
    journal.write("header", schema=SCHEMA, run_id="r")
    for index in range(lines):
        journal.write("tick", sensor="a", value=float(index))
    journal.write("end", status="complete")
    journal.close()


def test_round_trip(tmp_path: Path):
    write(tmp_path / "j")
    journal = read_journal(tmp_path / "j")
    assert journal.header["run_id"] == "r"
    assert [line["value"] for line in journal.of("tick")] == [0.0, 1.0, 2.0]
    assert journal.status == "complete"
    assert journal.defects == []


def test_a_journal_is_never_overwritten(tmp_path: Path):
    write(tmp_path / "j")
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path / "j")


def test_no_end_line_means_killed(tmp_path: Path):
    journal = JournalWriter(tmp_path / "j")
    journal.write("header", schema=SCHEMA)
    journal.close()
    assert read_journal(tmp_path / "j").status == "killed"


def test_lines_reach_the_disk_within_a_second(tmp_path: Path):
    now = [0]
    journal = JournalWriter(tmp_path / "j", clock=lambda: now[0])
    for _ in range(4):
        now[0] += 300_000_000
        journal.write("tick")
    on_disk = (tmp_path / "j").read_text().splitlines()
    journal.close()
    assert len(on_disk) >= 2, "1.2 s after the first line, lines older than a second are on disk"


@settings(max_examples=60, deadline=None)
@given(share=st.floats(min_value=0, max_value=1))
def test_cut_off_anywhere_after_the_header(tmp_path_factory: pytest.TempPathFactory, share: float):
    path = tmp_path_factory.mktemp("cut") / "j"
    write(path)
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    cut = header + round((len(data) - header) * share)
    path.write_bytes(data[:cut])
    journal = read_journal(path)
    whole = data[:cut].count(b"\n") - 1
    assert len(journal.lines) == whole
    assert bool(journal.defects) == (not data[:cut].endswith(b"\n"))


def test_a_damaged_line_is_dropped_and_named(tmp_path: Path):
    write(tmp_path / "j")
    text = (tmp_path / "j").read_text().replace('"value":1.0}', '"value":1.0')
    (tmp_path / "j").write_text(text)
    journal = read_journal(tmp_path / "j")
    assert [line["value"] for line in journal.of("tick")] == [0.0, 2.0]
    assert journal.defects == ["line 3 is damaged and is dropped"]


def test_append_after_a_torn_line(tmp_path: Path):
    write(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-5])
    append_line(tmp_path / "j", "end", status="failed")
    journal = read_journal(tmp_path / "j")
    assert journal.status == "failed"
    assert len(journal.defects) == 1


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"kind":"tick","t":1}\n'])
def test_not_a_journal(tmp_path: Path, content: bytes):
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match="no header line"):
        read_journal(tmp_path / "j")


def test_missing_file_and_other_schema(tmp_path: Path):
    with pytest.raises(JournalError, match="cannot be read"):
        read_journal(tmp_path / "absent")
    (tmp_path / "j").write_text(json.dumps({"kind": "header", "t": 1, "schema": "other/9"}) + "\n")
    with pytest.raises(JournalError, match="other/9"):
        read_journal(tmp_path / "j")


def test_nan_becomes_null(tmp_path: Path):
    journal = JournalWriter(tmp_path / "j")
    journal.write("header", schema=SCHEMA)
    journal.write("step", loss=math.nan, phases=[["data", math.inf]])
    journal.close()
    (step,) = read_journal(tmp_path / "j").of("step")
    assert step["loss"] is None
    assert step["phases"] == [["data", None]]


def test_a_full_disk_loses_lines_and_says_so(tmp_path: Path):
    journal = JournalWriter(tmp_path / "j")
    journal.write("header", schema=SCHEMA)
    real = journal._file

    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    journal._file = Full()  # pyright: ignore[reportAttributeAccessIssue]
    journal.write("tick", value=1.0)
    journal.write("tick", value=2.0)
    assert journal.lost_lines == 2
    journal._file = real
    journal.write("tick", value=3.0)
    journal.close()
    read = read_journal(tmp_path / "j")
    assert [line["text"] for line in read.of("note")] == ["2 lines could not be written"]
    assert [line["value"] for line in read.of("tick")] == [3.0]


def test_writing_after_close_does_not_raise(tmp_path: Path):
    journal = JournalWriter(tmp_path / "j")
    journal.close()
    journal.close()
    journal.write("tick")
    journal.flush()


def test_threads_do_not_tear_each_others_lines(tmp_path: Path):
    journal = JournalWriter(tmp_path / "j")
    journal.write("header", schema=SCHEMA)
    threads = [
        threading.Thread(target=lambda n=n: [journal.write("tick", n=n, pad="x" * 500) for _ in range(300)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    read = read_journal(tmp_path / "j")
    assert read.defects == []
    assert len(read.of("tick")) == 1200
