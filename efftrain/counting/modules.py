"""Which module is running: in the forward pass, in a recomputation, and in the backward pass."""

from bisect import bisect_right
from typing import Any, Final

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

TEACHER: Final = "teacher"
"""Module name under which a teacher's costs stand."""


def in_backward() -> bool:
    """Whether this thread runs inside torch's autograd engine."""
    return torch._C._current_graph_task_id() != -1


class Modules:
    """Names the module that is running: forward from hooks, backward from the sequence numbers of autograd's nodes.

    Args:
        model: the model that a step trains.
        teacher: one that it only asks.
    """

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
        """Begin to see modules come and go, all over the process."""
        self._handles = (
            register_module_forward_pre_hook(self._enter),
            # always: checkpoint's early stop leaves the block by an exception
            register_module_forward_hook(self._leave, always_call=True),
        )

    def forget(self) -> None:
        """See them no longer."""
        for handle in self._handles:
            handle.remove()

    def entered(self) -> str:
        """The innermost module of the forward pass."""
        return self._forward[-1]

    def recomputed(self) -> str | None:
        """The innermost module that is being recomputed; None where none is."""
        return self._again[-1] if self._again else None

    def is_teacher(self, name: str) -> bool:
        """Whether a module belongs to the teacher."""
        return name in self._teacher

    def visible_keys(self, name: str) -> int | None:
        """Keys that a query of this module is counted with; None: all."""
        return self._visible_keys.get(name)

    def of_node(self) -> str:
        """The module whose forward made the node that autograd runs."""
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
