"""The state of one parameter: how it begins, how it is loaded, and how it goes to torch.optim.AdamW and comes back.

The keys are torch's: step, exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq. Beside them stand what torch has
not: `exp_avg_scale` and its like for 8-bit moments, `master` for float32 weights, `remainder` for the 16 bits below a
bfloat16 weight.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from efftrain_kernels._optimizer import formats
from efftrain_kernels._optimizer.checks import Options
from efftrain_kernels._optimizer.plan import is_distributed, local, uses_kernels
from efftrain_kernels._optimizer.reference import moment_dtype
from efftrain_kernels._optimizer.tables import refuse_capture

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_SMALL = (torch.bfloat16, torch.float16)
_MASTERS = {"float32": ("master", torch.float32), "split16": ("remainder", torch.int16)}


def fresh_state(param: Tensor, options: Options) -> dict[str, Tensor]:
    """State before the first step; master weights begin as the parameter.

    Args:
        param: a parameter, or a DTensor, whose states become DTensors of the same placement.
        options: of the optimizer.
    """
    state = {"step": torch.tensor(0.0, device=_step_device(param, options))}
    for key in MOMENTS[:2]:
        state |= fresh_moment(param, key, options)
    return state | _fresh_master(param, options)


def fresh_moment(param: Tensor, key: str, options: Options) -> dict[str, Tensor]:
    """One moment, 0 everywhere, with its scales if it has any."""
    state = {key: torch.zeros_like(param, dtype=_stored_dtype(param, key, options), requires_grad=False)}
    if state[key].dtype in (torch.int8, torch.uint8):
        state[f"{key}_scale"] = torch.zeros(formats.scale_count(param.numel()), device=param.device)
    return state


def keep_tensors(params: list[Tensor], options: Options, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check a dictionary, and wrap its tensors so that torch's load_state_dict casts none.

    Raises:
        ValueError: state in another format than this optimizer's, of another shape, or with a part of it missing.
    """
    numbers = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
    if len(numbers) == len(params):  # torch says what is wrong otherwise
        for number, param in zip(numbers, params, strict=True):
            saved = state_dict["state"].get(number, {})
            _check_complete(number, param, saved)
            _check(param, saved, options)
    return {**state_dict, "state": {n: {k: _Uncast(v) for k, v in s.items()} for n, s in state_dict["state"].items()}}


def release(param: Tensor, state: dict[str, Any], options: Options) -> dict[str, Any]:
    """A copy of a loaded state, each tensor of the type and on the device that a step expects."""
    return {key: _place(param, key, v.value, options) if isinstance(v, _Uncast) else v for key, v in state.items()}


def settle(param: Tensor, state: dict[str, Any], options: Options) -> None:
    """Bring a state to where kernels read it: the parameter's device and strides, which `model.to` may have changed.

    Raises:
        ValueError: state of another shape than its parameter; nothing has been changed then.
        RuntimeError: a CUDA graph is being captured, which would do this at each replay.
    """
    for key in (*MOMENTS, *(key for key, _ in _MASTERS.values())):
        if key in state and local(state[key]).shape != local(param).shape:
            raise ValueError(
                f"{key} has the shape {list(state[key].shape)}, its parameter {list(param.shape)}; "
                "delete the parameter's state to begin it again, or make a new optimizer"
            )
    refuse_capture(param.device)
    coded = [key for key in MOMENTS if f"{key}_scale" in state]
    if any(state[key].stride() != param.stride() for key in coded):  # scales are of runs of memory: code anew
        anew = from_torch(param, to_torch(param, state), options)
        state.update({name: anew[name] for key in coded for name in (key, f"{key}_scale")})
    state.update({key: _place(param, key, value, options) for key, value in state.items()})


