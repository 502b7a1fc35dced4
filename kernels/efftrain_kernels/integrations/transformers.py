"""transformers: attention under a name that every model accepts, and the optimizer for its Trainer.

Facts of transformers 5.23 that this file rests on. A model asks AttentionInterface for the function by the name in
`config._attn_implementation` and calls it once a layer with q, k and v as [B, heads, S, D], heads of a group not
repeated. It asks AttentionMaskInterface for a mask under the same name; **where that name is missing there, the model
drops the padding mask without a word**, so both are registered. `sliding_window` counts the token itself: w tokens
are w − 1 to the left, and in a bidirectional model w − 1 to the right as well. What `sdpa` would ignore, and what our
kernels cannot express, is an error here.
"""

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from efftrain_kernels._adamw import AdamW
from efftrain_kernels._attention import Backend, attention
from efftrain_kernels.integrations._masks import packing_for_model
from efftrain_kernels.integrations._packing import Packing, attend_packed, packing_of_starts

if TYPE_CHECKING:
    from transformers import TrainingArguments

_INEXPRESSIBLE = {
    "position_bias": "a bias on the scores",
    "sinks": "sinks that differ from token to token",
    "indices": "sparse attention by indices",
    "block_indices": "sparse attention by block indices",
    "cache": "a paged cache (continuous batching)",
    "block_table": "a paged cache (continuous batching)",
    "output_attentions": "returning the attention weights, which are never formed",
}
"""Arguments that some models pass on to attention and that change its result."""


def register_with_transformers(name: str = "efftrain", *, backend: Backend = "auto") -> None:
    """Makes `attn_implementation="efftrain"` work in every transformers model that takes a choice of attention.

    Grouped heads, causal and bidirectional order, sliding windows, soft caps, sinks, padding on either side, packed
    batches and caches that grow are passed on; padding is cut out before attention and put back as zeros after it.
    Packed batches are recognised from `cu_seq_lens_q` and `cu_seq_lens_k`, else from `position_ids` that start again.

    Args:
        name: what `attn_implementation` is to be; registering a name again replaces its backend.
        backend: as `attention` takes it.

    Raises:
        ImportError: transformers is missing, or older than 5 and passes other arguments.
        ValueError: a name that belongs to another implementation, or one that transformers reads a meaning into.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if "q_offset" not in signature(sdpa_mask).parameters:
        raise ImportError("transformers is too old for this integration: install transformers>=5.17")
    registered = AttentionInterface().get(name)
    ours = isinstance(registered, partial) and registered.func is _attend
    if (registered is not None and not ours) or name == "eager" or any(mark in name for mark in ("flash", "/", "|")):
        raise ValueError(f"name {name!r} belongs to transformers or to another library; choose one like 'efftrain'")
    AttentionInterface.register(name, partial(_attend, backend=backend))
    # Sizes are read back from the device here, which torch.compile cannot trace: once a forward pass it steps aside.
    AttentionMaskInterface.register(name, torch.compiler.disable(packing_for_model))


def trainer_optimizer(args: "TrainingArguments", **settings: Any) -> tuple[type[AdamW], dict[str, Any]]:
    """`Trainer(..., optimizer_cls_and_kwargs=trainer_optimizer(args))`: our AdamW under the Trainer's own arguments.

    Learning rate, betas and eps are those of `args`; the Trainer itself sets the weight decay, none for biases and
    norms. Leave clipping to its `max_grad_norm`: it computes the norm of every step for its log in any case.

    Args:
        args: the Trainer's.
        **settings: further arguments of `AdamW`, such as `state_dtype="bfloat16"`.

    Raises:
        ValueError: `args.optim` names another optimizer than AdamW, or gradients would be clipped twice.
    """
    chosen = str(getattr(args.optim, "value", args.optim))
    if not chosen.startswith("adamw_torch"):
        raise ValueError(f"args.optim is {chosen!r}, which would be ignored; leave it out or set optim='adamw_torch'")
    if settings.get("max_grad_norm") is not None and args.max_grad_norm:
        raise ValueError(
            f"gradients would be clipped twice, by the Trainer to {args.max_grad_norm} and by AdamW to "
            f"{settings['max_grad_norm']}; set TrainingArguments(max_grad_norm=0) or leave max_grad_norm out here"
        )
    kwargs = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return AdamW, kwargs | settings


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Packing | Tensor | None = None,
    *,
    backend: Backend,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D] to ([B, Sq, Hq, D], None)."""
    _check_expressible(module, dropout, kwargs)
    q, k, v, scale = _prepared(query, key, value, scaling)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    packing = _packing(module, query, key, _only_packing(module, attention_mask), kwargs)
    window = _window(sliding_window, key.shape[2], causal=causal)
    # One query sees every key before it: not a causal call, and so one that any implementation can answer.
    causal = bool(causal and (query.shape[2] > 1 or packing is not None))
    settings: dict[str, Any] = dict(
        causal=causal, softmax_scale=scale, window=window, softcap=softcap or 0.0, sinks=s_aux, backend=backend
    )
    if packing is None:
        out = attention(q, k, v, **settings).transpose(1, 2).contiguous()
    else:
        out = attend_packed(q, k, v, packing.to(q.device), **settings)
    return out[..., : value.shape[-1]], None


