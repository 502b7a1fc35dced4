"""AdamW whose steps are one launch for all parameters where there are kernels, and torch's list operations elsewhere.

The class checks, keeps state, and collects lists; `efftrain::adamw_step` does the arithmetic. It is
`torch.optim.AdamW` in numerics, arguments and state dictionary, with what that lacks: float32 moments for bfloat16
parameters, smaller moments and master weights, stochastic rounding, and clipping without a pass over the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from efftrain_kernels._optimizer import plan
from efftrain_kernels._optimizer import state as states
from efftrain_kernels._optimizer.checks import (
    Backend,
    MasterWeights,
    Options,
    StateDtype,
    check_grad,
    check_group,
    check_max_grad_norm,
    check_param,
)  # fmt: skip
from efftrain_kernels._optimizer.norm import grad_norm
from efftrain_kernels._optimizer.ops import adamw_step
from efftrain_kernels._optimizer.settings import SettingsCache

_TORCH_DEFAULTS = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
    "decoupled_weight_decay": True,
}  # fmt: skip


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    On CUDA, one Triton launch updates all parameters of a type, with betas, learning rate, step count, clipping and
    GradScaler's tensors read on the device: a step waits for nothing, recompiles nothing and can be captured in a CUDA
    graph after a first one outside of it. Elsewhere, and for float64 or strided parameters with gaps, plain PyTorch
    does the same; for float32 parameters bit for bit what `torch.optim.AdamW(foreach=True)` does.

    Moments are float32 for parameters of every smaller type (float64 for float64). Below float32 they are always
    rounded stochastically: with beta2 = 0.999 a step changes a second moment by a thousandth, half of what bfloat16
    can express and less than what 8 bits can, so that rounding to the nearest would stop it. All random bits come from
    a hash of seed, step, parameter and element: the same training gives the same weights, resumed or not. Elements are
    numbered modulo 2³² in the whole parameter where a DTensor is sharded by rows, and in the shard otherwise.

    Args:
        params: parameters, named parameters or groups of them, as for any torch optimizer.
        lr: learning rate, at least 0; a tensor on the parameters' device is never waited for. A tensor's value is
            used in float64, as a number's is.
        betas: decay of both moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: weights shrink by lr · weight_decay a step; at least 0.
        amsgrad: divide by the largest second moment so far (Reddi et al., arXiv:1904.09237).
        maximize: follow the gradient up instead of down.
        foreach: accepted because torch has it; nothing is chosen by it.
        fused: accepted because torch has it. True promises a GradScaler that this optimizer unscales and skips by
            itself, without waiting for the device; Lightning refuses to clip gradients of such an optimizer.
        capturable: accepted because torch has it; steps by kernels always are.
        differentiable: refused where True.
        max_grad_norm: gradients of all groups are scaled so that their joint L2 norm is at most this, as
            `torch.nn.utils.clip_grad_norm_` does, but without touching `.grad`; over all ranks for DTensors. None
            leaves them as they are.
        state_dtype: `float32`, `bfloat16`, or `int8` with one scale for 256 elements (tensors below 4096 elements keep
            float32; DTensors are refused).
        master_weights: for bfloat16 and float16 parameters, keep a `float32` copy, or with `split16` (bfloat16 alone)
            the 16 bits that are missing for one. What is written into a parameter from outside is overwritten by its
            float32 copy, or joined with its old 16 bits.
        stochastic_rounding: round bfloat16 parameters, without master weights, up or down at random by what is lost.
        seed: of all random bits, in [0, 2³²).
        backend: `auto` takes the kernels on CUDA, `reference` never, `triton` on CPU tensors too, in Triton's
            interpreter, if TRITON_INTERPRET=1 was set before triton was imported.

    Attributes:
        max_grad_norm: as given.
        grad_norm: 0-dim tensor, the joint L2 norm before clipping in the latest step; None without `max_grad_norm`.

    Raises:
        ValueError: a value out of range, no parameters, or options that do not go together.
        TypeError: a parameter that is not a real floating-point tensor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        state_dtype: StateDtype = "float32",
        master_weights: MasterWeights | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: Backend = "auto",
    ) -> None:
        check_max_grad_norm(max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self._options = Options(state_dtype, master_weights, stochastic_rounding, seed, backend)
        self._settings = SettingsCache()
        self._step_supports_amp_scaling = bool(fused)
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options = {
            "amsgrad": amsgrad, "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        check_group({**settings, **options})
        super().__init__(params, {**settings, **_TORCH_DEFAULTS, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as for any torch optimizer, after checking its values.

        Raises:
            ValueError: a value out of range, or a parameter that the options cannot serve.
            TypeError: a parameter that is not a real floating-point tensor.
        """
        check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                check_param(parameter, self._options)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        A GradScaler may leave `grad_scale` and `found_inf` on the optimizer: gradients are divided by the one, before
        they are clipped, and where the other is not 0 nothing at all is written. Gradients that are not numbers are
        then skipped rather than refused, because to look at them would mean to wait for the device.

        Args:
            closure: computes the loss and its gradients again; its result is returned.

        Raises:
            TypeError: a sparse or complex gradient; no parameter has been changed then.
            ValueError: a DTensor's gradient that is placed otherwise than the parameter, or, where kernels run, state
                of another shape than the parameter; as above.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = self._members()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        norm = None
        if self.max_grad_norm is not None and members:
            norm = grad_norm(members)
            self.grad_norm = norm if grad_scale is None else norm / grad_scale.to(norm.device)
        settings: dict[torch.device, Tensor] = {}
        for bucket in plan.buckets(members):
            device = bucket.tensors[0][0].device if bucket.kernels else torch.device("cpu")
            if device not in settings:
                settings[device] = self._settings.on(device, self.param_groups, self.max_grad_norm)
            random = (self._options.stochastic_rounding, self._options.seed)
            scalars = (settings[device], norm, grad_scale, found_inf)
            adamw_step(*bucket.tensors, *scalars, *bucket.numbers, *random, bucket.kernels)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this optimizer, or, with `state_dtype="float32"`, `torch.optim.AdamW` saved.

        Tensors are copied. Smaller moments are widened to float32; float32 ones are never narrowed.
        `max_grad_norm` and what follows it among the arguments are settings, not state, and stay as they are.

        Raises:
            ValueError: groups that do not fit, values out of range, or state in a format other than this optimizer's,
                for which there are `to_torch_state_dict` and `from_torch_state_dict`.
        """
        for group in state_dict["param_groups"]:
            check_group({**self.defaults, **group})

        def keep(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            return states.keep_tensors(self._parameters(), self._options, saved)

        # Registered last, so that it sees what the hooks of others have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def to_torch_state_dict(self) -> dict[str, Any]:
        """A copy of the state as `torch.optim.AdamW` saves it for float32 parameters, whatever the format here.

        Moments become float32. Master weights have no place there; they are what `master_parameters` returns.
        """
        params, saved = self._parameters(), self.state_dict()
        state = {number: states.to_torch(params[number], values) for number, values in saved["state"].items()}
        return {**saved, "state": state}

    def from_torch_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `torch.optim.AdamW` saved, or `to_torch_state_dict` returned, into this optimizer's format.

        Moments are rounded to the nearest value of the format. Master weights begin as the parameters are now.

        Raises:
            ValueError: as `load_state_dict`.
        """
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = dict(zip(numbers, self._parameters(), strict=False))
        state = {
            number: states.from_torch(params[number], values, self._options) if number in params else values
            for number, values in state_dict["state"].items()
        }
        self.load_state_dict({**state_dict, "state": state})

    def master_parameters(self) -> list[Tensor]:
        """Copies of all parameters, in order, in the precision in which they are trained: float32 or float64."""
        return [states.master_weight(p, self.state.get(p, {})) for p in self._parameters()]

    def __getstate__(self) -> dict[str, Any]:
        ours = {"max_grad_norm": self.max_grad_norm, "grad_norm": self.grad_norm, "_options": asdict(self._options)}
        return {**super().__getstate__(), **ours, "_step_supports_amp_scaling": self._step_supports_amp_scaling}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settings = SettingsCache()
        if isinstance(self._options, dict):
            self._options = Options(**self._options)
        for group in self.param_groups:
            for option, value in _TORCH_DEFAULTS.items():  # a group that an older torch saved
                group.setdefault(option, value)
            group["decoupled_weight_decay"] = True
            for parameter in group["params"]:
                if parameter in self.state:
                    self.state[parameter] = states.release(parameter, self.state[parameter], self._options)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _members(self) -> list[plan.Member]:
        """Parameters with a gradient, in order, after all gradients have been checked."""
        found = [
            (number, row, parameter)
            for number, (row, parameter) in enumerate(
                (row, parameter) for row, group in enumerate(self.param_groups) for parameter in group["params"]
            )
            if parameter.grad is not None
        ]
        for _, _, parameter in found:
            check_grad(parameter.grad)
        return [self._member(parameter, row, number) for number, row, parameter in found]

    def _member(self, parameter: Tensor, row: int, number: int) -> plan.Member:
        amsgrad, state, grad = self.param_groups[row]["amsgrad"], self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state.update(states.fresh_state(parameter, self._options))
        if amsgrad and "max_exp_avg_sq" not in state:
            state.update(states.fresh_moment(parameter, "max_exp_avg_sq", self._options))
        member = plan.member(parameter, grad, state, row, number, amsgrad, self._options)
        if not member.kernels or plan.fits(member.param, member.state):
            return member
        states.settle(parameter, state, self._options)
        return plan.member(parameter, grad, state, row, number, amsgrad, self._options)
