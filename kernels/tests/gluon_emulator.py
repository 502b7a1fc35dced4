"""Gluon on the CPU, for tests: one program at a time, its partitions and the asynchronous engines in random order.

Triton has no interpreter for Gluon. Here a kernel's source is run as plain Python with stand-ins for Gluon's modules:
tensors are torch's, partitions of `warp_specialize` are threads of which one runs at a time, and copies and matrix
products that the hardware does by itself are done when it is their turn, or when somebody waits. Turns go by priorities
that are drawn anew now and then, so that some seeds hold one party back for long. A tile is NaN from
the moment a copy into it begins until it has arrived, a product reads its tiles when it is done rather than when it is
begun, and a result that nobody has waited for cannot be used. So a missing or misplaced barrier gives a wrong number,
a deadlock or an error under some seed. Layouts, registers and what the compiler makes of it are not seen here.
"""

import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import efftrain_kernels

KERNELS = "efftrain_kernels._kernels"
FOLDER = Path(efftrain_kernels.__file__).parent / "_kernels"
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


def load(*names: str, changes: Sequence[tuple[str, str]] = ()) -> ModuleType:
    """The last of these modules of `efftrain_kernels._kernels` as plain Python; the others are what it imports.

    Args:
        names: of modules written in Gluon.
        changes: (old, new) texts, each of which must stand in one of them.
    """
    stand_ins = _stand_ins()
    left = list(changes)
    before = {name: sys.modules.get(name) for name in [*stand_ins, *(f"{KERNELS}.{name}" for name in names)]}
    sys.modules.update(stand_ins)
    try:
        for name in names:
            source = (FOLDER / f"{name}.py").read_text()
            for old, new in [change for change in left if change[0] in source]:
                source = source.replace(old, new)
                left.remove((old, new))
            module = sys.modules[f"{KERNELS}.{name}"] = ModuleType(name)
            exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    finally:
        for name, old_module in before.items():
            if old_module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old_module
    if left:
        raise ValueError(f"nowhere in {', '.join(names)}: {left[0][0]!r}")
    return module


def _expect(barrier: Barrier, nbytes: int) -> None:
    machine().step()
    barrier.missing_bytes += nbytes
    barrier.arrive()


def _arrive(barrier: Barrier, *, count: int = 1) -> None:
    machine().step()
    barrier.arrive(count)


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = count


def _wait(barrier: Barrier, phase: int) -> None:
    machine().step(lambda: barrier.phase != int(phase))


def _copy_in(descriptor: Descriptor, coordinates: Sequence[int], barrier: Barrier, tile: Shared) -> None:
    machine().step()
    there, here = descriptor.inside(coordinates)
    tile.fenced()
    tile.data.fill_(torch.nan)

    def arrive() -> None:
        tile.data.zero_()
        tile.data[here] = descriptor.tensor[there]
        barrier.missing_bytes -= descriptor.block_type.nbytes
        barrier.settle()

    machine().copies.append(Copy(arrive, machine().random.random()))


def _copy_out(descriptor: Descriptor, coordinates: Sequence[int], tile: Shared) -> None:
    machine().step()
    part = machine().current
    tile.fenced()
    there, here = descriptor.inside(coordinates)
    part.stores += 1

    def leave() -> None:
        descriptor.tensor[there] = tile.data[here]
        part.stores -= 1

    machine().copies.append(Copy(leave, machine().random.random()))


def _store_wait(pendings: int) -> None:
    part = machine().current
    machine().step(lambda: part.stores <= pendings)


def _fence() -> None:
    machine().step()
    here = machine()
    here.unfenced = {use for use in here.unfenced if use[1] is not here.current}


def _allocate(dtype: torch.dtype, shape: Sequence[int], _: Any) -> Shared | Barriers:
    if dtype == torch.int64:
        return Barriers(shape[0])
    return Shared(torch.full(shape, torch.nan, dtype=dtype))


def _multiply(a: Any, b: Shared, acc: Tensor, *, use_acc: bool = True, is_async: bool = False) -> Any:
    machine().step()
    for x in (a, acc):
        if isinstance(x, Product):
            raise HazardError("a product is used that nobody has waited for")

    def work() -> Tensor:
        left = a.data if isinstance(a, Shared) else a
        product = left.float() @ b.data.float()
        return product + acc if use_acc else product

    if not is_async:
        return work()
    products = machine().current.products
    products.append(Product(work, machine().random.random()))
    return products[-1]


def _multiply_wait(outstanding: int, deps: Sequence[Any]) -> Any:
    machine().step()
    products = machine().current.products
    while len(products) > outstanding:
        finish(products)
    found = [_waited(x) if isinstance(x, Product) else x for x in deps]
    return found[0] if len(found) == 1 else tuple(found)


def _waited(product: Product) -> Tensor:
    if product.value is None:
        raise HazardError("a product is taken that is not done")
    return product.value


def _store(pointer: Pointer, value: Tensor, *, mask: Tensor) -> None:
    machine().step()
    pointer.memory[pointer.offset[mask]] = value[mask]


def _load(pointer: Pointer, *, mask: Tensor, other: float) -> Tensor:
    machine().step()
    return torch.where(mask, pointer.memory[pointer.offset.where(mask, 0)], other)


def _jit(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _jit


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _stand_ins() -> dict[str, ModuleType]:
    language, gluon, hopper = (ModuleType(name) for name in ("language", "gluon", "hopper"))
    language.__dict__.update(
        constexpr=lambda value: value, float32=torch.float32, int64=torch.int64, static_range=range,
        program_id=lambda _: Scalar(machine().program), cdiv=lambda a, b: -(-a // b),
        arange=lambda start, end, _: torch.arange(start, end), expand_dims=Tensor.unsqueeze, where=torch.where,
        zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, _: torch.full(shape, value, dtype=dtype),
        maximum=torch.maximum, max=torch.amax, sum=torch.sum, exp2=torch.exp2, log2=torch.log2,
        convert_layout=lambda x, _: x, store=_store, load=_load, allocate_shared_memory=_allocate,
        inline_asm_elementwise=lambda _, __, args, **___: args[0],
        warp_specialize=lambda functions, *rest: machine().specialise(functions, *rest),
        NVMMADistributedLayout=_nothing, SliceLayout=_nothing, DotOperandLayout=_nothing,
    )  # fmt: skip
    gluon.__dict__.update(jit=_jit, constexpr_function=_jit, language=language)
    hopper.__dict__.update(
        fence_async_shared=_fence, warpgroup_mma=_multiply, warpgroup_mma_wait=_multiply_wait,
        mbarrier=SimpleNamespace(init=_init, expect=_expect, arrive=_arrive, wait=_wait, MBarrierLayout=_nothing),
        tma=SimpleNamespace(
            async_copy_global_to_shared=_copy_in, async_copy_shared_to_global=_copy_out, store_wait=_store_wait
        ),
    )  # fmt: skip
    experimental = ModuleType("experimental")
    experimental.__dict__["gluon"] = gluon
    base = "triton.experimental"
    return {
        base: experimental, f"{base}.gluon": gluon, f"{base}.gluon.language": language,
        f"{base}.gluon.language.nvidia": ModuleType("nvidia"), f"{base}.gluon.language.nvidia.hopper": hopper,
    }  # fmt: skip
