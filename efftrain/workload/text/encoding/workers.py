"""Texts become tokens: a chunk at a time, in order, in this process or in several.

The workers are fresh interpreters that share the file of texts and tell each chunk's tokens through a pipe. So nothing
is forked that has threads, a script without a `__main__` guard is not run again, and a worker whose parent is gone
finds its pipe closed and ends. What they find does not depend on how many they are.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Final

import numpy as np

from efftrain.workload.text.config import DataError
from efftrain.workload.text.encoding.texts import read_span
from efftrain.workload.text.encoding.tokenizer import Encoder, encoder

Encoded = tuple[np.ndarray, np.ndarray]
"""The ids of a chunk's texts, each with its end, [ids] uint32; and how many each text has, [texts] int64."""

_CHUNK_BYTES: Final = 1 << 20
_PIPE_BYTES: Final = 1 << 20
_AHEAD: Final = 2  # chunks that a worker has been given and not told yet
_SMALL_BYTES: Final = 32 << 20  # starting a worker costs 0.3 s of a processor, and each learns the words anew
_MOST_WORKERS: Final = 16  # each takes some 200 MB
_DATA_ERROR: Final = 2  # exit status of a worker whose last line says what is wrong with the text or the tokenizer
_SPAN: Final = np.dtype((np.int64, 2))


def default_workers(size: int) -> int:
    """Processes for `size` bytes of text: one below 32 MB, where starting more takes longer than they save."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _MOST_WORKERS) if size >= _SMALL_BYTES and sys.executable else 1


def chunks(spans: np.ndarray, groups: Sequence[int]) -> list[list[tuple[int, int]]]:
    """First and last + 1 of consecutive texts that have about 1 MiB together, for each group.

    Args:
        spans: [texts, 2] int64, where each begins and ends.
        groups: how many consecutive texts belong together, for each group; no chunk reaches into the next.
    """
    return [
        [(first + a, first + b) for a, b in _chunks(spans[first : first + count])]
        for first, count in zip(accumulate(groups, initial=0), groups, strict=False)
    ]


def encode_spans(
    texts: IO[bytes], spans: np.ndarray, tokenizer: Path, pieces: Sequence[tuple[int, int]], workers: int
) -> Generator[Encoded]:
    """Encode chunk after chunk, in order.

    Args:
        texts: file of UTF-8.
        spans: [texts, 2] int64, where each text begins and ends in it.
        tokenizer: file of the tokenizer.
        pieces: chunks, as `chunks` cuts them.
        workers: 1: in this process.

    Raises:
        DataError: the tokenizer cannot be used, or a worker ended early.
    """
    workers = min(workers, len(pieces))
    if workers > 1:
        yield from _in_workers(texts, spans, tokenizer, pieces, workers)
    else:
        encodes = encoder(tokenizer)
        for first, last in pieces:
            yield _encode(texts.fileno(), spans[first:last], encodes)


def _chunks(spans: np.ndarray) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    firsts = np.flatnonzero(np.diff((ends - (spans[:, 1] - spans[:, 0])) // _CHUNK_BYTES, prepend=-1)).tolist()
    return zip(firsts, [*firsts[1:], len(spans)], strict=bool(firsts))


def _encode(descriptor: int, spans: np.ndarray, encodes: Encoder) -> Encoded:
    return encodes.encode([read_span(descriptor, start, stop).decode() for start, stop in spans.tolist()])


def _in_workers(
    texts: IO[bytes], spans: np.ndarray, tokenizer: Path, pieces: Sequence[tuple[int, int]], workers: int
) -> Iterator[Encoded]:
    with tempfile.TemporaryFile(dir=tokenizer.parent) as table:
        table.write(np.ascontiguousarray(spans).data)
        table.flush()
        pool: list[_Worker] = []
        try:
            pool.extend(_Worker(texts, table, tokenizer) for _ in range(workers))
            given = iter(pieces)
            turns: deque[_Worker] = deque()  # whose answer comes next: chunks go round, so their order is kept
            for turn in [worker for _ in range(_AHEAD) for worker in pool]:
                if (piece := next(given, None)) is not None:
                    turn.ask(piece)
                    turns.append(turn)
            while turns:
                worker = turns.popleft()
                yield worker.answer()
                if (piece := next(given, None)) is not None:
                    worker.ask(piece)
                    turns.append(worker)
        finally:
            for worker in pool:
                worker.end()


class _Worker:
    """A process that encodes the chunks that it is asked for."""

    def __init__(self, texts: IO[bytes], table: IO[bytes], tokenizer: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        shared = (texts.fileno(), table.fileno())
        code = (
            f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!r}; from {__name__} import serve; serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, shared), str(tokenizer)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, pass_fds=shared, pipesize=_PIPE_BYTES,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C is for this process, which ends its workers
        )  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, piece: tuple[int, int]) -> None:
        """Give it a chunk: at most 41 bytes, which always fit into the pipe."""
        try:
            self._requests.write(b"%d %d\n" % piece)
            self._requests.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Encoded:
        """What it found in the next chunk."""
        ids, counts = np.frombuffer(self._read(16), dtype=np.int64).tolist()
        return (
            np.frombuffer(self._read(4 * ids), dtype=np.uint32),
            np.frombuffer(self._read(8 * counts), dtype=np.int64),
        )

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._errors.close()
        with suppress(BrokenPipeError):  # what was asked last was never read
            self._requests.close()

    def _read(self, size: int) -> bytes:
        data = self._answers.read(size)
        if len(data) < size:
            raise self._ended()
        return data

    def _ended(self) -> DataError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit status {code}"
        if code == _DATA_ERROR:
            return DataError(last)
        if code < 0:
            last = f"ended by signal {-code} ({signal.strsignal(-code)}); fewer of them need less memory"
        return DataError(f"a process that turns text into tokens failed: {last}")


def serve() -> None:
    """A worker: file descriptors of texts and spans, and the tokenizer's file, are its arguments."""
    try:
        _serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_DATA_ERROR)


def _serve(texts: int, table: int, tokenizer: Path) -> None:
    encodes = encoder(tokenizer)
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        first, last = (_SPAN.itemsize * int(number) for number in line.split())
        spans = np.frombuffer(read_span(table, first, last), dtype=np.int64).reshape(-1, 2)
        ids, counts = _encode(texts, spans, encodes)
        for part in (np.array([len(ids), len(counts)], dtype=np.int64), ids, counts):
            answers.write(part.data)
        answers.flush()
