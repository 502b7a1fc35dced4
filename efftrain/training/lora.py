"""Low-rank adapters beside frozen matrices (arXiv:2106.09685): `peft` puts them in, and here is what a run adds.

The model's class and its `forward` stay. A layer W becomes x ↦ W x + alpha/rank · B A x, where W is frozen and A and B
are trained; B starts at 0, so that the model starts as what it was. Adapters are fp32 whatever the weights are, and are
drawn from the run's seed, alike on every device and rank.
"""

import math
import warnings
from typing import Final

import torch
from torch import Tensor, nn

from efftrain.training.checkpoints.fit import INSTALL, unknown_target
from efftrain.training.config import ConfigError, LoraConfig, RunConfig
from efftrain.workload.models.build import Model, blocks, build_model

ADAPTER: Final = "default"
"""peft's name for the only adapter of a model; it stands in the names of the weights."""


def apply_lora(model: Model, config: LoraConfig, seed: int) -> None:
    """Put adapters beside the linear layers of the blocks, and freeze everything else but a head over classes.

    A head over classes is trained because it belongs to the text's classes and not to what the model has learned
    before; peft does the same for its sequence classification.

    Args:
        model: with its weights as they shall stay; changed in place.
        config: rank, scale, dropout, and which layers.
        seed: of the adapters.

    Raises:
        ConfigError: peft is not installed, or a target is no layer of the blocks.
    """
    layers = target_layers(model, config.targets)
    try:
        import peft
    except ImportError:
        raise ConfigError(INSTALL) from None
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(layers),  # pyright: ignore[reportArgumentType]
        fan_in_fan_out=any(not isinstance(layer, nn.Linear) for layer in layers.values()),
    )  # fmt: skip
    # Adapters without data at first: peft would draw them from torch's own random state.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out", category=UserWarning)  # a model that has both kinds
        peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    _draw(model, seed)
    if model.config.num_classes is not None:
        for head in (child for child in model.children() if isinstance(child, nn.Linear)):
            head.requires_grad_(True)


def target_layers(model: Model, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The layers that get an adapter, by their names in the model.

    Args:
        model: without adapters.
        targets: their last names (`q_proj`, `mlp.up_proj`); empty: all linear layers of the blocks.

    Raises:
        ConfigError: a target is no linear layer of a block.
    """
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    there = {name: m for name, m in model.named_modules() if id(m) in inside and _is_linear(m)}
    for target in targets:
        if not any(_is_named(name, target) for name in there):
            known = dict.fromkeys(name.rsplit(".", 1)[-1] for name in there)
            raise ConfigError(unknown_target(target, tuple(known)))
    return {name: m for name, m in there.items() if not targets or any(_is_named(name, t) for t in targets)}


def trainable_parameters(model: nn.Module) -> int:
    """Weights that training changes; a shared one counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_trainable(config: RunConfig) -> int | None:
    """Weights that a run with adapters will train, without allocating any; None where it trains all of them."""
    if config.lora is None:
        return None
    model = build_model(config.model, torch.device("meta"))
    apply_lora(model, config.lora, config.seed)
    return trainable_parameters(model)


def merged_weights(weights: dict[str, Tensor], config: LoraConfig, model: Model) -> dict[str, Tensor]:
    """A model's weights without adapters, each pair multiplied out in float64 and added to its matrix.

    Args:
        weights: of a model with adapters, by name; others pass as they are.
        config: of those adapters.
        model: one of the same layers, without adapters.
    """
    plain = {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}
    for name, a in weights.items():
        layer, found, _ = name.partition(f".lora_A.{ADAPTER}.weight")
        if found:
            b, frozen = weights[f"{layer}.lora_B.{ADAPTER}.weight"], plain[f"{layer}.weight"]
            change = config.alpha / config.rank * (b.double() @ a.double())
            upright = isinstance(model.get_submodule(layer), nn.Linear)  # Conv1D keeps its matrix transposed
            plain[f"{layer}.weight"] = (frozen.double() + (change if upright else change.T)).to(frozen.dtype)
    return plain


def _draw(model: nn.Module, seed: int) -> None:
    """A from U(±1/√fan-in), as torch draws linear layers and peft does after it; B is 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        pairs = getattr(layer, "lora_A", None), getattr(layer, "lora_B", None)
        if not all(isinstance(pair, nn.ModuleDict) and ADAPTER in pair for pair in pairs):
            continue
        a, b = (pair[ADAPTER] for pair in pairs if pair is not None)
        device = next(layer.get_submodule("base_layer").parameters()).device
        bound = 1 / math.sqrt(a.weight.shape[1])
        drawn = torch.empty(a.weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        a.weight = nn.Parameter(drawn.to(device))
        b.weight = nn.Parameter(torch.zeros(b.weight.shape, dtype=torch.float32, device=device))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, in transformers


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
