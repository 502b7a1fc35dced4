"""Which checkpoint a training can begin with, settled before anything heavy is loaded: no torch here.

Weights fit where every layer has the same shape and the model computes the same function of them. What changes the
function on purpose (longer sequences, attention in both directions, another window) is allowed, because training goes
on after it and published work adapts models in this way (arXiv:2309.16039, arXiv:2404.05961); it is said in a note,
because the first losses will not be those that the checkpoint ended with.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any, Final

from efftrain.training.checkpoints.folder import CheckpointInfo
from efftrain.training.config import ConfigError, LoraConfig, RunConfig
from efftrain.workload.models.presets import AnyModel, HuggingFaceModel, ModelConfig

INSTALL: Final = "LoRA needs the peft library: install efftrain[lora]"

LAYERS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of the default model's blocks."""

_WEIGHTS: Final = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size", "rope_theta")
"""What decides the default model's weights, and what its body computes from them."""

_FREE: Final = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "id2label"}
)
"""Names in a Hugging Face configuration that change neither weights nor what is computed from them in training."""


def start_model(info: CheckpointInfo) -> AnyModel:
    """The model of a run that begins with this checkpoint, where nobody names one: that of its weights."""
    return info.model


def check_start(config: RunConfig, info: CheckpointInfo, classes: Sequence[str] = ()) -> list[str]:
    """Whether a run can begin with a checkpoint.

    Args:
        config: of the run.
        info: the checkpoint.
        classes: names of the run's classes, in the order of its head, where it has such a head.

    Returns:
        What the run's reader should know, one line each.

    Raises:
        ConfigError: another architecture, in one line that names the first difference; or adapters that cannot be put.
    """
    try:
        notes = compare_models(info.model, config.model)
    except ConfigError as error:
        raise ConfigError(f"--from {info.folder}: {error}") from None
    if config.lora:
        check_lora(config.lora, config.model)
    notes += _compare_classes(info, config, classes)
    return [f"begins with {info.folder.name} of {info.run_id}: {note}" for note in notes]


def keeps_head(info: CheckpointInfo, classes: Sequence[str]) -> bool:
    """Whether a checkpoint's head over classes is of use for these: each row of it has learned what one name means.

    A checkpoint that was made before names were kept is taken at its number of classes.
    """
    return not info.classes or not classes or other_class(info.classes, classes) is None


def other_class(there: Sequence[str], here: Sequence[str]) -> tuple[int, str, str] | None:
    """Where two lists of classes first differ: which class, from 1, and both names in quotes; None where nowhere."""
    pairs = enumerate(zip_longest(map(repr, there), map(repr, here), fillvalue="none"), start=1)
    return next(((number, *names) for number, names in pairs if names[0] != names[1]), None)


def _compare_classes(info: CheckpointInfo, config: RunConfig, classes: Sequence[str]) -> list[str]:
    """What to say of a head over as many classes as the checkpoint's; another number is told by `compare_models`."""
    number = config.model.num_classes
    if number is None or info.model.num_classes != number:
        return []
    if not info.classes:
        return [f"its head over {number} classes is the checkpoint's, which does not name them: they may be others"]
    if (other := other_class(info.classes, classes)) is None:
        return []
    which, there, here = other
    return [f"its head over {number} classes is new; class {which} is {here} here, {there} in the checkpoint"]


def compare_models(there: AnyModel, here: AnyModel) -> list[str]:
    """What is different between the model of a checkpoint and one that shall take its weights, but no hindrance.

    Raises:
        ConfigError: the weights do not fit; one line that names the first difference.
    """
    match there, here:
        case ModelConfig(), ModelConfig():
            return _compare_own(there, here)
        case HuggingFaceModel(), HuggingFaceModel():
            return _compare_huggingface(there, here)
    raise ConfigError(f"{_kind(there)} in the checkpoint, {_kind(here)} here")


def check_lora(lora: LoraConfig, model: AnyModel) -> None:
    """Whether adapters can be put into a model, as far as that is known without torch.

    Raises:
        ConfigError: peft is not installed, or the default model has no such layer.
    """
    if find_spec("peft") is None:
        raise ConfigError(INSTALL)
    for target in lora.targets if isinstance(model, ModelConfig) else ():
        if target.rsplit(".", 1)[-1] not in LAYERS:
            raise ConfigError(unknown_target(target, LAYERS))


def unknown_target(target: str, known: tuple[str, ...]) -> str:
    """What to say of a layer that is not there."""
    return f"lora target {target!r}: no linear layer of the blocks has this name; there are {', '.join(known)}"


def _compare_own(there: ModelConfig, here: ModelConfig) -> list[str]:
    for name in _WEIGHTS:
        _same(name, getattr(there, name), getattr(here, name))
    notes = []
    if there.num_classes == here.num_classes:
        if here.num_classes is None:
            _same("tied_embeddings", there.tied_embeddings, here.tied_embeddings)
    elif here.num_classes is not None or not here.tied_embeddings:
        what = f"{here.num_classes} classes" if here.num_classes else "the vocabulary"
        notes.append(f"its head over {what} is new; the checkpoint has no such head")
    if there.causal != here.causal:
        sees = "those before it", "all of its sequence"
        was, now = sees if there.causal else sees[::-1]
        notes.append(f"a token sees {now} here, and saw {was} in the checkpoint")
    if there.window != here.window:
        notes.append(f"the attention window is {here.window or 'whole'} here, {there.window or 'whole'} there")
    return notes + _longer(there, here)


def _compare_huggingface(there: HuggingFaceModel, here: HuggingFaceModel) -> list[str]:
    before, now = _decisive(there.architecture), _decisive(here.architecture)
    for name in dict.fromkeys(("model_type", *before, *now)):
        _same(name, before.get(name), now.get(name))
    _same("causal", there.causal, here.causal)  # another class of transformers, with another head
    return _longer(there, here)


def _decisive(architecture: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in architecture.items()
        if name not in _FREE and "dropout" not in name and "pdrop" not in name and "attn_implementation" not in name
    }


def _longer(there: AnyModel, here: AnyModel) -> list[str]:
    if here.seq_len <= there.seq_len:
        return []
    return [f"sequences have {here.seq_len} tokens here; it has seen {there.seq_len}, and no position beyond them"]


def _same(name: str, there: object, here: object) -> None:
    if there != here:
        raise ConfigError(f"{name} {there} in the checkpoint, {here} here")


def _kind(model: AnyModel) -> str:
    if isinstance(model, HuggingFaceModel):
        return f"a Hugging Face model ({model.architecture.get('model_type', 'of unknown type')})"
    return "efftrain's own model"
