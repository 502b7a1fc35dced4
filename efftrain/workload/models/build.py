"""A model from its configuration, whatever kind it is, with fresh weights."""

import torch
from torch import nn

from efftrain.workload.models.huggingface import HuggingFaceLM, build_huggingface
from efftrain.workload.models.initialisation import initialise
from efftrain.workload.models.presets import AnyModel, HuggingFaceModel
from efftrain.workload.models.transformer import Transformer

Model = Transformer | HuggingFaceLM
"""What a run trains: token ids [B, T] and lengths [B] or None -> logits."""


def build_model(config: AnyModel, device: torch.device, *, seed: int | None = None) -> Model:
    """A model on `device`.

    Args:
        config: its shape.
        device: where its weights are.
        seed: of its weights; None leaves them as they come, for weights that are loaded.

    Raises:
        ValueError: a configuration that transformers cannot build.
    """
    if isinstance(config, HuggingFaceModel):
        return build_huggingface(config, device, seed=seed)
    with device:
        model = Transformer(config)
    if seed is not None:
        initialise(model, seed)
    return model


def blocks(model: Model) -> list[nn.Module]:
    """The layers that repeat, in order: what recomputation and sharding take apart."""
    return list(model.blocks)
