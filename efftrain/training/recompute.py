"""Activation recomputation: which of a block's activations are kept for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from efftrain.training.config import Recompute
from efftrain.workload.models.attention import ATTENTION_OPS
from efftrain.workload.models.build import Model
from efftrain.workload.models.huggingface import HuggingFaceLM
from efftrain.workload.models.transformer import Block, Transformer, call_block


def apply_recompute(model: Model, recompute: Recompute) -> None:
    """Set how `model` calls its blocks.

    With `full`, only each block's input is kept (arXiv:1604.06174); with `selective`, attention's output too
    (arXiv:2205.05198, section 5). torch stops computing again as soon as the last kept activation is back, so a
    block's closing matrix product is not repeated.

    Raises:
        ValueError: a Hugging Face model whose layers cannot be computed again.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    if recompute == "selective":
        settings["context_fn"] = _keep_attention
    match model:
        case Transformer():
            settings["preserve_rng_state"] = any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout))
            model.run_block = call_block if recompute == "none" else partial(_recomputed, settings)
        case HuggingFaceLM():
            _set_layers(model, None if recompute == "none" else settings)


def _recomputed(settings: dict[str, Any], block: Block, *inputs: Tensor | None) -> Tensor:
    out = checkpoint(block, *inputs, **settings)
    assert isinstance(out, torch.Tensor)
    return out


def _set_layers(model: HuggingFaceLM, settings: dict[str, Any] | None) -> None:
    inner: Any = model.model
    if settings is None:
        if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
            _either(inner, "activation_checkpointing_disable", "gradient_checkpointing_disable")()
        return
    if not inner.supports_gradient_checkpointing:
        raise ValueError(f"{type(inner).__name__} cannot recompute its activations: use recompute 'none'")
    _either(inner, "activation_checkpointing_enable", "gradient_checkpointing_enable")(settings)


def _either(model: Any, name: str, before: str) -> Callable[..., None]:
    """The method under its name of transformers 5.23, or the one that it had before."""
    return getattr(model, name, None) or getattr(model, before)


def _keep_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE
