"""One kernel launch as data: what is launched on a device is what the ahead-of-time check compiles."""

from dataclasses import dataclass
from typing import Any

from triton.runtime.interpreter import InterpretedFunction

from efftrain_kernels._kernels import probe


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with everything that it is called with.

    Attributes:
        kernel: a function under `triton.jit`.
        arguments: by parameter name, constexprs included; tensors, ints, floats, bools, None.
        grid: programs along each axis.
        num_warps: warps a program.
        num_stages: depth of the software pipeline.
        max_registers: registers a thread at the start, where groups of warps share them out among themselves.
    """

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What triton's compiler is told besides the arguments."""
        registers = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **registers}

    def run(self) -> None:
        """Launch on the device of the arguments, or run in the interpreter."""
        if all(self.grid):
            self.kernel[self.grid](**self.arguments, **self.options)


def interpreting() -> bool:
    """Whether kernels run in triton's interpreter: TRITON_INTERPRET=1 was set before they were imported."""
    return isinstance(probe.nothing, InterpretedFunction)
