"""A language model of `transformers`, built from its configuration with fresh weights; nothing is downloaded.

`transformers` looks for several sequences in one row by reading position ids back from the device in every forward
pass, and takes for granted that there are some where it cannot read: under fake tensors and torch.compile. It does not
look where it is given a mask of padding. Rows hold one sequence each here, so a mask is always given, and one that
hides nothing has stride 0, by which attention under names of our own knows it. Then the same kernels run in training
and in counting, and no step waits for the device.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode

from efftrain.workload.models.presets import Attention, HuggingFaceModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Attended = tuple[Tensor, Tensor | None]
"""What an attention function of transformers returns: [B, T, H, Q], and weights or None."""


class HuggingFaceLM(nn.Module):
    """Token ids [B, T] int64 -> logits [B, T, V], by a model of `transformers`.

    Attributes:
        config: what it was built from.
        model: what computes it.
    """

    def __init__(self, config: HuggingFaceModel, model: "PreTrainedModel") -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, tokens_bt: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """Logits at each position.

        Args:
            tokens_bt: ids [B, T].
            lengths_b: tokens of each sequence, what follows being padding; None: all are whole.
        """
        if lengths_b is not None:
            mask_bt = torch.arange(tokens_bt.shape[1], device=tokens_bt.device) < lengths_b[:, None]
        elif getattr(self.model, "_supports_attention_backend", False):
            mask_bt = torch.ones(1, 1, dtype=torch.bool, device=tokens_bt.device).expand(tokens_bt.shape)
        else:
            mask_bt = None
        return self.model(input_ids=tokens_bt, attention_mask=mask_bt).logits

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers that repeat, in order."""
        lists = (m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        return next((list(m) for m in lists if len(m) == self.config.num_layers), [])


def build_huggingface(config: HuggingFaceModel, device: torch.device, *, seed: int | None) -> HuggingFaceLM:
    """The model in float32 on `device`.

    Args:
        config: its description.
        device: where its weights are.
        seed: of its weights, which are drawn on the host, so that they are alike on every device; None leaves them as
            they come, for weights that are loaded.

    Raises:
        ValueError: a configuration that transformers cannot build.
        ImportError: transformers is missing.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.initialization import no_init_weights

    auto: Any = AutoModelForCausalLM if config.causal else AutoModelForMaskedLM
    settings = {
        "config": read_configuration(config.architecture),
        "dtype": torch.float32,
        "attn_implementation": register_attention(config.attention, device),
    }
    if seed is None or active_fake_mode() is not None:
        with device, no_init_weights():
            model = auto.from_config(**settings)
        model.tie_weights()  # which belongs to what was left out
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = auto.from_config(**settings).to(device)
    if config.attention == "efftrain" and not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{type(model).__name__} takes no attention but its own; use 'sdpa' or 'eager'")
    return HuggingFaceLM(config, model.train())


def read_configuration(architecture: dict[str, Any]) -> "PreTrainedConfig":
    """The contents of a config.json as transformers' own object, without a cache of keys and values.

    Raises:
        ValueError: a model type that this version of transformers does not know, or values that it refuses.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(architecture.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model_type {model_type!r} is unknown to this version of transformers")
    configuration = CONFIG_MAPPING[model_type].from_dict(architecture)
    configuration.use_cache = False
    return configuration


def register_attention(attention: Attention, device: torch.device) -> str:
    """The name under which transformers finds `attention`, made known to it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from efftrain_kernels.integrations.transformers import register_with_transformers

    match attention:
        case "eager":
            return "eager"  # every model has its own, which is under no name
        case "sdpa":
            attend, make_mask = AttentionInterface()["sdpa"], sdpa_mask
        case "efftrain":
            register_with_transformers("efftrain", backend="triton" if device.type == "cuda" else "auto")
            attend, make_mask = AttentionInterface()["efftrain"], AttentionMaskInterface()["efftrain"]
    name = f"efftrain_{attention}_rows"
    AttentionInterface.register(name, partial(_attend_rows, attend))
    AttentionMaskInterface.register(name, partial(_mask_rows, make_mask, fake=attention == "efftrain"))
    return name


def _attend_rows(attend: Callable[..., Attended], module: nn.Module, *args: Any, **kwargs: Any) -> Attended:
    """`attend` without positions, and with a note of the window for efftrain.counting.flops."""
    kwargs.pop("position_ids", None)
    window = kwargs.get("sliding_window")
    if window is not None and not torch.compiler.is_compiling():
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        module.__dict__["visible_keys"] = int(window if causal else 2 * window - 1)
    return attend(module, *args, **kwargs)


def _mask_rows(
    make_mask: Callable[..., Any], *, fake: bool, kv_length: int, attention_mask: Tensor | None = None,
    local_size: int | None = None, use_vmap: bool = False, **rest: Any,
) -> Any:  # fmt: skip
    """A mask for padding, for windows, and where the model lays one of its own over attention; else None.

    With `fake`, what `make_mask` would read from the device is left out under fake tensors: whether a window slides.
    """
    if attention_mask is not None and attention_mask.stride(-1) == 0:
        attention_mask = None
    plain = local_size is None or local_size >= kv_length or (fake and active_fake_mode() is not None)
    if attention_mask is None and plain and not use_vmap:
        return None
    rest |= {"kv_length": kv_length, "attention_mask": attention_mask, "local_size": local_size, "use_vmap": use_vmap}
    return make_mask(**rest)
