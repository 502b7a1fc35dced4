"""The weights of a checkpoint in a model that is trained further, on other text or for another task."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from efftrain.training.checkpoints.fit import keeps_head
from efftrain.training.checkpoints.folder import CheckpointError, CheckpointInfo
from efftrain.training.checkpoints.state import expect_one_process, reason
from efftrain.training.lora import merged_weights
from efftrain.workload.models.build import Model

CLASSIFIER: Final = "classifier."
HEADS: Final = ("lm_head.", CLASSIFIER)
"""Layers that may be fresh where the checkpoint has another head."""

_PREFIX: Final = "model."


def load_start(model: Model, info: CheckpointInfo, classes: Sequence[str] = ()) -> None:
    """Fill a model with the weights of a checkpoint; a head that the checkpoint does not have stays as it is.

    So does one over classes of other names, or in another order: what the checkpoint's has learned is not about these.

    Adapters of the checkpoint are multiplied out: what it computed with them is where this training begins. To be
    called on a whole model, before adapters, sharding, or another number format; each rank reads for itself.

    Args:
        model: with fresh weights; changed in place.
        info: the checkpoint, which `efftrain.training.checkpoints.fit.check_start` has let pass.
        classes: names of the classes that the model's head tells apart, in its order, where it has such a head.

    Raises:
        CheckpointError: the checkpoint is of another model, or cannot be read.
    """
    weights = _stored_weights(info)
    if info.config.lora:
        weights = merged_weights(weights, info.config.lora, model)
    state = model.state_dict()
    for name in sorted(weights.keys() | state.keys()):
        stored, target = weights.get(name), state.get(name)
        if not name.startswith(HEADS) and _shape(stored) != _shape(target):
            raise CheckpointError(
                f"{info.folder}: is of another model: {name} is {_shape(stored)}, here {_shape(target)}"
            )
    usable = {n: w for n, w in weights.items() if not n.startswith(CLASSIFIER) or keeps_head(info, classes)}
    for name, target in state.items():
        if name in usable and usable[name].shape == target.shape:
            target.copy_(usable[name])


def _shape(weight: Tensor | None) -> str:
    return "not there" if weight is None else str(tuple(weight.shape))


def _stored_weights(info: CheckpointInfo) -> dict[str, Tensor]:
    """All weights of a checkpoint by their names in the model, in host memory."""
    expect_one_process(None)
    try:
        reader = FileSystemReader(info.folder)
        stored = reader.read_metadata().state_dict_metadata
        weights = {
            name.removeprefix(_PREFIX): torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        load({_PREFIX.rstrip("."): weights}, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{info.folder}: cannot be loaded: {reason(error)}") from None
    return weights
