"""Weights on disk: what a distilled run's teacher leaves for it."""

import os
from pathlib import Path

import torch

from efftrain.training.session import Session
from efftrain.workload.models.transformer import Transformer


def save_weights(session: Session, path: Path) -> None:
    """Write the model's weights; the file is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(session.model.state_dict(), temporary)
    os.replace(temporary, path)


def load_weights(model: Transformer, path: Path) -> None:
    """Fill `model` from `save_weights`'s file.

    Raises:
        ValueError: the file is not there, or holds another shape.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: no weights for this model: {str(error).splitlines()[0]}") from None
