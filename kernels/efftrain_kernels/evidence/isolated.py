"""Work that may end its process, or never end, done in processes of its own, so that one fault is one finding.

A compiler's assertion ends a process, an illegal memory access leaves its CUDA context useless, and warps that wait for
each other wait for ever. Children are started afresh rather than forked, since a fork would inherit threads that are
not there.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result: what it raised, that its process ended, or that it took too long."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """A task with its result, or with why there is none."""

    task: T
    result: R | Failure


@dataclass(slots=True)
class _Worker:
    """A child with the parent's end of its pipe, and what it does now."""

    pipe: Any
    child: Any
    task: Any = None
    began: float = 0.0


def outcomes(
    function: Callable[[T], R], tasks: Sequence[T], *, processes: int | None = None, fresh: bool = False,
    limit_s: float | None = None,
) -> Iterator[Outcome[T, R]]:  # fmt: skip
    """Results as they come, in any order.

    Args:
        function: importable by its name; does one task.
        tasks: small enough to be sent to a child.
        processes: how many at a time; one a core if None; 0 does all of it in this process.
        fresh: a new process for every task, rather than after a failure alone.
        limit_s: a task that has taken so many seconds, its process's start included, is ended.
    """
    if processes == 0:
        for task in tasks:
            yield Outcome(task, attempt(function, task))
        return
    size = max(1, min(processes or os.cpu_count() or 1, len(tasks)))
    waiting, idle, busy, started = deque(tasks), list[_Worker](), dict[Any, _Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < size:
                worker = idle.pop() if idle else _start(function)
                if worker not in started:
                    started.append(worker)
                worker.task, worker.began = waiting.popleft(), time.monotonic()
                worker.pipe.send(worker.task)
                busy[worker.pipe] = worker
            for worker, result in _next(busy, limit_s):
                del busy[worker.pipe]
                if fresh or isinstance(result, Failure):
                    worker.pipe.close()
                else:
                    idle.append(worker)
                yield Outcome(worker.task, result)
    finally:
        for worker in started:
            worker.pipe.close()  # a child that waits for a task ends
            if worker in busy.values():
                worker.child.kill()
        for worker in started:
            worker.child.join()


def attempt(function: Callable[[T], R], task: T) -> R | Failure:
    """What a function gives for a task, or what it raised."""
    try:
        return function(task)
    except Exception as error:  # whatever it is, it is the finding
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:400])


def _start(function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = connection.Pipe()
    child = get_context("spawn").Process(target=_serve, args=(theirs, function))
    child.start()
    theirs.close()
    return _Worker(ours, child)


def _serve(pipe: Any, function: Callable[[Any], Any]) -> None:
    """A child's whole life."""
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(function, task))


def _next(busy: dict[Any, _Worker], limit_s: float | None) -> list[tuple[_Worker, Any]]:
    """Who has something to tell; where nobody has in time, who has taken too long."""
    oldest = min(busy.values(), key=lambda worker: worker.began)
    left = None if limit_s is None else max(0.0, oldest.began + limit_s - time.monotonic())
    ready = connection.wait(list(busy), left)
    if ready:
        return [(busy[pipe], _answer(pipe)) for pipe in ready]
    oldest.child.kill()
    return [(oldest, Failure(f"no result after {limit_s:g} s"))]


def _answer(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return Failure("it ended its process: an assertion, or no memory")
