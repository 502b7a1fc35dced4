"""Structured pruning: query heads and MLP channels are taken out of the matrices, not masked.

Masked weights cost what they did before; only smaller matrices are cheaper. Importance is the mean magnitude of a
unit's activations on calibration text (Muralidharan et al., arXiv:2407.14679, section 2.2). Heads are removed evenly
from each group of grouped-query attention, so that the pruned model is again a plain `Transformer`, and all of its
keys and values stay.
"""

import dataclasses
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efftrain.training.config import ConfigError
from efftrain.training.optimizer import build_optimizer
from efftrain.training.precision.autocast import cast_parameters
from efftrain.training.session import Session
from efftrain.workload.models.presets import ModelConfig
from efftrain.workload.models.transformer import Block, Transformer


@dataclass(frozen=True, slots=True)
class Importance:
    """Mean magnitude of each unit's activation, by block: heads [H], channels [F]."""

    heads: list[Tensor]
    channels: list[Tensor]


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of each block: indices of query heads and of MLP channels, ascending."""

    heads: list[Tensor]
    channels: list[Tensor]


def measure_importance(model: Transformer, batches: Iterable[Tensor]) -> Importance:
    """Look at the activations that enter `o_proj` and `down_proj` while `model` reads `batches` of ids [B, T].

    A head's importance is the mean L2 norm of its output, a channel's the mean absolute value of its activation.
    """
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    heads = [torch.zeros(b.attention.num_heads, device=b.attention.o_proj.weight.device) for b in blocks]
    channels = [torch.zeros(b.mlp.down_proj.in_features, device=b.mlp.down_proj.weight.device) for b in blocks]
    training = model.training
    model.eval()
    with ExitStack() as hooks, torch.no_grad():
        for block, head, channel in zip(blocks, heads, channels, strict=True):
            hooks.callback(_watch_heads(block, head).remove)
            hooks.callback(_watch_channels(block, channel).remove)
        for tokens in batches:
            model(tokens)
    model.train(training)
    return Importance(heads, channels)


def choose(importance: Importance, model: Transformer, target: ModelConfig) -> Kept:
    """The most important units of each block, in the numbers that `target` has room for.

    Raises:
        ConfigError: `target` differs from the model in more than heads and channels, or has more of them.
    """
    now = model.config
    same = dataclasses.replace(now, num_heads=target.num_heads, d_ff=target.d_ff)
    if same != target or target.num_heads > now.num_heads or target.d_ff > now.d_ff:
        raise ConfigError(f"pruning removes heads and channels alone; {now} cannot become {target}")
    per_group = target.num_heads // now.num_kv_heads
    heads = [
        torch.cat([group * (now.num_heads // now.num_kv_heads) + _top(part, per_group) for group, part in enumerate(h)])
        for h in (scores.view(now.num_kv_heads, -1) for scores in importance.heads)
    ]
    return Kept(heads, [_top(scores, target.d_ff) for scores in importance.channels])


def prune(model: Transformer, kept: Kept) -> Transformer:
    """A new model that holds the kept units' weights; the old one is left as it is."""
    heads, channels = len(kept.heads[0]), len(kept.channels[0])
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    with device:
        smaller = Transformer(dataclasses.replace(model.config, num_heads=heads, d_ff=channels))
    cast_parameters(smaller, dtype)
    cuts = _cuts(model, kept)
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            parameter.copy_(_cut(model.get_parameter(name), cuts.get(name)))
    return smaller.train(model.training)


def prune_session(session: Session, batches: Iterable[Tensor]) -> None:
    """Measure, choose, prune, and let the session go on with the smaller model.

    The optimizer's moments of what stays go with it, so that training goes on where it was.

    Args:
        session: its configuration says what stays (`RunConfig.pruned_model`).
        batches: calibration ids [B, T].

    Raises:
        ConfigError: the configuration prunes nothing.
    """
    target = session.config.pruned_model
    if target is None:
        raise ConfigError("this configuration prunes nothing")
    model = session.model
    assert isinstance(model, Transformer), "RunConfig prunes the default model alone"
    kept = choose(measure_importance(model, batches), model, target)
    smaller = prune(model, kept)
    fresh = build_optimizer(smaller, session.config.optimizer, session.config.precision)
    _move_state(model, session.optimizer, smaller, fresh, _cuts(model, kept))
    session.use_model(smaller, fresh)


_Cut = tuple[int, Tensor]
"""(dimension, indices that stay)."""


def _cuts(model: Transformer, kept: Kept) -> dict[str, _Cut]:
    """Parameter name -> how it is cut; parameters that stay whole are not in it."""
    cuts: dict[str, _Cut] = {}
    lanes = torch.arange(model.config.head_dim, device=kept.heads[0].device)
    for index, (heads, channels) in enumerate(zip(kept.heads, kept.channels, strict=True)):
        rows = (heads[:, None] * model.config.head_dim + lanes).flatten()
        block = f"blocks.{index}"
        cuts[f"{block}.attention.q_proj.weight"] = (0, rows)
        cuts[f"{block}.attention.o_proj.weight"] = (1, rows)
        cuts[f"{block}.mlp.gate_proj.weight"] = (0, channels)
        cuts[f"{block}.mlp.up_proj.weight"] = (0, channels)
        cuts[f"{block}.mlp.down_proj.weight"] = (1, channels)
    return cuts


def _cut(tensor: Tensor, cut: _Cut | None) -> Tensor:
    return tensor if cut is None else tensor.index_select(*cut)


def _move_state(
    old: nn.Module,
    old_optimizer: torch.optim.Optimizer,
    new: nn.Module,
    new_optimizer: torch.optim.Optimizer,
    cuts: dict[str, _Cut],
) -> None:
    for name, parameter in old.named_parameters():
        state = old_optimizer.state.get(parameter, {})
        new_optimizer.state[new.get_parameter(name)] = {
            key: _cut(value, cuts.get(name)).clone() if _is_moment(value, parameter) else value
            for key, value in state.items()
        }


def _is_moment(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _watch_heads(block: Block, total: Tensor) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].unflatten(-1, (block.attention.num_heads, -1)).norm(dim=-1).mean(dim=(0, 1)))

    return block.attention.o_proj.register_forward_pre_hook(hook)


def _watch_channels(block: Block, total: Tensor) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].abs().mean(dim=(0, 1)))

    return block.mlp.down_proj.register_forward_pre_hook(hook)
