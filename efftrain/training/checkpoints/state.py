"""A training's whole state as torch.distributed.checkpoint keeps it, and back, for one process and for sharded ranks.

Batches are a function of the step, so the step is the data's cursor.
"""

import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from efftrain.training.checkpoints.folder import CheckpointError, CheckpointInfo
from efftrain.training.horizon import Horizon
from efftrain.training.optimizer import build_optimizer
from efftrain.training.precision.autocast import prepare_precision
from efftrain.training.session import Session
from efftrain.workload.models.build import build_model

_MOMENTS: Final = "optimizer.state."


def reshape(session: Session, info: CheckpointInfo) -> None:
    """Give a fresh session the shape of a checkpoint that was made after pruning; its weights are yet to be loaded."""
    if info.facts["pruned"] and not is_pruned(session):
        smaller = build_model(info.model, session.device)
        prepare_precision(smaller, session.config.precision)
        session.use_model(smaller, build_optimizer(smaller, session.config.optimizer, session.config.precision))


def resume(
    session: Session, info: CheckpointInfo, horizon: Horizon, *, rank: int = 0, group: dist.ProcessGroup | None = None
) -> int:
    """Bring a training back; to be called last, because random state is part of it.

    Args:
        session: fresh, or warmed up; of the configuration that the checkpoint was made with.
        info: the checkpoint.
        horizon: its best loss and its patience are brought back.
        rank: of this process.
        group: of all ranks; None where there is one process.

    Returns:
        The first step to be made.

    Raises:
        CheckpointError: the checkpoint is of another model, or cannot be read.
    """
    reshape(session, info)
    state = _state(session, rank)
    _load(state, info, group)
    set_state_dict(
        session.model, session.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),  # parameters may have no moments; names of weights were compared
    )  # fmt: skip
    if session.scaler:
        session.scaler.load_state_dict(state["scaler"])
    horizon.best, horizon.waited = info.facts["horizon"]["best"], info.facts["horizon"]["waited"]
    _set_random_state(state["random"][str(rank)], session.device)
    return info.step + 1


def full_state(session: Session, rank: int) -> dict[str, Any]:
    """Everything that the next step depends on, with parameters under their names in the model.

    An optimizer that has made no step yet, as where fp16 has skipped all so far, has no moments; it is left like that.
    """
    no_step = not session.optimizer.state
    state = _state(session, rank)
    if no_step:
        session.optimizer.state.clear()
        state["optimizer"]["state"] = {}
    return state


def _state(session: Session, rank: int) -> dict[str, Any]:
    """The same with moments for every parameter: torch makes a step without gradients where there were none at all."""
    model, optimizer = get_state_dict(session.model, session.optimizer)
    scaler = {"scaler": session.scaler.state_dict()} if session.scaler else {}
    return {"model": model, "optimizer": optimizer, **scaler, "random": {str(rank): _random_state(session.device)}}


def _random_state(device: torch.device) -> dict[str, Any]:
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state(), **cuda}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _load(state: dict[str, Any], info: CheckpointInfo, group: dist.ProcessGroup | None) -> None:
    """Fill `state` in place.

    Raises:
        CheckpointError: see `resume`.
    """
    expect_one_process(group)
    try:
        reader = FileSystemReader(info.folder)
        metadata = reader.read_metadata()
        _check_names(state["model"], metadata, info)
        _drop_unknown(state["optimizer"]["state"], metadata)
        load(state, storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{info.folder}: cannot be loaded: {reason(error)}") from None


def _check_names(weights: Mapping[str, Tensor], metadata: Metadata, info: CheckpointInfo) -> None:
    """Raise a CheckpointError where weights differ in name or shape; torch passes over those that nobody asks for."""
    stored = {
        name.removeprefix("model."): tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(stored.keys() | expected.keys()):
        there, here = stored.get(name), expected.get(name)
        if there != here:
            raise CheckpointError(
                f"{info.folder}: is of another model: {name} is {there or 'not there'}, here {here or 'unknown'}"
            )


def _drop_unknown(moments: dict[str, Any], metadata: Metadata) -> None:
    """Ask for no moments of parameters that had none: those that had no gradient by then."""
    stored = {name.rpartition(".")[0] for name in metadata.state_dict_metadata}
    for name in moments.keys() - {name.removeprefix(_MOMENTS) for name in stored if name.startswith(_MOMENTS)}:
        del moments[name]


def is_pruned(session: Session) -> bool:
    """Whether the session has come to its smaller model."""
    return session.config.prune is not None and session.model.config == session.config.pruned_model


def expect_one_process(group: dist.ProcessGroup | None) -> None:
    """A process alone is what we want where there is no group; torch warns of it at each save."""
    if group is None:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def reason(error: BaseException) -> str:
    """What went wrong, in one line: of several ranks the first that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def save_weights(session: Session, path: Path) -> None:
    """Write the model's weights for a student; the file is there whole or not at all. Every rank calls it."""
    whole = {name: session.ranks.whole(value) for name, value in session.model.state_dict().items()}
    if session.ranks.rank == 0:
        temporary = path.with_suffix(".tmp")
        torch.save(whole, temporary)
        os.replace(temporary, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from `save_weights`'s file.

    Raises:
        ValueError: the file is not there, or holds another shape.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: no weights for this model: {str(error).splitlines()[0]}") from None
