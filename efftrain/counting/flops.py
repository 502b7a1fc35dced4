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

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from efftrain.record.recorder import Phase, Recorder
from efftrain_kernels.costs import executed_widths, missing_formulas

CostPhase = Literal["forward", "recompute", "backward", "optimizer"]
"""A phase as costs know it; `recompute` stands apart from the backward pass that holds it."""

PhaseMark = Callable[[Phase], None]
"""Called by a training step where a phase begins; the phase lasts until the next call."""

RunStep = Callable[[PhaseMark], None]
"""One whole optimizer step, from the first micro-batch to zeroed gradients."""

_Formula = Callable[..., int]
_Arguments = tuple[Any, ...]
_Keywords = dict[str, Any]

TEACHER: Final = "teacher"
"""Module name under which a teacher's costs stand."""


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
        self._modules = _Modules(model, teacher)
        self._observer = _Observer(self._count)
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

    def _count(self, op: "_Op", args: _Arguments, kwargs: _Keywords, result: Any) -> None:
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


def in_backward() -> bool:
    """Whether this thread runs inside torch's autograd engine."""
    return torch._C._current_graph_task_id() != -1


class _Observer(TorchDispatchMode):
    """Hands every op that has run to `count`."""

    def __init__(self, count: Callable[["_Op", _Arguments, _Keywords, Any], None]) -> None:
        super().__init__()
        self._count = count
        self._formulas = _formulas()
        self._ops: dict[OpOverload, _Op] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: _Arguments = (), kwargs: _Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = self._ops.get(func)
        if op is None:
            op = self._ops[func] = _Op.of(func, self._formulas)
        if op.composite:  # under inference mode, linear and matmul arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if not op.query:
            self._count(op, args, kwargs, result)
        return result