def to_torch(param: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """The state as torch.optim.AdamW has it for a float32 parameter, without what it has no name for."""
    plain = {"step": state["step"].clone()}
    for key in MOMENTS:
        if key in state:
            decode = formats.decode_first if key == "exp_avg" else formats.decode_second
            scales = state.get(f"{key}_scale")
            value, dtype = state[key], moment_dtype(param.dtype)
            plain[key] = value.to(dtype, copy=True) if scales is None else decode(value, scales)
    return plain


def from_torch(param: Tensor, state: dict[str, Any], options: Options) -> dict[str, Any]:
    """The state of torch.optim.AdamW in this optimizer's format, rounded to the nearest; masters as the parameter."""
    ours = {key: value for key, value in state.items() if key not in MOMENTS}
    for key in MOMENTS:
        if key not in state:
            continue
        dtype = _stored_dtype(param, key, options)
        if dtype not in (torch.int8, torch.uint8):
            ours[key] = state[key].to(dtype)
            continue
        encode = formats.encode_first if key == "exp_avg" else formats.encode_second
        value = torch.empty_like(param, dtype=torch.float32, requires_grad=False).copy_(state[key])
        ours[key], ours[f"{key}_scale"] = encode(value, formats.HALF)
    return ours | (_fresh_master(param, options) if state else {})


def master_weight(param: Tensor, state: dict[str, Any]) -> Tensor:
    """The weight in the precision in which it is trained: float32, or float64 for a float64 parameter."""
    if "master" in state:
        return state["master"].clone()
    if "remainder" not in state:
        return param.detach().to(moment_dtype(param.dtype), copy=True)
    if not is_distributed(param):
        return formats.join(param.detach(), state["remainder"])
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    shard = formats.join(local(param.detach()), local(state["remainder"]))
    shape, stride = param.shape, param.stride()
    return DTensor.from_local(shard, param.device_mesh, param.placements, run_check=False, shape=shape, stride=stride)


class _Uncast:
    """A value on its way through torch's load_state_dict, which would cast a tensor to its parameter's type."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _stored_dtype(param: Tensor, key: str, options: Options) -> torch.dtype:
    if param.dtype == torch.float64:
        return torch.float64
    if options.state_dtype == "bfloat16":
        return torch.bfloat16
    if options.state_dtype == "int8" and param.numel() >= formats.SMALLEST_INT8:
        return torch.int8 if key == "exp_avg" else torch.uint8
    return torch.float32


def _fresh_master(param: Tensor, options: Options) -> dict[str, Tensor]:
    if options.master_weights is None or param.dtype not in _SMALL:
        return {}
    key, dtype = _MASTERS[options.master_weights]
    master = torch.zeros_like(param, dtype=dtype, requires_grad=False)
    return {key: master.copy_(param.detach()) if key == "master" else master}


def _step_device(param: Tensor, options: Options) -> torch.device:
    """Where the count lives: beside the kernels, or on the CPU, where reading it waits for nothing."""
    return param.device if uses_kernels(param, options) else torch.device("cpu")


def _check_complete(number: int, param: Tensor, state: dict[str, Any]) -> None:
    missing = [key for key in ("step", *MOMENTS[:2]) if key not in state]
    if state and missing:
        raise ValueError(
            f"state_dict: parameter {number}, of shape {list(param.shape)}, has no {' and no '.join(missing)}; "
            "expected step, exp_avg and exp_avg_sq, as AdamW saves them"
        )


def _check(param: Tensor, state: dict[str, Any], options: Options) -> None:
    if not state:
        return
    for key in MOMENTS:
        if key in state:
            _check_moment(param, key, state, options)
    expected = set(_fresh_master(param, options)) if options.master_weights else set()
    found = {key for key, _ in _MASTERS.values() if key in state}
    if found != expected:
        raise ValueError(
            f"state_dict: a parameter has {_listed(found)} master weights saved, but master_weights="
            f"{options.master_weights!r}; convert with to_torch_state_dict() and from_torch_state_dict()"
        )


def _listed(found: set[str]) -> str:
    return " and ".join(repr(name) for name, (key, _) in _MASTERS.items() if key in found) or "no"


def _check_moment(param: Tensor, key: str, state: dict[str, Any], options: Options) -> None:
    value, dtype = state[key], _stored_dtype(param, key, options)
    if value.shape != param.shape or (is_distributed(param) and not is_distributed(value)):
        raise ValueError(
            f"state_dict: {key} is a {type(value).__name__} of shape {list(value.shape)}, "
            f"its parameter a {type(param).__name__} of shape {list(param.shape)}"
        )
    scales = state.get(f"{key}_scale")
    count = formats.scale_count(param.numel())
    if dtype in (torch.int8, torch.uint8) and value.dtype == dtype and (scales is None or scales.shape != (count,)):
        raise ValueError(f"state_dict: {key}_scale must have {count} elements for a parameter of {param.numel()}")
    if value.dtype == dtype or (dtype in (torch.float32, torch.float64) and value.is_floating_point()):
        if dtype in (torch.int8, torch.uint8) and value.stride() != param.stride():
            raise ValueError(f"state_dict: 8-bit {key} has other strides than its parameter; convert as float32")
        return
    raise ValueError(
        f"state_dict: {key} is {value.dtype}, but this optimizer keeps {dtype} (state_dtype="
        f"{options.state_dtype!r}); convert with to_torch_state_dict() and from_torch_state_dict()"
    )


def _place(param: Tensor, key: str, value: Any, options: Options) -> Any:
    if key == "step":
        count = value if isinstance(value, Tensor) else torch.tensor(float(value))
        return count.to(_step_device(param, options), torch.float32, copy=True)
    if not isinstance(value, Tensor):
        return value
    dtype = _stored_dtype(param, key, options) if key in MOMENTS else value.dtype
    if value.shape != param.shape or (is_distributed(value) and not _placed_alike(param, value)):
        return value.to(param.device, dtype, copy=True)
    return torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)


def _placed_alike(param: Any, value: Any) -> bool:
    return is_distributed(param) and (value.device_mesh, value.placements) == (param.device_mesh, param.placements)
