"""AdamW as torch operators: `efftrain::adamw_norm` and `efftrain::adamw_step`.

As operators they are one node each for torch.compile, for profilers and for counters, whatever runs inside: the
Triton kernels, or the reference. They know nothing of optimizers; the class in `_adamw` collects the lists.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from efftrain_kernels._optimizer import reference, tables
from efftrain_kernels._optimizer.formats import tensor_key
from efftrain_kernels.costs import adamw_flops

_LIBRARY = torch.library.Library("efftrain", "FRAGMENT")
_MUTABLE = (
    "params", "grads", "steps", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters", "exp_avg_scales",
    "exp_avg_sq_scales", "max_exp_avg_sq_scales",
)  # fmt: skip
_ARGUMENTS = ", ".join(
    f"Tensor[] {name}" if name == "grads" else f"Tensor({letter}!)[] {name}"
    for letter, name in zip("abcdefghij", _MUTABLE, strict=True)
)
_LIBRARY.define(
    f"adamw_step({_ARGUMENTS}, Tensor settings, Tensor? norm, Tensor? grad_scale, Tensor? found_inf, int[] rows, "
    "int[] numbers, int[] offsets, bool stochastic_rounding, int seed, bool kernels) -> ()"
)
_LIBRARY.define("adamw_norm(Tensor[] grads, bool kernels) -> Tensor")


def _step(
    params: Sequence[Tensor], grads: Sequence[Tensor], steps: Sequence[Tensor], exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor], max_exp_avg_sqs: Sequence[Tensor], masters: Sequence[Tensor],
    exp_avg_scales: Sequence[Tensor], exp_avg_sq_scales: Sequence[Tensor], max_exp_avg_sq_scales: Sequence[Tensor],
    settings: Tensor, norm: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None, rows: Sequence[int],
    numbers: Sequence[int], offsets: Sequence[int], stochastic_rounding: bool, seed: int, kernels: bool,
) -> None:  # fmt: skip
    keys = [tensor_key(seed, number) for number in numbers]
    lists = reference.Lists(
        params, grads, steps, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters, exp_avg_scales, exp_avg_sq_scales,
        max_exp_avg_sq_scales, rows, keys, offsets,
    )  # fmt: skip
    take = tables.step if kernels else reference.step
    take(lists, settings, norm, grad_scale, found_inf, stochastic_rounding)
    if kernels:  # what PyTorch's own operators do by themselves: a backward pass notices that its inputs have changed
        torch.autograd.graph.increment_version(params)


def _norm(grads: Sequence[Tensor], kernels: bool) -> Tensor:
    return tables.norm(grads) if kernels else reference.norms(grads)


def _fake_norm(grads: Sequence[Tensor], kernels: bool) -> Tensor:
    if kernels:
        return grads[0].new_empty(1, dtype=torch.float32)
    return grads[0].new_empty(len(grads), dtype=reference.moment_dtype(grads[0].dtype))


_LIBRARY.impl("adamw_step", _step, "CompositeExplicitAutograd")
_LIBRARY.impl("adamw_norm", _norm, "CompositeExplicitAutograd")
torch.library.register_fake("efftrain::adamw_step", lambda *_: None, lib=_LIBRARY)
torch.library.register_fake("efftrain::adamw_norm", _fake_norm, lib=_LIBRARY)

adamw_step = torch.ops.efftrain.adamw_step
adamw_norm = torch.ops.efftrain.adamw_norm
if adamw_step not in flop_registry:  # a module that is loaded again
    register_flop_formula([adamw_step, adamw_norm])(adamw_flops)
