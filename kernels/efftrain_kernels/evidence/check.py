"""Every shipped kernel compiled for GPUs that are not there, and held to its limits.

A kernel that spills, asks for more shared memory than there is, falls off wgmma on Hopper or reads memory in small
pieces is slow or does not start at all, and all of that is decided by the compiler. Kernels are compiled in other
processes, one a core, and a compiler that falls over one of them is reported as that kernel's fault.
"""

import importlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efftrain_kernels.evidence.isolated import Failure, outcomes
from efftrain_kernels.evidence.table import number, table

if TYPE_CHECKING:
    from efftrain_kernels.evidence.aot import Compiled
    from efftrain_kernels.evidence.subjects import Subject

ARCHES = (80, 86, 90, 100)
SHIPPED = "efftrain_kernels.evidence.subjects:shipped"
Family = Literal["attention", "adamw"]


@dataclass(frozen=True, slots=True)
class Row:
    """What the check found of one kernel on one architecture; figures are None where it did not compile.

    Attributes:
        name: which kernel, with its configuration.
        arch: compute capability times 10.
        registers: 32-bit registers a thread.
        spill_bytes: bytes a thread stored to and loaded from local memory.
        shared_bytes: shared memory a program.
        wgmma: matrix instructions of a warpgroup (sm_90).
        mma: matrix instructions of a warp (sm_80 and later).
        tcgen05: matrix instructions into tensor memory (sm_100).
        serialized: ptxas orders wgmma instructions one after the other.
        wide: loads and stores of global memory with 128 bits a thread or more.
        narrow: those with 8 or 16 bits.
        ptxas: version of the assembler.
        seconds: what compiling took.
        violations: what is wrong, a sentence each.
        allowance: why a limit of this kernel is laxer than the others'.
    """

    name: str
    arch: int
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    wgmma: int | None = None
    mma: int | None = None
    tcgen05: int | None = None
    serialized: bool | None = None
    wide: int | None = None
    narrow: int | None = None
    ptxas: str | None = None
    seconds: float | None = None
    violations: tuple[str, ...] = ()
    allowance: str = ""


@dataclass(frozen=True, slots=True)
class _Task:
    source: str
    arch: int
    index: int
    name: str
    ptxas: str | None


def check(
    arches: Sequence[int] = ARCHES,
    *,
    only: Family | None = None,
    quick: bool = False,
    ptxas: Path | None = None,
    source: str = SHIPPED,
    processes: int | None = None,
) -> list[Row]:
    """Compile every shipped kernel for every architecture.

    Args:
        arches: compute capabilities times 10, of 80, 86, 90 and 100.
        only: one family of kernels.
        quick: the kernels that most training runs use, rather than all.
        ptxas: an assembler to use in place of triton's own.
        source: `module:function` that gives the kernels of an architecture as `Subject`s.
        processes: how many compile at a time; one a core if None.

    Returns:
        A row for each, in the order of `source`.

    Raises:
        ValueError: an architecture that there are no limits for, or no such assembler.
    """
    _refuse(arches, ptxas)
    tasks = [
        _Task(source, arch, index, subject.name, str(ptxas) if ptxas else None)
        for arch in arches
        for index, subject in enumerate(_subjects(source, arch))
        if (only is None or subject.family == only) and (subject.quick or not quick)
    ]
    found = {done.task: done.result for done in outcomes(_compile, tasks, processes=processes)}
    rows = ((task, found[task]) for task in tasks)
    return [_failed(task, result) if isinstance(result, Failure) else result for task, result in rows]


def passed(rows: Iterable[Row]) -> bool:
    """Whether no row violates anything."""
    return not any(row.violations for row in rows)


def describe(rows: Sequence[Row]) -> str:
    """A table of the rows, what is wrong under it, and a last line that says how many passed."""
    headers = ("kernel", "sm", "regs", "spill B", "smem KiB", "wgmma", "mma", "tcgen05", "128-bit", "≤16-bit", "ptxas")
    lines = [table(headers, [_cells(row) for row in rows])]
    lines += [f"sm_{row.arch} {row.name}: {'; '.join(row.violations)}" for row in rows if row.violations]
    spilling = [row for row in rows if row.spill_bytes and row.allowance]
    lines += sorted({f"allowed to spill: {row.allowance} (sm_{row.arch} {row.name})" for row in spilling})
    failed = sum(bool(row.violations) for row in rows)
    lines.append(f"{len(rows)} kernels compiled, {failed} outside their limits")
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """All that the rows hold, as a JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _refuse(arches: Sequence[int], ptxas: Path | None) -> None:
    from efftrain_kernels._kernels.launch import interpreting
    from efftrain_kernels.evidence.limits import SHARED_BYTES

    for arch in arches:
        if arch not in SHARED_BYTES:
            known = ", ".join(map(str, SHARED_BYTES))
            raise ValueError(f"arch {arch}: no limits are known for it; expected some of {known}")
    if ptxas is not None and not ptxas.is_file():
        raise ValueError(f"ptxas {ptxas}: no such file; give the path of an assembler, such as the CUDA toolkit's")
    if interpreting():
        raise ValueError("TRITON_INTERPRET is set, so there is nothing to compile; unset it and start again")


def _cells(row: Row) -> tuple[str, ...]:
    shared = None if row.shared_bytes is None else row.shared_bytes / 1024
    counts = (row.wgmma, row.mma, row.tcgen05, row.wide, row.narrow)
    mark = " !" if row.violations else ""
    numbers = (number(row.registers), number(row.spill_bytes, "d"), number(shared, ".0f"), *(number(x) for x in counts))
    return (row.name + mark, str(row.arch), *numbers, row.ptxas or "missing")


@cache
def _subjects(source: str, arch: int) -> "list[Subject]":
    module, _, function = source.partition(":")
    return getattr(importlib.import_module(module), function)(arch)


def _compile(task: _Task) -> Row:
    """Compile one kernel in this process; a worker's whole work."""
    if task.ptxas:  # triton reads both when it first looks for its tools
        os.environ["TRITON_PTXAS_PATH"] = os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = task.ptxas
    from efftrain_kernels.evidence.aot import compile_launch

    subject = _subjects(task.source, task.arch)[task.index]
    began = time.perf_counter()
    return _row(subject, task.arch, compile_launch(subject.launch, task.arch), time.perf_counter() - began)


def _failed(task: _Task, failure: Failure) -> Row:
    return Row(task.name, task.arch, violations=(f"does not compile: {failure.reason}",))


def _row(subject: "Subject", arch: int, compiled: "Compiled", seconds: float) -> Row:
    from efftrain_kernels.evidence.limits import MMA, TCGEN05, WGMMA, violations

    return Row(
        name=subject.name, arch=arch, registers=compiled.registers, spill_bytes=compiled.spill_bytes,
        shared_bytes=compiled.shared_bytes, wgmma=compiled.count(*WGMMA), mma=compiled.count(*MMA),
        tcgen05=compiled.count(*TCGEN05), serialized=compiled.serialized, wide=compiled.wide_accesses(),
        narrow=compiled.global_accesses(8) + compiled.global_accesses(16), ptxas=compiled.ptxas,
        seconds=round(seconds, 3), allowance=subject.limits.reason,
        violations=violations(compiled, arch, subject.limits),
    )  # fmt: skip
