"""Work that may end its process, or never end, done in processes of its own, so that one fault is one finding.

A compiler's assertion ends a process, an illegal memory access leaves its CUDA context useless, and warps that wait for
each other wait for ever. Children are started afresh rather than forked, since a fork would inherit threads that are
not there.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context
from typing import Any, Generic, TypeVar

LEAVING_S = 10.0  # for a child to be gone; a driver that takes longer is not waited for

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
    function: Callable[[T], R], tasks: Iterable[T], *, processes: int | None = None, limit_s: float | None = None
) -> Iterator[Outcome[T, R]]:
    """Results as they come, in any order; after a failure a new process goes on.

    Args:
        function: importable by its name; does one task.
        tasks: small enough to be sent to a child; each is asked for when there is a process for it.
        processes: how many at a time; one a core if None; 0 does all of it in this process.
        limit_s: a task that has taken so many seconds, its process's start included, is ended.
    """
    if processes == 0:
        for task in tasks:
            yield Outcome(task, attempt(function, task))
        return
    size, waiting = processes or os.cpu_count() or 1, iter(tasks)
    idle, busy, started = list[_Worker](), dict[Any, _Worker](), list[_Worker]()
    try:
        while True:
            for task in islice(waiting, size - len(busy)):
                worker = idle.pop() if idle else _start(function)
                started += [worker] * (worker not in started)
                worker.task, worker.began = task, time.monotonic()
                with contextlib.suppress(OSError):  # an idle child that is gone: its pipe tells
                    worker.pipe.send(task)
                busy[worker.pipe] = worker
            if not busy:
                break
            for worker, result in _next(busy, limit_s):
                del busy[worker.pipe]
                if isinstance(result, Failure):  # its process goes, with whatever it left on the device
                    worker.child.kill()
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
            worker.child.join(LEAVING_S)


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
    return [(oldest, Failure(f"no result after {limit_s:g} s"))]


def _answer(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        return Failure("it ended its process: an assertion, or no memory")
