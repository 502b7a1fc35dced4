import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import pytest

from efftrain.workload.text.config import DataError
from efftrain.workload.text.encoding import workers
from efftrain.workload.text.encoding.tokenizer import load_tokenizer, train_tokenizer
from efftrain.workload.text.encoding.workers import chunks, default_workers, encode_spans

RANDOM = random.Random(0)
WORDS = ["ab", "cde", "東京", "12", "f\n", ";"]
TEXTS = [" ".join(RANDOM.choices(WORDS, k=RANDOM.randint(1, 400))) for _ in range(300)]


@pytest.fixture
def spans():
    sizes = np.array([len(text.encode()) for text in TEXTS])
    return np.stack([np.cumsum(sizes) - sizes, np.cumsum(sizes)], axis=1)


@pytest.fixture
def file():
    with tempfile.TemporaryFile() as file:
        file.write("".join(TEXTS).encode())
        file.flush()
        yield file


@pytest.fixture
def tokenizer(tmp_path):
    train_tokenizer(TEXTS, 300).save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(workers, "_CHUNK_BYTES", 10_000)


def children():
    return psutil.Process().children()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_workers_gives_the_librarys_encoding(file, spans, tokenizer, count):
    (pieces,) = chunks(spans, [len(TEXTS)])
    assert len(pieces) > 10
    found = list(encode_spans(file, spans, tokenizer, pieces, count))
    reference = load_tokenizer(tokenizer)
    expected = [[*reference.encode(text).ids, 0] for text in TEXTS]
    assert np.concatenate([ids for ids, _ in found]).tolist() == [token for ids in expected for token in ids]
    assert np.concatenate([counts for _, counts in found]).tolist() == [len(ids) for ids in expected]
    assert children() == []


@pytest.mark.usefixtures("small_chunks")
def test_chunks_cover_every_text_once_and_stay_inside_their_group(spans):
    groups = [5, 0, 200, 95]
    found = chunks(spans, groups)
    first = 0
    for pieces, count in zip(found, groups, strict=True):
        assert [row for a, b in pieces for row in range(a, b)] == list(range(first, first + count))
        assert all(spans[b - 2, 1] - spans[a, 0] < 10_000 for a, b in pieces if b - a > 1)
        first += count


def test_small_texts_stay_in_this_process():
    assert default_workers(1_000_000) == 1
    assert 1 <= default_workers(10**10) <= 16


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_worker_is_one_clear_error(file, spans, tokenizer):
    (pieces,) = chunks(spans, [len(TEXTS)])
    encoded = encode_spans(file, spans, tokenizer, pieces, 2)
    next(encoded)
    os.kill(children()[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that turns text into tokens failed: ended by signal 9 \(Killed\)"):
        list(encoded)
    assert children() == []


@pytest.mark.usefixtures("small_chunks")
def test_a_worker_that_fails_tells_why(file, spans, tokenizer):
    (pieces,) = chunks(spans, [len(TEXTS)])
    tokenizer.write_text("{}")
    with pytest.raises(DataError, match=r"^/.*tokenizer\.json: not a tokenizer\.json"):
        list(encode_spans(file, spans, tokenizer, pieces, 2))
    assert children() == []


@pytest.mark.usefixtures("small_chunks")
def test_who_stops_listening_leaves_no_process(file, spans, tokenizer):
    (pieces,) = chunks(spans, [len(TEXTS)])
    encoded = encode_spans(file, spans, tokenizer, pieces, 2)
    next(encoded)
    assert len(children()) == 2
    encoded.close()
    assert children() == []


SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that works in the background has it ignored
from efftrain.workload.text.encoding import workers
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import prepare
from pathlib import Path
workers._CHUNK_BYTES = 1000
print("begun", flush=True)
made = prepare(TextConfig(sources=(Source(path=sys.argv[1]),)), 300, cache=Path(sys.argv[2]), workers=2)
print(made.train_tokens, made.preparation["workers"])
"""


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    (tmp_path / "text.txt").write_text("\f".join(TEXTS))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = [str(script)], ["-c", SCRIPT]
    for i, how in enumerate(run):
        command = [sys.executable, *how, str(tmp_path / "text.txt"), str(tmp_path / f"cache-{i}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        begun, made = done.stdout.splitlines()
        assert begun == "begun"
        assert made.endswith(" 2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_wanted_them(tmp_path, number):
    (tmp_path / "text.txt").write_text("\f".join(f"{i} {text}" for i in range(60) for text in TEXTS))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "text.txt"), str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watched = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(workers := watched.children()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert process.returncode == -number
    assert errors.count(b"Traceback") == (number == signal.SIGINT)  # this process's own KeyboardInterrupt
    assert not list((tmp_path / "cache").rglob("corpus.json"))
