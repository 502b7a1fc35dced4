"""Activation recomputation: which of a block's activations are kept for the backward pass."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efftrain.training.config import Recompute
from efftrain.workload.transformer import Block, Transformer, call_block


def apply_recompute(model: Transformer, recompute: Recompute) -> None:
    """Set how `model` calls its blocks.

    With `full`, only each block's input is kept (arXiv:1604.06174). torch stops computing again as soon as the last
    kept activation is back, so a block's closing matrix product is not repeated.
    """
    match recompute:
        case "none":
            model.run_block = call_block
        case "full":
            keep_rng = any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
            model.run_block = partial(_recomputed, keep_rng)


def _recomputed(keep_rng: bool, block: Block, x_btd: Tensor, cos_tq: Tensor, sin_tq: Tensor) -> Tensor:
    out = checkpoint(block, x_btd, cos_tq, sin_tq, use_reentrant=False, preserve_rng_state=keep_rng)
    assert isinstance(out, Tensor)
    return out
