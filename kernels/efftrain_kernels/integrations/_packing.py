"""Where the real tokens of a padded or packed batch stand, and how to attend to those alone.

A kernel for sequences of different length wants one row of tokens and the offsets at which the sequences begin.
Frameworks hand over something else: a mask of padding, position ids that start again, or the offsets themselves.
`Packing` is the form they have in common. Finding it means reading sizes back from the device, so it is found once
for a batch, and every layer only gathers and scatters by it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain_kernels._attention import attention


@dataclass(frozen=True)
class Packing:
    """The sequences in a batch of B × Sq query and B × Sk key tokens.

    Attributes:
        cu_seqlens_q: int32 [sequences + 1], where each sequence begins among the packed queries, and their number.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: tokens in the longest sequence of queries.
        max_seqlen_k: the same for keys and values.
        tokens_q: int64, which of the B·Sq query tokens are packed, in order; None where all of them are.
        tokens_k: the same for keys and values.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    tokens_q: Tensor | None = None
    tokens_k: Tensor | None = None

    def to(self, device: torch.device | str, **_: Any) -> "Packing":
        """The same on another device, for a model whose layers stand on several."""
        if self.cu_seqlens_q.device == torch.device(device):
            return self
        return Packing(
            self.cu_seqlens_q.to(device),
            self.cu_seqlens_k.to(device),
            self.max_seqlen_q,
            self.max_seqlen_k,
            None if self.tokens_q is None else self.tokens_q.to(device),
            None if self.tokens_k is None else self.tokens_k.to(device),
        )


def packing_of_padding(queries: Tensor, keys: Tensor) -> Packing | None:
    """The packing that leaves padding out; None where there is none.

    Args:
        queries: bool [B, Sq], False where a token is padding.
        keys: bool [B, Sk], the same; may be `queries` itself.

    Returns:
        Sequence b holds the real tokens of row b in order, none where the row is padding throughout.
    """
    lengths_q = queries.sum(dim=-1, dtype=torch.int32)
    lengths_k = lengths_q if keys is queries else keys.sum(dim=-1, dtype=torch.int32)
    sizes = torch.stack([lengths_q.sum(), lengths_k.sum(), lengths_q.max(), lengths_k.max()])
    total_q, total_k, longest_q, longest_k = sizes.tolist()  # one wait for the device
    if total_q == queries.numel() and total_k == keys.numel():
        return None
    tokens_q = None if total_q == queries.numel() else queries.flatten().nonzero().flatten()
    tokens_k = tokens_q if keys is queries else keys.flatten().nonzero().flatten()
    return Packing(_offsets(lengths_q), _offsets(lengths_k), longest_q, longest_k, tokens_q, tokens_k)


def packing_of_starts(starts: Tensor) -> Packing | None:
    """The packing of rows that hold one sequence after another; None where each row is one sequence.

    Args:
        starts: bool [B, S], True where a token begins a sequence. The first token of a row always does.
    """
    batch, length = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    places = begins.flatten().nonzero().flatten().to(torch.int32)
    if len(places) == batch:
        return None
    cu_seqlens = F.pad(places, (0, 1), value=batch * length)
    longest = int(cu_seqlens.diff().max())
    return Packing(cu_seqlens, cu_seqlens, longest, longest)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing, **settings: Any) -> Tensor:
    """`attention` over the packed tokens of a batch.

    Args:
        q: [B, Hq, Sq, D].
        k: [B, Hkv, Sk, D].
        v: as `k`.
        packing: the sequences.
        **settings: as `attention` takes them.

    Returns:
        [B, Sq, Hq, D], 0 for the queries that are not packed.
    """
    out = attention(
        _pack(q, packing.tokens_q), _pack(k, packing.tokens_k), _pack(v, packing.tokens_k),
        cu_seqlens_q=packing.cu_seqlens_q, cu_seqlens_k=packing.cu_seqlens_k,
        max_seqlen_q=packing.max_seqlen_q, max_seqlen_k=packing.max_seqlen_k, **settings,
    )  # fmt: skip
    batch, heads, length, head_dim = q.shape
    if packing.tokens_q is not None:
        out = out.new_zeros(batch * length, heads, head_dim).index_copy(0, packing.tokens_q, out)
    return out.view(batch, length, heads, head_dim)


def _pack(x_bhsd: Tensor, tokens: Tensor | None) -> Tensor:
    """[tokens, heads, head_dim]. Models compute [B, S, H, D] and transpose, so undoing that moves nothing."""
    packed = x_bhsd.transpose(1, 2).flatten(0, 1)
    return packed if tokens is None else packed.index_select(0, tokens)


def _offsets(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
