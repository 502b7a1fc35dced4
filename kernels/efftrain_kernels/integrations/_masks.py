"""The mask that transformers makes for a forward pass, turned into what the attention kernel wants.

transformers calls one function a forward pass and a kind of layer, with a predicate `mask_function(batch, head, q, kv)`
and the 2-D mask of padding, and hands what it returns to every layer. Ours returns a `Packing`, or None where each row
is one whole sequence; causal order and window reach the layers by other ways. A predicate that says more than that
would be dropped without a word, so it is tried along its two diagonals, and refused where it does.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain_kernels.integrations._packing import Packing, packing_of_padding, packing_of_starts

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices that broadcast, to True where the query sees the key."""

_INSTEAD = "use attn_implementation='sdpa' or 'eager' for this model"


def packing_for_model(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Predicate,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **_: Any,
) -> Packing | None:
    """What transformers' mask interface calls; the arguments are those of its `sdpa_mask`.

    Args:
        batch_size: B.
        q_length: queries a row.
        kv_length: keys a row, those of the cache included.
        mask_function: see `Predicate`; indices count from the beginning of the text.
        q_offset: index of the first query; a tensor from a static cache.
        kv_offset: index of the first key.
        attention_mask: bool [B, tokens so far], False where a token is padding.
        local_size: window or chunk of the layers that the mask is for.
        allow_is_causal_skip: False where `mask_function` says more than causal order.
        allow_is_bidirectional_skip: given for bidirectional masks alone.
        use_vmap: whether the model lays a predicate of its own over the mask.
        device: where the mask is needed.
        config: the model's.

    Raises:
        ValueError: a mask that is more than causal order, a window, padding and packing.
    """
    if use_vmap:
        raise ValueError(f"the model lays a mask of its own over attention, which has no place for it; {_INSTEAD}")
    bidirectional = allow_is_bidirectional_skip is not None
    if isinstance(q_offset, Tensor) or (not bidirectional and q_offset + q_length != kv_offset + kv_length):
        raise ValueError(
            f"{kv_length} keys from {kv_offset} on do not end with the {q_length} queries from {int(q_offset)} on, as "
            "in a static cache; use a cache that grows, cache_implementation='dynamic'"
        )
    keys = None if attention_mask is None else _real_keys(attention_mask, kv_offset, kv_length)
    if not bidirectional:
        chunked = local_size is not None and local_size < kv_length and not _slides(mask_function, local_size)
        if chunked and (q_length != kv_length or (keys is not None and not bool(keys.all()))):
            raise ValueError(f"attention in chunks of {local_size} tokens together with padding or a cache; {_INSTEAD}")
        if chunked or not allow_is_causal_skip:
            starts = _starts(mask_function, batch_size, q_length, q_offset, device)
            if chunked or keys is None:
                return packing_of_starts(starts)
    if keys is None:
        return None
    if local_size is not None and local_size < kv_length:
        _check_runs(keys)
    return packing_of_padding(_real_queries(keys, q_length, config, bidirectional=bidirectional), keys)


def _slides(mask_function: Predicate, window: int) -> bool:
    """Whether the predicate is a window of this size and not chunks of it, which meet a border on one of two steps."""
    first = torch.tensor(0)  # on the CPU, where no device is waited for
    return all(bool(mask_function(first, first, first + window - 1 + step, first + step)) for step in (0, 1))


def _starts(mask_function: Predicate, batch: int, length: int, offset: int, device: torch.device | str) -> Tensor:
    """[B, length], True where a token does not see the one before it, which is where a sequence or a chunk begins."""
    rows = torch.arange(batch, device=device)[:, None]
    head = torch.zeros(1, 1, dtype=torch.int64, device=device)
    earlier = torch.arange(length - 1, device=device)[None] + offset
    if bool(mask_function(rows, head, earlier, earlier + 1).any()):
        raise ValueError(f"a causal mask in which blocks of tokens see ahead; {_INSTEAD}")
    joined = mask_function(rows, head, earlier + 1, earlier).expand(batch, length - 1)
    return F.pad(~joined, (1, 0), value=True)


def _real_keys(attention_mask: Tensor, kv_offset: int, kv_length: int) -> Tensor:
    """Bool [B, Sk]. A mask that is too short says nothing of the last keys, which transformers takes for padding."""
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}; expected [batch, tokens], True for real tokens"
        )
    end = kv_offset + kv_length
    mask = F.pad(attention_mask.bool(), (0, max(0, end - attention_mask.shape[1])))
    return mask[:, kv_offset:end]


def _real_queries(keys: Tensor, q_length: int, config: Any, *, bidirectional: bool) -> Tensor:
    """Bool [B, Sq]. The keys' mask, where queries and keys are the same tokens; else every query counts."""
    if not bidirectional:
        return keys if q_length == keys.shape[1] else keys[:, -q_length:]
    crossing = getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False)
    if q_length == keys.shape[1] and not crossing:
        return keys
    return keys.new_ones(keys.shape[0], q_length)


def _check_runs(keys: Tensor) -> None:
    """A window counts tokens; between packed tokens the count is right where no padding stood among them."""
    rises = (keys[:, 1:] & ~keys[:, :-1]).sum(dim=-1) + keys[:, 0]
    if bool((rises > 1).any()):
        raise ValueError(
            f"attention_mask has padding between real tokens, under a window; pad on one side, or {_INSTEAD}"
        )
