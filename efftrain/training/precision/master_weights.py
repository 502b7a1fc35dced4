"""AdamW for bfloat16 weights that keeps a float32 copy of each: what torch.optim.AdamW has no option for.

A bfloat16 number has 8 significant bits: an update below 1/256 of a weight, as nearly all are, would be rounded away.
The update is therefore made in float32, on the copy, and the weight is the copy rounded (arXiv:1710.03740,
section 3.1). The copies are part of the optimizer's state under `master`, so that whatever counts, keeps or restores
an optimizer's state does the same for them.
"""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_TENSORS = ("master", "exp_avg", "exp_avg_sq")


class MasterWeightsAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) whose moments and master weights are float32, whatever the parameters are.

    A parameter that is written from outside is overwritten by its copy at the next step, unless its state is deleted.

    Args:
        params: parameters, or groups of them, as for any torch optimizer.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: weights shrink by lr · weight_decay a step.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the copy of every parameter that has a gradient, and round it into the parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            if members:
                self._update(members, group)
        return loss

    def _update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state_of(p) for p in members]
        masters, exp_avgs, exp_avg_sqs = ([_local(state[name]) for state in states] for name in _TENSORS)
        beta1, beta2 = group["betas"]
        adamw(
            masters, [_local(p.grad).float() for p in members], exp_avgs, exp_avg_sqs, [],
            [state["step"] for state in states], amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        torch._foreach_copy_([_local(p) for p in members], masters)  # pyright: ignore[reportPrivateImportUsage]

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            like = {"dtype": torch.float32, "memory_format": torch.preserve_format}
            state["step"] = torch.tensor(0.0)  # on the host, as torch.optim.AdamW keeps it: no step waits for it
            state["master"] = parameter.detach().to(torch.float32, copy=True)
            state["exp_avg"] = torch.zeros_like(parameter, **like)
            state["exp_avg_sq"] = torch.zeros_like(parameter, **like)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; torch's own loading would round everything to the parameters' type."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            saved = state_dict["state"].get(number, {})
            for name in _TENSORS:
                if name in saved:
                    self.state[parameter][name] = saved[name].detach().to(parameter.device, torch.float32, copy=True)


def _local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor: the update is made element by element, and so needs no other."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
