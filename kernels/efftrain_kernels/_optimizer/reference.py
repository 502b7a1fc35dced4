"""One step of AdamW in plain PyTorch, with the state that the kernels keep: the path of every device without them.

For float32 parameters it is operation by operation torch's `foreach=True`, and the same bit for bit. For the rest, what
is kept in fewer bytes is widened to float32, updated by the same list operations, and narrowed again with the very
random bits that the kernels take.
"""

# pyright: reportPrivateImportUsage=false
# (torch's list operations, torch._foreach_*, have no public name)

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import torch
from torch import Tensor

from efftrain_kernels._optimizer import formats


@dataclass(frozen=True, slots=True)
class Lists:
    """Tensors of one form: the i-th of each list belong to one parameter; a list that the form lacks is empty.

    Attributes:
        params: the parameters, updated in place.
        grads: their gradients.
        steps: float32 [] each, counted up.
        exp_avgs: first moments; float32, float64, bfloat16, or int8 codes.
        exp_avg_sqs: second moments; as the first ones, or uint8 codes.
        max_exp_avg_sqs: the largest second moments, for amsgrad.
        masters: float32 weights, or int16 remainders.
        exp_avg_scales: float32 [blocks] each, for 8-bit moments.
        exp_avg_sq_scales: as above.
        max_exp_avg_sq_scales: as above.
        rows: group of each parameter, a row of the settings.
        keys: of `_optimizer.formats.tensor_key`.
        offsets: number of the first element, where the tensors are a shard.
    """

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    steps: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    max_exp_avg_sqs: Sequence[Tensor]
    masters: Sequence[Tensor]
    exp_avg_scales: Sequence[Tensor]
    exp_avg_sq_scales: Sequence[Tensor]
    max_exp_avg_sq_scales: Sequence[Tensor]
    rows: Sequence[int]
    keys: Sequence[int]
    offsets: Sequence[int]

    def of_row(self, row: int) -> "Lists":
        """What belongs to the parameters of one group."""
        chosen = [i for i, other in enumerate(self.rows) if other == row]
        if len(chosen) == len(self.rows):
            return self
        lists = {f.name: getattr(self, f.name) for f in fields(self)}
        return Lists(**{name: [values[i] for i in chosen] if values else values for name, values in lists.items()})


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyper-parameters of one group, in the order of a row of settings; `max_norm` 0 is no clipping."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    sign: float
    max_norm: float


