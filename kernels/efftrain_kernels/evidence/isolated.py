"""Work that may end its process, done in processes of its own, so that one fault is one finding.

A compiler's assertion ends a process, and an illegal memory access leaves its CUDA context useless. Children are
started afresh rather than forked, since a fork would inherit threads that are not there.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result: what it raised, or that its process ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """A task with its result, or with why there is none."""

    task: T
    result: R | Failure


def outcomes(
    function: Callable[[T], R], tasks: Sequence[T], *, processes: int | None = None, fresh: bool = False,
    limit_s: float | None = None,
) -> Iterator[Outcome[T, R]]:  # fmt: skip
    """Results as they come, in any order.

    Args:
        function: importable by its name; does one task.
        tasks: hashable, and small enough to be sent to a child.
        processes: how many at a time; one a core if None; 0 does all of it in this process.
        fresh: a new process for every task.
        limit_s: a task's process is ended after so many seconds; for fresh ones alone.
    """
    if processes == 0:
        for task in tasks:
            yield Outcome(task, attempt(function, task))
        return
    size = max(1, min(processes or os.cpu_count() or 1, len(tasks)))
    if fresh:
        yield from _one_each(function, tasks, size, limit_s)
        return
    done: set[T] = set()
    try:
        with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
            futures: dict[Future[R | Failure], T] = {pool.submit(attempt, function, task): task for task in tasks}
            for future in as_completed(futures):
                result = future.result()
                done.add(futures[future])
                yield Outcome(futures[future], result)
    except BrokenProcessPool:  # nobody knows on which task: each that is left has a process to itself
        yield from _one_each(function, [task for task in tasks if task not in done], 1, None)


def _one_each(
    function: Callable[[T], R], tasks: Sequence[T], size: int, limit_s: float | None
) -> Iterator[Outcome[T, R]]:
    """A process for every task, `size` of them at a time."""
    waiting, running = deque(tasks), dict[Any, tuple[Any, T, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < size:
                ours, theirs = connection.Pipe(duplex=False)
                task = waiting.popleft()
                child = get_context("spawn").Process(target=_answer, args=(theirs, function, task))
                child.start()
                theirs.close()
                running[ours] = (child, task, time.monotonic())
            oldest = min(began for _, _, began in running.values())
            left = None if limit_s is None else max(0.0, oldest + limit_s - time.monotonic())
            ready = connection.wait(list(running), left)
            over = [] if ready or limit_s is None else [x for x, run in running.items() if run[2] == oldest]
            for pipe in [*ready, *over]:
                child, task, _ = running.pop(pipe)
                if over:
                    child.kill()
                yield Outcome(task, Failure(f"no result after {limit_s:g} s") if over else _answered(pipe))
                child.join()
    finally:
        for child, _, _ in running.values():
            child.kill()


def _answer(pipe: Any, function: Callable[[T], R], task: T) -> None:
    pipe.send(attempt(function, task))


def _answered(pipe: Any) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return Failure("it ended its process: an assertion, or no memory")


def attempt(function: Callable[[T], R], task: T) -> R | Failure:
    """What a function gives for a task, or what it raised."""
    try:
        return function(task)
    except Exception as error:  # whatever it is, it is the finding
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:400])
