"""AdamW in plain PyTorch: torch's numerics for float32, float32 moments for everything smaller.

`torch.optim.AdamW` keeps the moments of a bfloat16 parameter in bfloat16, where an update of less than 1/256 of a
moment is lost, and casts float32 moments down again when a checkpoint is loaded. This one does neither. All
parameters of one device and type are updated by a handful of list operations, in the order of torch's
`foreach=True`, so that float32 training is the same bit for bit.
"""

# pyright: reportPrivateImportUsage=false
# (torch's list operations, torch._foreach_*, have no public name)

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

_TORCH_OPTIONS = (
    "amsgrad", "maximize", "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay",
)  # fmt: skip
_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Args:
        params: parameters, named parameters or groups of them, as for any torch optimizer.
        lr: learning rate, at least 0.
        betas: decay of both moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: weights shrink by lr · weight_decay a step; at least 0.
        max_grad_norm: gradients of all groups are scaled so that their joint L2 norm is at most this, as
            `torch.nn.utils.clip_grad_norm_` does, but without touching `.grad`; None leaves them as they are.

    Attributes:
        max_grad_norm: as given.
        grad_norm: 0-dim tensor, the joint L2 norm before clipping in the latest step; None without `max_grad_norm`.

    Raises:
        ValueError: a value out of range, or no parameters.
        TypeError: a parameter that is not a real floating-point tensor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, or None for no clipping, not {max_grad_norm}")
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as for any torch optimizer, after checking its values.

        Raises:
            ValueError: a value out of range.
            TypeError: a parameter that is not a real floating-point tensor.
        """
        _check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                shape = list(parameter.shape)
                self.param_groups.pop()
                raise TypeError(f"params: a parameter of shape {shape} is {parameter.dtype}; expected real numbers")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients again; its result is returned.

        Raises:
            TypeError: a sparse or complex gradient; no parameter has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(group, self._buckets(group)) for group in self.param_groups]
        clip = self._clip_coefficient([bucket for _, buckets in groups for bucket in buckets])
        for group, buckets in groups:
            for bucket in buckets:
                _update(bucket, [self.state[p] for p in bucket], group, clip)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this optimizer or `torch.optim.AdamW` saved; float32 moments stay float32.

        Tensors are copied. `max_grad_norm` is a setting, not state, and stays as it is.

        Raises:
            ValueError: groups that do not fit, or state of an AMSGrad or maximising optimizer.
        """
        for group in state_dict["param_groups"]:
            for option in ("amsgrad", "maximize"):
                if group.get(option):
                    raise ValueError(f"state_dict was saved with {option}=True, which this AdamW does not have")
        # Registered last, so that it sees what the hooks of others have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(_keep_tensors)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "grad_norm": self.grad_norm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for option in _TORCH_OPTIONS:  # a group that torch.optim.AdamW saved
                group.pop(option, None)
            for parameter in group["params"]:
                values = self.state.get(parameter, {})
                values.update({key: _release(parameter, key, value) for key, value in values.items()})

    def _buckets(self, group: dict[str, Any]) -> list[list[Tensor]]:
        """Parameters with a gradient by device and type, in the group's order; state is made where there is none."""
        buckets: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            _check_gradient(parameter.grad)
            if not self.state[parameter]:
                self.state[parameter] = _fresh_state(parameter)
            buckets[parameter.device, parameter.dtype].append(parameter)
        return list(buckets.values())

    def _clip_coefficient(self, buckets: list[list[Tensor]]) -> Tensor | None:
        """What gradients are multiplied by; a tensor, so that no device is waited for."""
        if self.max_grad_norm is None or not buckets:
            return None
        dtype = reduce(torch.promote_types, (_moment_dtype(bucket[0]) for bucket in buckets))
        norms = [n for b in buckets for n in torch._foreach_norm(_gradients(b), 2, dtype=_moment_dtype(b[0]))]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, dtype) for n in norms]))
        self.grad_norm = norm
        return torch.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0)


class _Kept:
    """A tensor on its way through torch's load_state_dict, which would cast it to its parameter's type."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _keep_tensors(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    kept = {
        index: {key: _Kept(value) if isinstance(value, Tensor) else value for key, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": kept}


def _release(parameter: Tensor, key: str, value: Any) -> Any:
    if not isinstance(value, _Kept):
        return value
    if key == "step":
        return value.tensor.to("cpu", torch.float32, copy=True)
    dtype = _moment_dtype(parameter) if key in _MOMENTS else value.tensor.dtype
    return value.tensor.to(parameter.device, dtype, copy=True)


def _update(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any], clip: Tensor | None) -> None:
    """One step for parameters of one device and type, operation by operation as torch's foreach AdamW."""
    lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
    dtype = _moment_dtype(params[0])
    exp_avgs, exp_avg_sqs = ([state[key] for state in states] for key in _MOMENTS)
    steps = [state["step"] for state in states]
    grads = [grad.to(dtype) for grad in _gradients(params)]
    values = [p.to(dtype) for p in params]  # the parameters themselves where they have this type
    if clip is not None:
        grads = torch._foreach_mul(grads, clip.to(grads[0].device, dtype))
    torch._foreach_add_(steps, 1.0)
    if group["weight_decay"]:
        torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    del grads
    counts = [step.item() for step in steps]
    roots = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(values, exp_avgs, roots, [-(lr / (1 - beta1**count)) for count in counts])
    if values[0] is not params[0]:
        torch._foreach_copy_(params, values)


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    moments = {key: torch.zeros_like(parameter, dtype=_moment_dtype(parameter)) for key in _MOMENTS}
    return {"step": torch.tensor(0.0), **moments}  # on the CPU, as torch's, so that reading it never waits


def _moment_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _check_gradient(grad: Tensor) -> None:
    if grad.is_sparse or grad.layout != torch.strided:
        raise TypeError(f"a gradient of shape {list(grad.shape)} is sparse; use torch.optim.SparseAdam for it")
    if grad.is_complex():
        raise TypeError(f"a gradient of shape {list(grad.shape)} is complex; optimize its real view instead")


def _check_settings(group: dict[str, Any]) -> None:
    for name in ("lr", "eps", "weight_decay"):
        value = group[name]
        if not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")
    betas = group["betas"]
    if len(betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), not {betas!r}")
