"""FLOPs and bytes of one optimizer step, by phase, module and op.

The step runs once on fake tensors under a `TorchDispatchMode`: nothing is computed, no weight changes, and the hot
loop is never wrapped. What runs inside torch's autograd engine is `backward`, whatever phase was marked; a module whose
forward is called from in there is being recomputed. Backward ops find their module through autograd's sequence numbers:
nodes that were made while a module's forward ran belong to that module.

Hardware FLOPs are what the device executes. Model FLOPs are those of the PaLM convention (arXiv:2204.02311, appendix
B): causal attention is not halved, recomputation counts nothing, attention's backward is twice its forward even where
the kernel recomputes the scores, a window's attention is as long as the window, and a teacher's passes count nothing.
Only matrix products and convolutions have FLOPs. Bytes are what each op reads and writes when it runs alone, which is
an upper bound for a compiled model.

A module that attends within a window says so by an integer attribute `visible_keys`, the keys that a query is counted
with. All products of that module itself, which those of its submodules are not, are taken for attention's: one fused
op, or the products in which it was spelled out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from efftrain.counting.modules import Modules, in_backward
from efftrain.counting.ops import Arguments, CountedOp, Keywords, OpObserver
from efftrain.record.recorder import Phase, Recorder

CostPhase = Literal["forward", "recompute", "backward", "optimizer"]
"""A phase as costs know it; `recompute` stands apart from the backward pass that holds it."""

PhaseMark = Callable[[Phase], None]
"""Called by a training step where a phase begins; the phase lasts until the next call."""

RunStep = Callable[[PhaseMark], None]
"""One whole optimizer step, from the first micro-batch to zeroed gradients."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """Cost of one op in one module and phase, summed over its calls in one step.

    Attributes:
        phase: where in the step.
        module: name as in `model.named_modules()`; `""` for the model itself and for whatever runs outside of it.
        op: as `aten.mm`.
        calls: how often the op ran.
        flops: FLOP that the hardware executes.
        model_flops: FLOP that the model needs, at most `flops`.
        bytes: bytes read and written.
    """

    phase: CostPhase
    module: str
    op: str
    calls: int
    flops: int
    model_flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of one optimizer step, in the order in which the ops first ran."""

    rows: Sequence[CostRow]

    @property
    def flops(self) -> int:
        """Hardware FLOP of the step."""
        return sum(row.flops for row in self.rows)

    @property
    def model_flops(self) -> int:
        """Model FLOP of the step."""
        return sum(row.model_flops for row in self.rows)

    def record(self, recorder: Recorder, from_step: int) -> None:
        """Write one cost line a row; they hold from step `from_step` until lines with a later one."""
        for row in self.rows:
            recorder.cost(
                from_step=from_step, phase=row.phase, module=row.module, op=row.op, calls=row.calls,
                flops=row.flops, model_flops=row.model_flops, bytes=row.bytes,
            )  # fmt: skip


def fake_mode() -> FakeTensorMode:
    """The mode under which a model and its optimizer are built to be counted: tensors without data.

    Build on the run's own device type, since kernels differ between them: on `meta` attention would spell out its
    T × T weights. Real tensors that the step holds (constants, a batch) are converted as they are met.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def count_step(run_step: RunStep, model: nn.Module, *, teacher: nn.Module | None = None) -> StepCost:
    """Count one optimizer step of `model`; to be called under `fake_mode()`, with everything built under it.

    The step runs twice: the first makes the optimizer's state, which no later step does, and is not counted.

    Args:
        run_step: one step over all of its micro-batches; ops outside of `forward`, `backward` and `optimizer` are
            not counted.
        model: the model that the step trains.
        teacher: a model that the step only asks; its ops are named `teacher.…` and have no model FLOPs.
    """
    run_step(ignore_marks)
    with CostCounter(model, teacher=teacher) as counter:
        run_step(counter.mark)
    return counter.cost()


def ignore_marks(phase: Phase) -> None:
    """The mark for a step that nobody watches."""


class CostCounter:
    """Counts whatever runs inside its `with` block; `count_step` is the usual way in."""

    def __init__(self, model: nn.Module, *, teacher: nn.Module | None = None) -> None:
        self._modules = Modules(model, teacher)
        self._observer = OpObserver(self._count)
        self._sums: dict[tuple[CostPhase, str, str], list[int]] = {}
        self._phase: Phase = "data"

    def mark(self, phase: Phase) -> None:
        """Say that `phase` begins; backward passes and recomputation are recognised without it."""
        self._phase = phase

    def cost(self) -> StepCost:
        """What was counted until now."""
        return StepCost([CostRow(*where, *sums) for where, sums in self._sums.items()])

    def __enter__(self) -> Self:
        self._modules.watch()
        self._observer.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._observer.__exit__(*exc)
        self._modules.forget()

    def _count(self, op: CountedOp, args: Arguments, kwargs: Keywords, result: Any) -> None:
        phase, module = self._where()
        if phase is None:
            return
        traffic = op.traffic(args, kwargs, result)
        flops, model_flops = op.flops(args, kwargs, result)
        if not traffic and not flops:
            return
        if phase == "recompute" or self._modules.is_teacher(module):
            model_flops = 0
        visible_keys = self._modules.visible_keys(module)
        if model_flops and visible_keys is not None:
            keys = op.keys(args, result)
            model_flops = model_flops * min(visible_keys, keys) // keys
        sums = self._sums.setdefault((phase, module, op.name), [0, 0, 0, 0])
        for i, number in enumerate((1, flops, model_flops, traffic)):
            sums[i] += number

    def _where(self) -> tuple[CostPhase | None, str]:
        if in_backward():
            module = self._modules.recomputed()
            return ("backward", self._modules.of_node()) if module is None else ("recompute", module)
        return None if self._phase == "data" else self._phase, self._modules.entered()