def _check_expressible(module: torch.nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise ValueError(
            f"{type(module).__name__} asks for attention dropout {dropout}, which the kernels do not have; set the "
            "config's attention_dropout (attention_probs_dropout_prob, attn_pdrop) to 0"
        )
    for name, what in _INEXPRESSIBLE.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise ValueError(f"{type(module).__name__} passes {name}, {what}: use another attn_implementation")


def _only_packing(module: torch.nn.Module, mask: Packing | Tensor | None) -> Packing | None:
    if mask is None or isinstance(mask, Packing):
        return mask
    raise ValueError(
        f"attention_mask {list(mask.shape)} reaches {type(module).__name__} ready made; the kernels know padding, "
        "causal order and windows alone: pass the model a mask [batch, tokens], or use attn_implementation='sdpa'"
    )


def _prepared(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """q, k and v in one type and head size, contiguous in the last dimension, and the scale of the original size."""
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    autocast = torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64
    dtype = torch.get_autocast_dtype(q.device.type) if autocast else q.dtype
    widest = max(q.shape[-1], v.shape[-1])  # latent attention has wider keys than values; zeros change no score

    def prepared(x: Tensor) -> Tensor:
        x = F.pad(x.to(dtype), (0, widest - x.shape[-1])) if x.shape[-1] < widest else x.to(dtype)
        return x if x.stride(-1) == 1 else x.contiguous()

    return prepared(q), prepared(k), prepared(v), scale


def _window(sliding_window: int | None, keys: int, *, causal: bool) -> tuple[int | None, int | None]:
    """`attention`'s window; none where all keys lie in it, so that the call stays a plain one."""
    if sliding_window is None or sliding_window >= keys:
        return (None, None)
    return (sliding_window - 1, 0 if causal else sliding_window - 1)


def _packing(
    module: torch.nn.Module, q: Tensor, k: Tensor, mask: Packing | None, kwargs: dict[str, Any]
) -> Packing | None:
    """The sequences of this batch: as given by offsets, else by the mask, else by position ids that start again."""
    cu_seqlens_q, cu_seqlens_k = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if mask is not None and mask.tokens_k is not None:
            raise ValueError("attention_mask has padding and cu_seq_lens_q is given: pass one of them")
        return _packing_of_offsets(cu_seqlens_q, cu_seqlens_k, kwargs)
    if mask is not None:
        return mask
    # transformers looks for packing in its masks only without a cache, which a model makes unless use_cache=False, and
    # some models (gpt_oss) never let it.
    position_ids, length = kwargs.get("position_ids"), q.shape[2]
    crossing = getattr(module, "is_cross_attention", False) or k.shape[2] != length
    if crossing or length == 1 or not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        return None
    return _packing_of_positions(position_ids, batch=q.shape[0])


def _packing_of_offsets(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, kwargs: dict[str, Any]) -> Packing:
    longest = []
    for offsets, name in ((cu_seqlens_q, "max_length_q"), (cu_seqlens_k, "max_length_k")):
        given = kwargs.get(name)
        longest.append(int(offsets.diff().max() if given is None else given))
    return Packing(cu_seqlens_q.to(torch.int32), cu_seqlens_k.to(torch.int32), *longest)


_KNOWN = WeakTensorKeyDictionary()
"""Position ids to ((version, batch), packing): every layer of a forward pass brings the same tensor."""


def _packing_of_positions(position_ids: Tensor, batch: int) -> Packing | None:
    if torch.compiler.is_compiling():  # reading values would break the graph, so packing is excluded instead
        rises = (position_ids.diff(dim=-1) > 0).all()
        message = "packed position_ids under torch.compile: pass cu_seq_lens_q and cu_seq_lens_k as well"
        torch._assert_async(rises, message)  # pyright: ignore[reportPrivateImportUsage]
        return None
    if position_ids.is_inference():  # carries no version
        return _find_packing(position_ids, batch)
    known, now = _KNOWN.get(position_ids), (position_ids._version, batch)
    if known is None or known[0] != now:
        known = _KNOWN[position_ids] = (now, _find_packing(position_ids, batch))
    return known[1]


def _find_packing(position_ids: Tensor, batch: int) -> Packing | None:
    """A sequence begins at the lowest position of its row: 0, or 2 in RoBERTa's numbering."""
    return packing_of_starts((position_ids == position_ids.amin(dim=-1, keepdim=True)).expand(batch, -1))
