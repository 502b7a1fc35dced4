"""Attention on integers, where every right answer is known to the last bit, for every configuration there is.

Random numbers hide a product that went wrong now and then under the rounding of all the others. Here every weight is
a power of two, every product an integer or a simple fraction, and every sum fits into float32, so a result may differ
from the truth by its own final rounding and by nothing else. Three arrangements:

- `pairs`: keys carry a code of ±1, two keys the same one, and a query the code of the key on its diagonal. Codes that
  differ lie so far below that their weights are 0, so each query attends to one key or to two, under any mask. Columns
  where queries are 0 and keys are not give the queries a gradient.
- `dense`: scores are integers in −4 … 4 and the scale is log 2, so that all keys weigh 2⁻⁴ … 2⁴; forward alone.
- `zero_q`, `zero_k`: all scores are 0 and all weights 1/Sk with Sk a power of two; values come as pairs that cancel,
  so the output is 0 and the gradients are plain products; `full` attention alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from efftrain_kernels import reference
from efftrain_kernels._kernels.attention import Call, Target, backward_launches, forward_launches
from efftrain_kernels._kernels.configs import BLOCK_D, Config, Key
from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels.evidence import measure
from efftrain_kernels.reference import Window

Pattern = Literal["pairs", "dense", "zero_q", "zero_k"]
HANGS_S = 10.0
SOFTCAP = 2.0**20  # so high that it changes no score, in the kernel that applies it
MORE_KEYS = 77
NO_WEIGHT = 152  # 2⁻¹⁵² is 0 in float32
_CODE_SHARE = 0.75  # of the columns; the rest are 0 in queries
# Half a unit in the last place of what is written, and a hundredth for the float32 operations before. Float32 gradients
# keep the error of 2^x where x is the difference of two scores of up to a thousand.
_HALF_UNIT = {torch.bfloat16: 2.0**-9 * 1.01, torch.float16: 2.0**-11 * 1.01}
_OF_LARGEST = {"lse": 1e-6}
_OF_LARGEST_GRADIENT = 1e-3


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention on integers.

    Attributes:
        pattern: how it is arranged.
        head_dim: D.
        length: tokens of queries and keys.
        dtype: of q, k and v.
        band: what a query sees.
        softcap: 0, or `SOFTCAP`.
        ragged: two sequences, of which the keys have `MORE_KEYS` more, laid out as projections leave them.
    """

    pattern: Pattern
    head_dim: int
    length: int
    dtype: torch.dtype
    band: Window = (None, None)
    softcap: float = 0.0
    ragged: bool = False

    @property
    def length_k(self) -> int:
        """Tokens of keys."""
        return self.length + MORE_KEYS * self.ragged

    @property
    def plain(self) -> bool:
        """Whether a specialised kernel takes it: full or causal, in columns that fill the tile."""
        return self.band in {(None, None), (None, 0)} and self.head_dim in BLOCK_D and not self.softcap

    def name(self) -> str:
        """Such as `pairs D64 S256 bfloat16 (None, 0)`."""
        kind = str(self.dtype).removeprefix("torch.")
        extras = " capped" * bool(self.softcap) + " ragged" * self.ragged
        return f"{self.pattern} D{self.head_dim} S{self.length} {kind} {self.band}{extras}"


@dataclass(frozen=True, slots=True)
class Finding:
    """How far a result was from the truth, in units of what its rounding allows; right up to 1."""

    problem: str
    tensor: str
    worst: float

    @property
    def right(self) -> bool:
        """Whether it is as near as can be; NaN is not."""
        return self.worst <= 1.0


