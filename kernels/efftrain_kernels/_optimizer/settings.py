"""Hyper-parameters of all groups as one float64 tensor on the device that reads them."""

from typing import Any

import torch
from torch import Tensor

from efftrain_kernels._optimizer import layout
from efftrain_kernels._optimizer.tables import capturing

_Values = list[list[float | None]]  # None stands where a tensor's value is copied in


class SettingsCache:
    """Keeps the tensor of each device and uploads what has changed; a number that is a tensor is copied every step.

    The tensor that a CUDA graph was captured with is the graph's from then on: eager steps neither write it, so that
    a replay has the numbers of its capture, nor believe what a replay may have written.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.device, tuple[_Values, Tensor]] = {}
        self._captured: list[Tensor] = []

    def on(self, device: torch.device, groups: list[dict[str, Any]], max_norm: float | None) -> Tensor:
        """The settings of all groups: float64 [groups, SETTING_COLUMNS], not to be changed.

        Args:
            device: where they are read.
            groups: parameter groups.
            max_norm: what the norm of the gradients is limited to; None for no limit.
        """
        mixed = [[_readable(x, device) for x in _row(group, max_norm)] for group in groups]
        values = [[None if isinstance(x, Tensor) else float(x) for x in row] for row in mixed]
        settings = self._constant(device, values)
        for i, row in enumerate(mixed):
            for j, x in enumerate(row):
                if isinstance(x, Tensor):
                    settings[i, j].copy_(x.detach().squeeze(), non_blocking=True)
        return settings

    def _constant(self, device: torch.device, values: _Values) -> Tensor:
        if device.type == "cpu" or torch.compiler.is_compiling():
            return _numbers(values).to(device)
        during = capturing(device)
        known, settings = self._kept.pop(device, (None, None))
        if settings is None or len(settings) != len(values):
            settings = torch.empty(len(values), layout.SETTING_COLUMNS, dtype=torch.float64, device=device)
        if known != values:
            _upload(values, settings)
        if during:
            self._captured.append(settings)
        else:
            self._kept[device] = values, settings
        return settings


def _row(group: dict[str, Any], max_norm: float | None) -> list[Any]:
    """In the order of the columns of `_optimizer.layout`."""
    sign = -1.0 if group["maximize"] else 1.0
    return [group["lr"], *group["betas"], group["eps"], group["weight_decay"], sign, max_norm or 0.0, 0.0]


def _readable(x: Any, device: torch.device) -> Any:
    """A tensor on the CPU as a number, where a copy of it to the device would make the host wait."""
    return x.item() if isinstance(x, Tensor) and x.is_cpu and device.type != "cpu" else x


def _upload(values: _Values, settings: Tensor) -> None:
    """Without waiting. A captured copy would read host memory again at each replay, so a capture fills in numbers."""
    if not capturing(settings.device):
        settings.copy_(_numbers(values).pin_memory(), non_blocking=True)
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            settings[i, j].fill_(value or 0.0)


def _numbers(values: _Values) -> Tensor:
    return torch.tensor([[value or 0.0 for value in row] for row in values], dtype=torch.float64)
