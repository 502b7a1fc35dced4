"""Work that may end its process, done in processes of its own, so that one fault is one finding.

A compiler's assertion ends a process, and an illegal memory access leaves its CUDA context useless. Children are
started afresh rather than forked, since a fork would inherit threads that are not there.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Generic, TypeVar

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
    function: Callable[[T], R], tasks: Sequence[T], *, processes: int | None = None, fresh: bool = False
) -> Iterator[Outcome[T, R]]:
    """Results as they come, in any order.

    Args:
        function: importable by its name; does one task.
        tasks: hashable, and small enough to be sent to a child.
        processes: how many at a time; one a core if None; 0 does all of it in this process.
        fresh: a new process for every task.
    """
    if processes == 0:
        for task in tasks:
            yield Outcome(task, _attempt(function, task))
        return
    size = max(1, min(processes or os.cpu_count() or 1, len(tasks)))
    done: set[T] = set()
    try:
        with _pool(size, fresh=fresh) as pool:
            futures: dict[Future[R | Failure], T] = {pool.submit(_attempt, function, task): task for task in tasks}
            for future in as_completed(futures):
                result = future.result()
                done.add(futures[future])
                yield Outcome(futures[future], result)
    except BrokenProcessPool:  # nobody knows on which task: each that is left has a process to itself
        for task in [task for task in tasks if task not in done]:
            yield Outcome(task, _alone(function, task))


def _alone(function: Callable[[T], R], task: T) -> R | Failure:
    try:
        with _pool(1, fresh=True) as pool:
            return pool.submit(_attempt, function, task).result()
    except BrokenProcessPool:
        return Failure("it ended its process: an assertion, or no memory")


def _attempt(function: Callable[[T], R], task: T) -> R | Failure:
    try:
        return function(task)
    except Exception as error:  # whatever it is, it is the finding
        return Failure(" ".join(f"{type(error).__name__}: {error}".split())[:400])


def _pool(size: int, *, fresh: bool) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(size, mp_context=get_context("spawn"), max_tasks_per_child=1 if fresh else None)