def problems(key: Key, *, length: int = 256, dtypes: tuple[torch.dtype, ...] | None = None) -> list[Problem]:
    """What a configuration for `key` is tried on.

    Args:
        key: the configuration's place in the table.
        length: a power of two.
        dtypes: 16-bit types to try; both if None.
    """
    if key.dtype == "float":
        types: tuple[torch.dtype, ...] = (torch.float32,)
    else:
        types = dtypes or (torch.bfloat16, torch.float16)
    patterns: tuple[Pattern, ...] = ("pairs",)
    bands: list[Window] = [(None, 0), (length // 4 + 5, length // 8 + 3)]
    softcap = SOFTCAP if key.kind == "capped" else 0.0
    if key.kind == "full":
        bands = [(None, None)]
        patterns = ("pairs", "dense") if key.kernel == "forward" else ("pairs", "zero_q", "zero_k")
    found = [
        Problem(pattern, key.block_d, length, kind, band, softcap)
        for kind in types
        for pattern in patterns
        for band in bands
    ]
    # Padded columns; and half the least width, which is a tile of its own.
    widths = [key.block_d - 16, *([key.block_d // 2] if key.block_d == min(BLOCK_D) else [])]
    narrow = [Problem("pairs", width, length - 12, kind, bands[-1], softcap) for kind in types for width in widths]
    ragged = [Problem("pairs", key.block_d, length - 12, kind, bands[0], softcap, ragged=True) for kind in types]
    return found + narrow + ragged


def try_config(key: Key, config: Config, device: torch.device, tried: list[Problem]) -> list[Finding]:
    """Run one configuration on each problem that it takes, and compare with float64.

    Raises:
        Exception: what triton or CUDA raises where the kernel does not run.
    """
    target = Target(key.arch, configs={key.kernel: config})
    taken = [problem for problem in tried if problem.plain or not config.specialised]
    return [finding for problem in taken for finding in _try(key, target, device, problem)]


def tensors(problem: Problem, device: torch.device, *, seed: int = 0) -> tuple[list[Tensor], float]:
    """([q, k, v, gradient of the output], softmax scale); four heads of queries on two of keys in each sequence."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + problem.ragged, 4, problem.length, problem.head_dim)
    shared = (shape[0], 2, problem.length_k, problem.head_dim)
    v, grad = _ternary(shared, generator), _ternary(shape, generator)
    if problem.pattern == "pairs":
        q, k, unit = _pairs(shape, problem.length_k, generator)
    else:
        q, k, unit = _ternary(shape, generator), _ternary(shared, generator), 1.0
        q[..., 4:] *= problem.pattern != "dense"  # scores of −4 … 4
    if problem.pattern in {"zero_q", "zero_k"}:
        (q if problem.pattern == "zero_q" else k).zero_()
        v[..., 1::2, :] = -v[..., ::2, :]
    given = [x.to(device, problem.dtype) for x in (q, k, v, grad)]
    if problem.ragged:
        given = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    return given, unit * math.log(2)


def run(key: Key, target: Target, given: list[Tensor], call: Call) -> dict[str, Tensor]:
    """What the kernel of `key` writes, with the others' results from the table's; outputs hold NaN beforehand."""
    q, k, v, grad = given
    out, dq, dk, dv = (torch.full_like(x, math.nan) for x in (q, q, k, v))
    lse, delta = (torch.full(q.shape[:3], math.nan, device=q.device) for _ in range(2))
    _run(forward_launches(q, k, v, out, lse, call, target))
    if key.kernel == "forward":
        return {"out": out, "lse": lse}
    _run(backward_launches(grad, None, q, k, v, out, lse, delta, dq, dk, dv, call, target))
    return {"dk": dk, "dv": dv} if key.kernel == "keys" else {"dq": dq}


def _run(launches: list[Launch]) -> None:
    """Launch one after the other. Warps that wait for each other do so for ever: that is found out, and left alone."""
    for launch in launches:
        launch.run()
        if launch.max_registers is not None and not measure.ends(HANGS_S):
            raise RuntimeError(f"{launch.kernel.__name__} hangs: it has not ended after {HANGS_S:g} s")


def _try(key: Key, target: Target, device: torch.device, problem: Problem) -> list[Finding]:
    given, scale = tensors(problem, device)
    left, right = problem.band
    found = run(key, target, given, Call(scale, left, right, problem.softcap, problem.length, problem.length_k))
    true = _truth(given, scale, problem.band)
    return [Finding(problem.name(), name, _worst(name, x, true[name])) for name, x in found.items()]


def _truth(given: list[Tensor], scale: float, band: Window) -> dict[str, Tensor]:
    q, k, v, grad = (x.double() for x in given)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(q, k, v, softmax_scale=scale, window=band)
    dq, dk, dv = torch.autograd.grad(out, leaves, grad)
    return {"out": out.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


def _worst(name: str, ours: Tensor, true: Tensor) -> float:
    """Largest difference over what is allowed there; NaN counts as infinite."""
    if ours.dtype in _HALF_UNIT:
        allowed = _HALF_UNIT[ours.dtype] * true.abs() + 1e-9
    else:  # one bound for the tensor
        allowed = _OF_LARGEST.get(name, _OF_LARGEST_GRADIENT) * true.abs().max().clamp(min=1e-3)
    return float(((ours.double() - true).abs() / allowed).nan_to_num(nan=math.inf).max())


def _ternary(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(-1, 2, shape, generator=generator).double()


def _pairs(shape: tuple[int, ...], length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """(q, k, unit of the scale in powers of two), for so many keys."""
    batch, _, queries, head_dim = shape
    bits = max(1, math.ceil(math.log2(length / 2)))
    repeats = int(head_dim * _CODE_SHARE) // bits
    if repeats < 1:
        raise ValueError(
            f"head_dim {head_dim} has no room for the codes of {length} keys; expected at least {2 * bits}"
        )
    code = torch.zeros(2 * batch, length, head_dim, dtype=torch.float64)
    for head in range(2 * batch):
        number = torch.empty(length, dtype=torch.int64)
        number[torch.randperm(length, generator=generator)] = torch.arange(length) // 2
        sign = 1.0 - 2.0 * ((number[:, None] >> torch.arange(bits)) & 1)
        code[head, :, : bits * repeats] = sign.repeat(1, repeats)
    k = code.view(batch, 2, length, head_dim).clone()
    q = k.repeat_interleave(2, 1)[:, :, length - queries :]  # the last query's diagonal ends at the last key
    k[..., bits * repeats :] = _ternary((batch, 2, length, head_dim - bits * repeats), generator)
    return q, k, 2.0 ** math.ceil(math.log2(NO_WEIGHT / (2 * repeats)))
