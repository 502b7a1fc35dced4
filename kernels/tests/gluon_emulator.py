"""Gluon on the CPU, for tests: one program at a time, its partitions and the asynchronous engines in random order.

Triton has no interpreter for Gluon. Here a kernel's source is run as plain Python with stand-ins for Gluon's modules,
on torch's tensors. A tile is NaN from the moment a copy into it begins until it has arrived, a product reads its tiles
when it is done rather than when it is begun, and a result that nobody has waited for cannot be used. So a missing or
misplaced barrier gives a wrong number, a deadlock or an error under some seed. Layouts, registers and what the compiler
makes of it are not seen here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from gluon_machine import (
    Barrier,
    Barriers,
    Copy,
    Descriptor,
    HazardError,
    Pointer,
    Product,
    Scalar,
    Shared,
    finish,
    launch,
    machine,
)
from torch import Tensor

import efftrain_kernels

__all__ = ["Descriptor", "HazardError", "Pointer", "launch", "load"]

KERNELS = "efftrain_kernels._kernels"
FOLDER = Path(efftrain_kernels.__file__).parent / "_kernels"


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