class _Modules:
    """Which module is running: forward from hooks, backward from the sequence numbers of autograd's nodes."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        taught = {} if teacher is None else {m: f"{TEACHER}.{n}".rstrip(".") for n, m in teacher.named_modules()}
        self._names |= taught
        self._teacher = frozenset(taught.values())
        sights = ((name, getattr(module, "visible_keys", None)) for module, name in self._names.items())
        self._visible_keys = {name: keys for name, keys in sights if isinstance(keys, int)}
        owners = [(p, name) for m, name in self._names.items() for p in m.parameters(recurse=False)]
        self._owners = {id(p): name for p, name in reversed(owners)}  # a shared parameter belongs to its first module
        self._forward: list[str] = [""]
        self._again: list[str] = []
        self._starts: list[int] = []
        self._makers: list[str] = []

    def watch(self) -> None:
        self._handles = (
            register_module_forward_pre_hook(self._enter),
            # always: checkpoint's early stop leaves the block by an exception
            register_module_forward_hook(self._leave, always_call=True),
        )

    def forget(self) -> None:
        for handle in self._handles:
            handle.remove()

    def entered(self) -> str:
        return self._forward[-1]

    def recomputed(self) -> str | None:
        return self._again[-1] if self._again else None

    def is_teacher(self, name: str) -> bool:
        return name in self._teacher

    def visible_keys(self, name: str) -> int | None:
        return self._visible_keys.get(name)

    def of_node(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return ""
        if node.name() == "torch::autograd::AccumulateGrad":  # its sequence number says nothing
            return self._owners.get(id(node.variable), "")
        span = bisect_right(self._starts, node._sequence_nr())
        return self._makers[span - 1] if span else ""

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module in self._names:
            self._stack().append(self._names[module])
            self._note_maker()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._names:
            self._stack().pop()
            self._note_maker()

    def _stack(self) -> list[str]:
        return self._again if in_backward() else self._forward

    def _note_maker(self) -> None:
        """Nodes made from now on belong to the innermost module.

        Those of a recomputation are never run, and a device's backward thread has a count of its own.
        """
        if not in_backward():
            self._starts.append(_get_sequence_nr())
            self._makers.append(self._forward[-1])


_QUERIES: Final = ("prim", "aten.is_", "aten.sym_")
"""Ops that ask a tensor for its metadata."""

_GATHERS: Final = ("aten.embedding", "aten.index_select", "aten.gather", "aten.index")
"""Ops that read no more of their first argument than they return."""

_OVERWRITES: Final = ("aten.copy_", "aten.fill_", "aten.zero_", "aten._foreach_copy_", "aten._foreach_zero_")
"""In-place ops that do not read what they replace; ops with an `out=` do not either."""


@dataclass(frozen=True, slots=True)
class _Op:
    """What does not change between two calls of one op."""

    name: str
    formula: _Formula | None
    attention: bool
    attention_backward: bool
    longest_keys: int | None
    composite: bool
    query: bool
    mutated: Sequence[tuple[int, str]]
    overwrites: bool

    @classmethod
    def of(cls, func: OpOverload, formulas: Mapping[OpOverloadPacket, _Formula]) -> Self:
        schema = func._schema
        name = schema.name.replace("::", ".")
        query = name.startswith(_QUERIES)
        formula = formulas.get(func.overloadpacket)
        attention = formula is not None and "attention" in name
        longest_keys = [i for i, argument in enumerate(schema.arguments) if argument.name == "max_seqlen_k"]
        implicit = torch._C.DispatchKey.CompositeImplicitAutograd
        mutated = [(i, a) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        return cls(
            name=name,
            formula=formula,
            attention=attention,
            attention_backward=attention and "backward" in name,
            longest_keys=longest_keys[0] if longest_keys else None,
            composite=formula is None and not query and func.has_kernel_for_dispatch_key(implicit),
            query=query,
            mutated=[(position, argument.name) for position, argument in mutated],
            overwrites=name in _OVERWRITES or any(argument.is_out for _, argument in mutated),
        )

    def flops(self, args: _Arguments, kwargs: _Keywords, result: Any) -> tuple[int, int]:
        """Hardware and model FLOP of one call."""
        if self.formula is None:
            return 0, 0
        flops = int(self.formula(*args, **kwargs, out_val=result))
        if not self.attention_backward:
            return flops, flops
        # A fused backward does five products where twice the forward is four: S = QKᵀ comes again (ours, in two
        # passes, does seven). Each costs as much as its head width: S, dQ and dK that of the keys, dP and dV that of
        # the values.
        key, value = args[2].shape[-1], args[3].shape[-1]
        kernel = str(args[-1]) if self.name.startswith("efftrain.") else ""
        return flops, flops * (2 * key + 2 * value) // executed_widths(kernel, key, value)

    def keys(self, args: _Arguments, result: Any) -> int:
        """Length of the sequence over which an attention goes: of its keys, or T in T × Q × T."""
        if self.longest_keys is not None:
            return int(args[self.longest_keys])
        if self.attention:
            return args[2 if self.attention_backward else 1].shape[-2]
        return sorted((args[0].shape[-1], *result.shape[-2:]))[1]

    def traffic(self, args: _Arguments, kwargs: _Keywords, result: Any) -> int:
        """Bytes read and written by one call; 0 for a view, whether its schema says so or not (`_unsafe_view`)."""
        outputs = _tensors(result)
        mutated = _tensors([args[i] if i < len(args) else kwargs.get(name) for i, name in self.mutated])
        inputs = _tensors((args, kwargs))
        storages = {_storage(x) for x in inputs}
        new = [x for x in outputs if _storage(x) not in storages]
        if outputs and not new and not mutated:
            return 0
        if "empty" in self.name:
            return 0
        return self._read(inputs, mutated, new) + _bytes(new) + _bytes(mutated)

    def _read(self, inputs: Sequence[Tensor], mutated: Sequence[Tensor], new: Sequence[Tensor]) -> int:
        if self.name.endswith("_like") or self.name.startswith("aten.new_"):
            return 0
        if self.name in _GATHERS:
            return min(_bytes(inputs[:1]), _bytes(new)) + _bytes(inputs[1:])
        if self.overwrites:
            return _bytes(inputs) - _bytes(mutated)
        return _bytes(inputs)


def _formulas() -> dict[OpOverloadPacket, _Formula]:
    """Torch's registry and what it lacks, as one dictionary of our own: torch's is left as it is."""
    return {**flop_registry, **{packet: shape_wrapper(formula) for packet, formula in missing_formulas().items()}}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of distinct tensors; a dimension of stride 0 is one element."""
    distinct = {(_storage(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(_extent(tensor) for tensor in distinct.values())


def _extent(tensor: Tensor) -> int:
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count
