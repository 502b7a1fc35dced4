"""The attention that is measured: shapes and features, the inputs that go with them, and what a call costs.

Sizes follow the FlashAttention papers (arXiv:2407.08608, section 4.1): 16,384 tokens in all, 2,048 hidden dimensions,
so heads and batch follow from head_dim and length. FLOP are those of the pairs of query and key that see each other,
4·D forward and 2.5 times that backward, as the papers count them.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from efftrain_kernels.reference import Window

TOKENS, HIDDEN = 16384, 2048
BACKWARD_FACTOR = 2.5  # five products instead of two


@dataclass(frozen=True, slots=True)
class Case:
    """One attention.

    Attributes:
        name: for tables.
        batch: sequences.
        heads: of the queries.
        kv_heads: of keys and values.
        length: tokens of a sequence, of queries and keys alike.
        head_dim: D.
        causal: no query sees what comes after it.
        window: as in `efftrain_kernels.attention`.
        softcap: 0 is off.
        sinks: one logit a head.
        packed: lengths of the sequences that are packed into one; `length` is their sum then, `batch` 1.
        dtype: of q, k and v.
        joules: measure energy too.
        kv_length: tokens of keys where they differ from the queries'; the diagonal ends bottom-right then.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    causal: bool = True
    window: Window = (None, None)
    softcap: float = 0.0
    sinks: bool = False
    packed: tuple[int, ...] = ()
    dtype: torch.dtype = torch.bfloat16
    joules: bool = False
    kv_length: int | None = None

    @property
    def band(self) -> Window:
        """(left, right) bounds of what a query sees; causal is a right bound of 0."""
        return (self.window[0], 0 if self.causal else self.window[1])

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for beyond a causal mask and shared heads."""
        return self.window == (None, None) and not (self.softcap or self.sinks or self.packed)

    def settings(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch."), "flop": self.flops()}

    def flops(self) -> int:
        """FLOP of the forward pass."""
        lengths = self.packed or (self.length,) * self.batch
        return 4 * self.head_dim * self.heads * sum(visible_pairs(n, *self.band) for n in lengths)

    def shortened(self, length: int) -> "Case":
        """The same with at most `length` tokens and one sequence, small enough for a reference in float64."""
        if self.packed:
            part = length // len(self.packed)
            packed = tuple(min(n, part - 3 * i) for i, n in enumerate(self.packed))
            return replace(self, packed=packed, length=sum(packed))
        return replace(self, batch=1, length=min(length, self.length))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Tensors of one case: q [B, Hq, S, D], k and v [B, Hkv, S, D], or packed [T, H, D]; grad as q; sinks [Hq]."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    sinks: Tensor | None
    offsets: Tensor | None


def visible_pairs(length: int, left: int | None, right: int | None) -> int:
    """How many (query, key) pairs of a sequence see each other."""
    rows = torch.arange(length)
    first = rows * 0 if left is None else (rows - left).clamp(min=0)
    last = rows * 0 + length - 1 if right is None else (rows + right).clamp(max=length - 1)
    return int((last - first + 1).sum())


def inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Random inputs of a case."""
    generator = torch.Generator(device).manual_seed(seed)

    def tensor(heads: int, length: int) -> Tensor:
        shape = (length, heads) if case.packed else (case.batch, heads, length)
        return torch.randn(*shape, case.head_dim, generator=generator, device=device).to(case.dtype)

    sinks = torch.randn(case.heads, generator=generator, device=device) if case.sinks else None
    ends = torch.tensor((0, *case.packed), dtype=torch.int64).cumsum(0).to(device, torch.int32)
    keys = (case.kv_heads, case.length if case.kv_length is None else case.kv_length)
    queries = (case.heads, case.length)
    q, k, v, grad = (tensor(*shape) for shape in (queries, keys, keys, queries))
    return Inputs(q, k, v, grad, sinks, ends if case.packed else None)


def gpu_cases(head_dim: int) -> list[Case]:
    """Causal and full attention of one width at four lengths."""
    heads = HIDDEN // head_dim
    return [
        Case(
            f"D{head_dim} {'causal' if causal else 'full'} {length // 1024}k", TOKENS // length, heads, heads, length,
            head_dim, causal=causal, joules=causal and length in {4096, 16384},
        )
        for causal in (True, False)
        for length in (2048, 4096, 8192, 16384)
    ]  # fmt: skip


def feature_cases() -> list[Case]:
    """What not every implementation can do, at 8,192 tokens: one feature at a time."""
    base = Case("", batch=2, heads=16, kv_heads=16, length=8192, head_dim=128)
    return [
        replace(base, name="shared heads 32:8", heads=32, kv_heads=8, batch=1, joules=True),
        replace(base, name="window 1024", window=(1023, None), joules=True),
        replace(base, name="soft cap", softcap=30.0),
        replace(base, name="sinks", sinks=True),
        replace(
            base, name="window, sinks, D64", window=(127, None), sinks=True, head_dim=64, heads=64, kv_heads=8, batch=1
        ),
        replace(base, name="packed", batch=1, length=16384, packed=(4096, 8192, 1000, 3096), joules=True),
        replace(base, name="D256 causal", head_dim=256, heads=8, kv_heads=8),
        replace(base, name="D96 causal", head_dim=96),
    ]  # fmt: skip


def cpu_cases() -> list[Case]:
    """Small ones, which an interpreter gets through in seconds."""
    base = Case("", batch=1, heads=2, kv_heads=2, length=64, head_dim=32, dtype=torch.float16)
    return [
        replace(base, name="causal"),
        replace(base, name="shared heads", heads=4, kv_heads=2, causal=False),
        replace(base, name="window, soft cap, sinks", window=(15, None), softcap=20.0, sinks=True),
        replace(base, name="packed", length=70, packed=(33, 30, 7)),
    ]
