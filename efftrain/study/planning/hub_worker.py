"""The process that efftrain.study.planning.hub asks: builds a Hugging Face model on fake tensors, and counts it.

The wish comes as JSON on standard input; the answer is one line of JSON, the fields of a `HuggingFaceModel` or `error`.
"""

import dataclasses
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from efftrain.counting.flops import PhaseMark, count_step, fake_mode
from efftrain.study.planning.hub import DEFAULT_SEQ_LEN
from efftrain.training.config import ConfigError
from efftrain.workload.models.build import build_model
from efftrain.workload.models.huggingface import HuggingFaceLM, read_configuration
from efftrain.workload.models.presets import Attention, HuggingFaceModel

_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
_MASKED_HEAD = "ForMaskedLM"


def main() -> None:
    """Answer the wish on standard input."""
    wish = json.load(sys.stdin)
    try:
        answer = dataclasses.asdict(describe_here(**wish))
    except ConfigError as error:
        answer = {"error": str(error)}
    except Exception as error:  # whatever a configuration makes transformers do
        answer = {"error": f"transformers cannot build it: {_one_line(error)}"}
    print(f"\n{json.dumps(answer)}")


def describe_here(
    *, architecture: dict[str, Any], task: str | None, seq_len: int | None, attention: Attention
) -> HuggingFaceModel:
    """See efftrain.study.planning.hub.describe; `path` is left empty."""
    configuration: Any = read_configuration(architecture)
    if configuration.is_encoder_decoder:
        raise ConfigError("is an encoder-decoder; expected a causal or a masked language model")
    text = configuration.get_text_config()
    described = HuggingFaceModel(
        path="",
        architecture=architecture,
        causal=_is_causal(configuration, task),
        vocab_size=text.vocab_size,
        seq_len=seq_len or DEFAULT_SEQ_LEN,
        num_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        attention=attention,
    )
    with fake_mode():
        model = build_model(described, torch.device("cpu"))
        assert isinstance(model, HuggingFaceLM)
        described = dataclasses.replace(described, seq_len=_seq_len(model, text, seq_len))
        parameters = sum(p.numel() for p in model.parameters())
        flops = model_flops_per_token(model, described.seq_len)
    return dataclasses.replace(described, parameters=parameters, model_flops_per_token=flops)


def model_flops_per_token(model: nn.Module, seq_len: int) -> float:
    """Model FLOP of a forward and a backward pass over one sequence, by token; to be called under `fake_mode()`."""
    tokens_bt = torch.zeros(1, seq_len, dtype=torch.int64)

    def step(mark: PhaseMark) -> None:
        mark("forward")
        loss = F.cross_entropy(model(tokens_bt).flatten(0, 1).float(), tokens_bt.flatten())
        mark("backward")
        loss.backward()
        model.zero_grad()

    return count_step(step, model).model_flops / seq_len


def _is_causal(configuration: Any, task: str | None) -> bool:
    """Whether it predicts the next token: by its head's name, else by the heads that its type may have.

    A type with both heads is an encoder that a flag makes a decoder.

    Raises:
        ConfigError: it has neither head, or not the one that the task needs.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    heads = [head for head in configuration.architectures or [] if head.endswith((*_CAUSAL_HEADS, _MASKED_HEAD))]
    causal = configuration.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = configuration.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not causal and not masked:
        raise ConfigError(f"model_type {configuration.model_type!r} is neither a causal nor a masked language model")
    if causal and masked:
        causal = bool(getattr(configuration, "is_decoder", False))
        masked = not causal
    if heads and heads[0].endswith(_MASKED_HEAD) != masked:
        raise ConfigError(
            f"{heads[0]} does not go with a model_type {configuration.model_type!r} that is {_kind(causal)}"
        )
    if task is not None and (task == "causal") != causal:
        raise ConfigError(f"is {_kind(causal)}, which does not learn {task!r}")
    return causal


def _kind(causal: bool) -> str:
    return "a causal decoder" if causal else "a masked encoder"


def _seq_len(model: HuggingFaceLM, text: Any, asked: int | None) -> int:
    """Tokens of context.

    Raises:
        ConfigError: more are asked for than there are positions.
    """
    limit = getattr(text, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limit = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind the padding's position
    if asked is None:
        return min(limit or DEFAULT_SEQ_LEN, DEFAULT_SEQ_LEN)
    if asked < 2 or (limit is not None and asked > limit):
        reach = "any number" if limit is None else f"at most {limit} tokens"
        raise ConfigError(f"--seq-len {asked}: its positions allow {reach}, and at least 2 are needed")
    return asked


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


if __name__ == "__main__":
    main()