def norms(grads: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each gradient, in float32 or float64: [tensors]."""
    dtype = moment_dtype(grads[0].dtype)
    return torch.stack(torch._foreach_norm(list(grads), 2, dtype=dtype))


def total_norm(parts: Sequence[Tensor]) -> Tensor:
    """The norm of norms, on the device of the first part, in the order and type of `clip_grad_norm_`."""
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return torch.linalg.vector_norm(torch.cat([part.to(parts[0].device, dtype) for part in parts]))


def step(
    lists: Lists,
    settings: Tensor,
    norm: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    stochastic_rounding: bool,
) -> None:
    """Update one form's parameters and state in place.

    Args:
        lists: what to update; all tensors of a list have one device and type.
        settings: float64 [groups, at least 7], rows as of `Settings`.
        norm: [] of all gradients as they are; None where there is no clipping.
        grad_scale: [] that the gradients have been multiplied by.
        found_inf: [], not 0 to leave everything as it is.
        stochastic_rounding: whether bfloat16 parameters without master weights are rounded stochastically.
    """
    if found_inf is not None and found_inf.item():
        return
    rows = settings.tolist()
    for row in dict.fromkeys(lists.rows):
        group = Settings(*rows[row][:7])
        part = lists.of_row(row)
        _step(replace(part, grads=_gradients(part, group, norm, grad_scale)), group, stochastic_rounding)


def moment_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that tensors of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _gradients(lists: Lists, settings: Settings, norm: Tensor | None, grad_scale: Tensor | None) -> Sequence[Tensor]:
    dtype = moment_dtype(lists.params[0].dtype)
    grads = [grad if grad.dtype == dtype else grad.to(dtype) for grad in lists.grads]
    if grad_scale is not None:
        grads = torch._foreach_mul(grads, (1.0 / grad_scale.double()).to(grads[0].device, dtype))
    if norm is not None and settings.max_norm:
        norm = norm if grad_scale is None else norm / grad_scale.to(norm.device)
        clip = torch.clamp(settings.max_norm / (norm + 1e-6), max=1.0)
        grads = torch._foreach_mul(grads, clip.to(grads[0].device, dtype))
    return torch._foreach_neg(grads) if settings.sign < 0 else grads


def _step(lists: Lists, settings: Settings, stochastic_rounding: bool) -> None:
    """Operation by operation as torch.optim.adam._multi_tensor_adam with decoupled weight decay."""
    # alpha takes the overload that does not wrap a number once a tensor; torch does the same
    torch._foreach_add_(list(lists.steps), torch.tensor(1.0), alpha=1.0)
    counts = [int(step.item()) for step in lists.steps]
    values, grads = _read_params(lists), list(lists.grads)
    exp_avgs, exp_avg_sqs, largest = _read_moments(lists)
    beta1, beta2 = settings.beta1, settings.beta2
    if settings.weight_decay:
        torch._foreach_mul_(values, 1 - settings.lr * settings.weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    if largest:
        torch._foreach_maximum_(largest, exp_avg_sqs)
    roots = torch._foreach_sqrt(largest or exp_avg_sqs)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, settings.eps)
    step_sizes = [-(settings.lr / (1 - beta1**count)) for count in counts]
    torch._foreach_addcdiv_(values, exp_avgs, roots, step_sizes)
    del roots
    _write(lists, values, exp_avgs, exp_avg_sqs, largest, counts, stochastic_rounding)


def _read_params(lists: Lists) -> list[Tensor]:
    """The parameters as they are computed with; themselves where nothing has to be widened."""
    if not lists.masters:
        return _wide(lists.params)
    if lists.masters[0].dtype == torch.float32:
        return list(lists.masters)
    return [formats.join(p, low) for p, low in zip(lists.params, lists.masters, strict=True)]


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    dtype = moment_dtype(tensors[0].dtype) if tensors else torch.float32
    return [x if x.dtype == dtype else x.to(dtype) for x in tensors]


def _read_moments(lists: Lists) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    firsts, seconds, largest = lists.exp_avgs, lists.exp_avg_sqs, lists.max_exp_avg_sqs
    if firsts[0].dtype != torch.int8:
        return _wide(firsts), _wide(seconds), _wide(largest)
    return (
        list(map(formats.decode_first, firsts, lists.exp_avg_scales)),
        list(map(formats.decode_second, seconds, lists.exp_avg_sq_scales)),
        list(map(formats.decode_second, largest, lists.max_exp_avg_sq_scales)),
    )


def _write(
    lists: Lists,
    values: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    largest: list[Tensor],
    counts: list[int],
    stochastic_rounding: bool,
) -> None:
    """Narrow what was widened; what was updated in place is there already."""
    narrow = lists.exp_avgs[0].dtype in (torch.bfloat16, torch.int8)
    rounds = stochastic_rounding and lists.params[0].dtype == torch.bfloat16 and not lists.masters
    for i, count in enumerate(counts if narrow or rounds else ()):
        first, second = formats.random_words(lists.exp_avgs[i], lists.keys[i], count, lists.offsets[i])
        if rounds:
            lists.params[i].copy_(formats.stochastic_bfloat16(values[i], first & 0xFFFF))
        if narrow:
            _write_first(lists, i, exp_avgs[i], first >> 16)
            _write_second(lists.exp_avg_sqs[i], lists.exp_avg_sq_scales, i, exp_avg_sqs[i], second & 0xFFFF)
        if narrow and largest:
            _write_second(lists.max_exp_avg_sqs[i], lists.max_exp_avg_sq_scales, i, largest[i], second >> 16)
    if not rounds:
        _write_params(lists, values)


def _write_params(lists: Lists, values: list[Tensor]) -> None:
    if lists.masters and lists.masters[0].dtype == torch.int16:
        pairs = [formats.split(value) for value in values]
        torch._foreach_copy_(list(lists.masters), [low for _, low in pairs])
        values = [high for high, _ in pairs]
    if values[0] is not lists.params[0]:
        torch._foreach_copy_(list(lists.params), values)


def _write_first(lists: Lists, i: int, value: Tensor, random: Tensor) -> None:
    if lists.exp_avgs[i].dtype == torch.bfloat16:
        lists.exp_avgs[i].copy_(formats.stochastic_bfloat16(value, random))
    else:
        _copy(formats.encode_first(value, random), lists.exp_avgs[i], lists.exp_avg_scales[i])


def _write_second(target: Tensor, scales: Sequence[Tensor], i: int, value: Tensor, random: Tensor) -> None:
    if target.dtype == torch.bfloat16:
        target.copy_(formats.stochastic_bfloat16(value, random))
    else:
        _copy(formats.encode_second(value, random), target, scales[i])


def _copy(source: tuple[Tensor, Tensor], codes: Tensor, scales: Tensor) -> None:
    codes.copy_(source[0])
    scales.copy_(source[1])
