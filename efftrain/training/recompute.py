"""Activation recomputation: which of a block's activations are kept for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from efftrain.training.config import Recompute
from efftrain.workload.models.attention import ATTENTION_OPS
from efftrain.workload.models.transformer import Block, Transformer, call_block


def apply_recompute(model: Transformer, recompute: Recompute) -> None:
    """Set how `model` calls its blocks.

    With `full`, only each block's input is kept (arXiv:1604.06174); with `selective`, attention's output too
    (arXiv:2205.05198, section 5). torch stops computing again as soon as the last kept activation is back, so a
    block's closing matrix product is not repeated.
    """
    keep_rng = any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    match recompute:
        case "none":
            model.run_block = call_block
        case "full":
            model.run_block = partial(_recomputed, {"preserve_rng_state": keep_rng})
        case "selective":
            model.run_block = partial(_recomputed, {"preserve_rng_state": keep_rng, "context_fn": _keep_attention})


def _recomputed(settings: dict[str, Any], block: Block, *inputs: Tensor | None) -> Tensor:
    out = checkpoint(block, *inputs, use_reentrant=False, **settings)
    assert isinstance(out, Tensor)
    return out


def _keep_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE
