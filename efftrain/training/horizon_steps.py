"""How many steps a horizon of tokens or of FLOPs holds; no torch, so that a command line can tell at once."""

import math

from efftrain.training.config import ConfigError


def steps_for_tokens_per_parameter(ratio: float, parameters: int, tokens_per_step: int) -> int:
    """Steps that train at least `ratio` tokens for each parameter; about 20 spend a budget best (arXiv:2203.15556).

    Args:
        ratio: tokens per parameter.
        parameters: of the model.
        tokens_per_step: of all ranks and micro-batches.

    Raises:
        ConfigError: not a number above 0.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ConfigError(f"--tokens-per-parameter {ratio:g}: expected a number above 0, for example 20")
    return math.ceil(ratio * parameters / tokens_per_step)


def steps_for_flops(max_flops: float, model_flops_per_token: float, tokens_per_step: int) -> int:
    """Steps whose model FLOPs stay within `max_flops`; evaluations are not counted.

    Args:
        max_flops: FLOP by the model's convention.
        model_flops_per_token: of training, forward and backward.
        tokens_per_step: of all ranks and micro-batches.

    Raises:
        ConfigError: not a number above 0, or less than one step takes.
    """
    if not (math.isfinite(max_flops) and max_flops > 0):
        raise ConfigError(f"--max-flops {max_flops:g}: expected FLOP above 0, for example 1e15")
    one = model_flops_per_token * tokens_per_step
    if max_flops < one:
        raise ConfigError(f"--max-flops {max_flops:g}: one step of this model takes {one:.3g} FLOP; give at least that")
    return int(max_flops // one)
