"""Compiling a launch for a GPU that is not there, and reading from the result what the hardware would be asked for.

The signature comes from triton's own binder, so that an argument is specialised here as it is at a launch: 1 becomes a
constant, multiples of 16 and 16-byte aligned pointers are promised to the compiler. A meta tensor counts as aligned.
Registers and spills are what ptxas says (`-v`), shared memory is triton's figure, and instructions are counted in the
disassembly. Nothing here touches a driver.
"""

import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from efftrain_kernels._kernels.launch import Launch

WARP_SIZE = 32
_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SERIALIZED = re.compile(r"C7512|C7515|wgmma\S* instructions are serialized")
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one kernel asks of a GPU.

    Attributes:
        registers: 32-bit registers a thread.
        spill_bytes: bytes a thread stores to and loads from local memory for want of registers, added up.
        shared_bytes: shared memory a program.
        opcodes: how often each machine instruction stands in the program, by its full name (`LDG.E.128`).
        serialized: ptxas says that it orders wgmma instructions one after the other (C7512, C7515).
        ptxas: its version, such as 12.8.
        warps: of a program, those that only load included.
        early_arrivals: a group of warps lets one thread arrive at a barrier for all of them; how often without having
            come together before.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    opcodes: Counter[str]
    serialized: bool
    ptxas: str
    warps: int
    early_arrivals: int = 0

    def count(self, *prefixes: str) -> int:
        """How many instructions begin with one of the prefixes."""
        return sum(n for opcode, n in self.opcodes.items() if opcode.startswith(prefixes))

    def global_accesses(self, bits: int) -> int:
        """Loads from and stores to global memory of so many bits a thread."""
        return sum(n for opcode, n in self.opcodes.items() if _access_bits(opcode) == bits)

    def wide_accesses(self) -> int:
        """Loads from and stores to global memory of 128 bits a thread or more."""
        return self.global_accesses(128) + self.global_accesses(256)


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile a launch as the launch itself would, for compute capability arch / 10.

    Raises:
        RuntimeError: kernels are interpreted in this process, so there is nothing to compile.
        Exception: whatever triton or ptxas raises on a kernel that does not compile.
    """
    if not isinstance(launch.kernel, JITFunction):
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    target = GPUTarget("cuda", arch, WARP_SIZE)
    source, options = _source(launch, target)
    with _ptxas_log() as log:
        kernel = triton.compile(source, target=target, options=options)
    text = log.getvalue()
    registers, spills = _USED.search(text), _SPILLS.search(text)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas printed no resource usage for {launch.kernel.__name__}: {text[-300:]!r}")
    return Compiled(
        registers=int(registers[1]),
        spill_bytes=int(spills[2]) + int(spills[3]),
        shared_bytes=kernel.metadata.shared,
        opcodes=Counter(_OPCODE.findall(_disassemble(kernel.asm["cubin"]))),
        serialized=_SERIALIZED.search(text) is not None,
        ptxas=_tool(arch).version,
        warps=kernel.metadata.num_warps,
        early_arrivals=early_arrivals(kernel.asm["ptx"]),
    )


def early_arrivals(ptx: str) -> int:
    """Arrivals at a shared memory barrier with no barrier of the warps in the three instructions before."""
    lines = [line.strip() for line in ptx.splitlines()]
    code = [line for line in lines if line and not line.startswith(("//", ".loc", "$"))]
    return sum(
        "mbarrier.arrive.shared" in line and not any("bar.sync" in earlier for earlier in code[max(0, i - 3) : i])
        for i, line in enumerate(code)
    )


def specialise(launch: Launch, target: GPUTarget) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any], Any]:
    """(Signature, constants, promises, options) of a launch, from the code that triton's own launches go through."""
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, found, options = bind(**launch.arguments, **launch.options)
    parsed, signature, constants, promises = kernel._pack_args(backend, options, bound, found, options)
    return signature, constants, promises, parsed


def _source(launch: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    signature, constants, promises, options = specialise(launch, target)
    written_in = ASTSource
    if launch.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        written_in = GluonASTSource
    return written_in(launch.kernel, signature, constants, promises), dict(options.__dict__)


@contextmanager
def _ptxas_log() -> Iterator[io.StringIO]:
    """What ptxas prints while triton compiles: nothing is taken from triton's cache, or ptxas would not run."""
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(io.StringIO()) as log:
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        yield log


def _tool(arch: int) -> Any:
    return (
        knobs.nvidia.ptxas_blackwell if arch >= 100 and hasattr(knobs.nvidia, "ptxas_blackwell") else knobs.nvidia.ptxas
    )


def _disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _access_bits(opcode: str) -> int | None:
    """Bits a thread of a global load or store moves; None for another instruction. Copies to shared memory aside."""
    parts = opcode.split(".")
    if parts[0] not in {"LDG", "STG"}:
        return None
    sizes = {"128": 128, "64": 64, "U8": 8, "S8": 8, "U16": 16, "S16": 16, "256": 256}
    return next((sizes[part] for part in parts[1:] if part in sizes), 32)
