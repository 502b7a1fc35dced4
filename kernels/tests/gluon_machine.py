"""The machine under the emulation of Gluon: partitions, asynchronous engines, shared memory and its barriers.

Partitions of `warp_specialize` are threads of which one runs at a time; copies and matrix products that the hardware
does by itself are done when it is their turn, or when somebody waits. Turns go by priorities that are drawn anew now
and then, so that some seeds hold one party back for long.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NEW_PRIORITY = 0.1  # how often the party that has its turn draws anew


class HazardError(Exception):
    """The kernel did something that the hardware does not forgive."""


class Scalar(int):
    """A whole number with the one method of a tensor that a kernel calls on it."""

    def to(self, _: Any) -> "Scalar":
        return self

    def __add__(self, other: Any) -> Any:
        return _scalar(int(self) + other)

    def __sub__(self, other: Any) -> Any:
        return _scalar(int(self) - other)

    def __mul__(self, other: Any) -> Any:
        return _scalar(int(self) * other)

    def __floordiv__(self, other: Any) -> Any:
        return _scalar(int(self) // other)

    def __mod__(self, other: Any) -> Any:
        return _scalar(int(self) % other)

    __radd__, __rmul__ = __add__, __mul__


def _scalar(value: Any) -> Any:
    return Scalar(value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Shared:
    """Tiles in shared memory, or a view of them."""

    data: Tensor

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, i: int) -> "Shared":
        return Shared(self.data[int(i)])

    def reshape(self, shape: Sequence[int]) -> "Shared":
        return Shared(self.data.view(*shape))

    def permute(self, order: Sequence[int]) -> "Shared":
        return Shared(self.data.permute(*order))

    def store(self, value: Tensor) -> None:
        machine().step()
        self.data.copy_(value)
        machine().unfenced.add((self.data.data_ptr(), machine().current))

    def load(self, _: Any) -> Tensor:
        machine().step()
        machine().unfenced.add((self.data.data_ptr(), machine().current))
        return self.data.clone()

    def fenced(self) -> None:
        """Nobody may have used the tile by ordinary instructions since a fence of its own."""
        if any(address == self.data.data_ptr() for address, _ in machine().unfenced):
            raise HazardError("the copy engine meets what ordinary instructions used without a fence")


@dataclass
class Barrier:
    """An mbarrier: a phase is over when all have arrived and all expected bytes have come."""

    count: int = 0
    arrived: int = 0
    missing_bytes: int = 0
    phase: int = 0

    def arrive(self, count: int = 1) -> None:
        self.arrived += count
        if self.arrived > self.count:
            raise HazardError(f"{self.arrived} arrivals in a phase of {self.count}")
        self.settle()

    def settle(self) -> None:
        if self.count and self.arrived == self.count and not self.missing_bytes:
            self.phase, self.arrived = self.phase ^ 1, 0


class Barriers:
    """An array of mbarriers."""

    def __init__(self, count: int):
        self.all = [Barrier() for _ in range(count)]
        self.shape = [count, 1]

    def index(self, i: int) -> Barrier:
        return self.all[int(i)]


@dataclass
class Descriptor:
    """A tensor and the tile that is copied at a time."""

    tensor: Tensor
    block: list[int]
    layout: None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def block_type(self) -> SimpleNamespace:
        elements = torch.Size(self.block).numel()
        return SimpleNamespace(nbytes=elements * self.tensor.element_size())

    def inside(self, coordinates: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """(Where the tile lies in the tensor, which part of the tile that is)."""
        starts = [int(x) for x in coordinates]
        sizes = [max(0, min(n, end - x)) for x, n, end in zip(starts, self.block, self.tensor.shape, strict=True)]
        there = tuple(slice(x, x + n) for x, n in zip(starts, sizes, strict=True))
        return there, tuple(slice(0, n) for n in sizes)


@dataclass(eq=False)
class Copy:
    """A copy between global and shared memory under way."""

    work: Callable[[], None]
    priority: float


@dataclass(eq=False)
class Product:
    """A matrix product under way; its value is there once it was done and waited for."""

    work: Callable[[], Tensor]
    priority: float
    value: Tensor | None = None


@dataclass
class Pointer:
    """Flat memory with an offset, or with one offset an element."""

    memory: Tensor
    offset: Any = 0

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + offset)


@dataclass(eq=False)
class Partition:
    """Warps with work of their own: a thread that runs when it is told to."""

    run: Callable[[], None]
    priority: float
    may_go: Callable[[], bool] = lambda: True
    products: deque[Product] = field(default_factory=deque)
    stores: int = 0
    done: bool = False
    error: BaseException | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Machine:
    """One program under way."""

    def __init__(self, program: int, seed: int):
        self.program, self.random = program, random.Random(seed)
        self.copies: list[Copy] = []
        self.unfenced: set[tuple[int, Partition]] = set()  # who used the tile at which address since its last fence
        self.partitions: list[Partition] = []
        self.current = Partition(lambda: None, 0.0)
        self.back = threading.Semaphore(0)
        self.over = False

    def step(self, may_go: Callable[[], bool] = lambda: True) -> None:
        """A partition gives the turn away until it may go on."""
        mine = self.current
        if mine not in self.partitions:  # before the work is divided
            return
        mine.may_go = may_go
        self.back.release()
        mine.turn.acquire()
        if self.over:
            raise SystemExit

    def specialise(self, functions: Sequence[tuple[Callable[..., Any], Sequence[Any]]], *_: Any) -> None:
        """Run all partitions to their end."""
        self.partitions = [Partition(partial(f, *args), self.random.random()) for f, args in functions]
        threads = [threading.Thread(target=self._live, args=(part,), daemon=True) for part in self.partitions]
        for thread in threads:
            thread.start()
        try:
            while not all(part.done for part in self.partitions) or self.copies:
                self._advance()
        finally:
            self.over = True
            for part in self.partitions:
                part.turn.release()
            for thread in threads:
                thread.join()

    def _live(self, part: Partition) -> None:
        part.turn.acquire()
        try:
            if not self.over:
                part.run()
                if part.stores or any(product.value is None for product in part.products):
                    raise HazardError("a partition ended before its copies or products had")
        except SystemExit:
            pass
        except BaseException as error:
            part.error = error
        part.done = True
        self.back.release()

    def _advance(self) -> None:
        ready: list[Partition | Product | Copy] = [part for part in self.partitions if not part.done and part.may_go()]
        ready += [part.products[0] for part in self.partitions if part.products]
        ready += self.copies
        if not ready:
            raise HazardError("deadlock: every partition waits, and nothing is under way")
        chosen = max(ready, key=lambda x: x.priority)
        if self.random.random() < NEW_PRIORITY:
            chosen.priority = self.random.random()
        if isinstance(chosen, Partition):
            self.current = chosen
            chosen.turn.release()
            self.back.acquire()
            if chosen.error:
                raise chosen.error
        elif isinstance(chosen, Product):
            finish(next(part.products for part in self.partitions if chosen in part.products))
        else:
            self.copies.remove(chosen)
            chosen.work()


def finish(products: deque[Product]) -> None:
    """Do the oldest product."""
    product = products.popleft()
    product.value = product.work()


_RUNNING: list[Machine] = []


def machine() -> Machine:
    """The program that runs."""
    return _RUNNING[-1]


def launch(kernel: Callable[..., None], grid: int, seed: int, **arguments: Any) -> None:
    """Run every program of a grid, one after the other, each in a random order of its own."""
    for program in range(grid):
        _RUNNING.append(Machine(program, seed * 1009 + program))
        try:
            kernel(**arguments)
        finally:
            _RUNNING.pop()
