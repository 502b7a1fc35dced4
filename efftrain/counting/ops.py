"""One op as it arrives on fake tensors: its FLOPs by formula, and the bytes that it reads and writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from efftrain_kernels.costs import executed_widths, missing_formulas

Formula = Callable[..., int]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class OpObserver(TorchDispatchMode):
    """Hands every op that has run to `count`."""

    def __init__(self, count: Callable[["CountedOp", Arguments, Keywords, Any], None]) -> None:
        super().__init__()
        self._count = count
        self._formulas = formulas_by_op()
        self._ops: dict[OpOverload, CountedOp] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = self._ops.get(func)
        if op is None:
            op = self._ops[func] = CountedOp.of(func, self._formulas)
        if op.composite:  # under inference mode, linear and matmul arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if not op.query:
            self._count(op, args, kwargs, result)
        return result


_QUERIES: Final = ("prim", "aten.is_", "aten.sym_")
"""Ops that ask a tensor for its metadata."""

_GATHERS: Final = ("aten.embedding", "aten.index_select", "aten.gather", "aten.index")
"""Ops that read no more of their first argument than they return."""

_OVERWRITES: Final = ("aten.copy_", "aten.fill_", "aten.zero_", "aten._foreach_copy_", "aten._foreach_zero_")
"""In-place ops that do not read what they replace; ops with an `out=` do not either."""


@dataclass(frozen=True, slots=True)
class CountedOp:
    """What does not change between two calls of one op."""

    name: str
    formula: Formula | None
    attention: bool
    attention_backward: bool
    longest_keys: int | None
    composite: bool
    query: bool
    mutated: Sequence[tuple[int, str]]
    overwrites: bool

    @classmethod
    def of(cls, func: OpOverload, formulas: Mapping[OpOverloadPacket, Formula]) -> Self:
        """What `func`'s schema and its formula tell."""
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

    def flops(self, args: Arguments, kwargs: Keywords, result: Any) -> tuple[int, int]:
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

    def keys(self, args: Arguments, result: Any) -> int:
        """Length of the sequence over which an attention goes: of its keys, or T in T × Q × T."""
        if self.longest_keys is not None:
            return int(args[self.longest_keys])
        if self.attention:
            return args[2 if self.attention_backward else 1].shape[-2]
        return sorted((args[0].shape[-1], *result.shape[-2:]))[1]

    def traffic(self, args: Arguments, kwargs: Keywords, result: Any) -> int:
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


def formulas_by_op() -> dict[OpOverloadPacket, Formula]:
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
