"""How moments and weights are kept in fewer bytes, and the random bits that their rounding takes.

Everything here is plain PyTorch, works on any device, and gives what the Triton kernels give. "Memory order" below is
the order in which a dense tensor's elements lie in memory: blocks of 8-bit moments and the random bits count elements
that way, so that a kernel need not know a tensor's strides.

8-bit moments share one float32 scale, the largest magnitude, among 256 elements. A first moment is
sign(c) · (c / 127)² · scale with c in [−127, 127], a second one (c / 255)⁴ · scale with c in [0, 255], and a second
moment above zero never has the code 0, which would divide by eps alone. Codes are dense near zero, where most of the
moments of a block are.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # elements that share a scale
SMALLEST_INT8 = 4096  # tensors below this many elements keep float32 moments
HALF = 1 << 15  # as random bits, this rounds to the nearest

_WORD = 0xFFFFFFFF
_FIRST_TOP, _SECOND_TOP = 127.0**2, 255.0**4
_MOST = 3e38  # above the largest inverse of a scale; a block of values below 1e-29 loses precision, not sense


def mix(x: Any) -> Any:
    """A bijection of 32-bit words with little bias: lowbias32 of Ettinger's hash-prospector.

    Args:
        x: an int, or an int64 tensor, in [0, 2³²).
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def remix(x: Any) -> Any:
    """Other bits from bits that `mix` has made; arguments as there."""
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & _WORD
    return x ^ (x >> 16)


@lru_cache(maxsize=1 << 16)
def tensor_key(seed: int, number: int) -> int:
    """The 32-bit word that stands for one parameter of one training.

    Args:
        seed: in [0, 2³²).
        number: position of the parameter among all parameters of the optimizer.
    """
    return mix((mix(seed) + number * 0x9E3779B9) & _WORD)


def random_words(like: Tensor, key: int, step: int, offset: int) -> tuple[Tensor, Tensor]:
    """Two 32-bit words for each element, from the seed and parameter in `key`, the step and the element alone.

    Args:
        like: a tensor whose shape and strides the words take.
        key: of `tensor_key`.
        step: the step being taken, from 1.
        offset: number of the first element, where `like` is a shard; counted modulo 2³².

    Returns:
        int64 tensors in [0, 2³²).
    """
    count = torch.arange(like.numel(), device=like.device)
    words = mix(((count + offset) & _WORD) ^ mix(key ^ mix(step)))
    words = words.as_strided(like.shape, like.stride()) if is_dense(like) else words.view(like.shape)
    return words, remix(words)


def is_dense(x: Tensor) -> bool:
    """Whether the elements of x fill one stretch of memory, each once, in whatever order."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def stochastic_bfloat16(x: Tensor, random: Tensor | int) -> Tensor:
    """Round up or down to bfloat16 so that the mean over all random bits is x.

    Args:
        x: float32.
        random: int64 in [0, 2¹⁶), of x's shape; HALF rounds to the nearest, ties away from zero.
    """
    bits = x.view(torch.int32).to(torch.int64)
    high = torch.where(x.isnan(), 0x7FC0, (bits + random) >> 16)
    return high.to(torch.int16).view(torch.bfloat16)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as its nearest bfloat16 and the 16-bit integer that restores it.

    Ties are rounded up in the bits, so that the remainder fits; NaN becomes the one NaN that does not carry.

    Returns:
        bfloat16 and int16 tensors of x's shape.
    """
    bits = torch.where(x.isnan(), 0x7FC00000, x.view(torch.int32).to(torch.int64))
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join(high: Tensor, remainder: Tensor) -> Tensor:
    """The float32 tensor that `split` made into `high` and `remainder`, bit for bit."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + remainder).view(torch.float32)


def scale_count(numel: int) -> int:
    """Blocks of an 8-bit tensor."""
    return -(-numel // BLOCK)


def encode_first(x: Tensor, random: Tensor | int) -> tuple[Tensor, Tensor]:
    """First moments in 8 bits, rounded so that the mean over all random bits is x.

    Args:
        x: float32, dense.
        random: int64 in [0, 2¹⁶), of x's shape and strides; HALF rounds to the nearer value.

    Returns:
        int8 codes of x's shape and strides, and float32 scales [blocks].
    """
    blocks, scales = _in_blocks(x)
    scaled = blocks.abs() * _inverse(scales, _FIRST_TOP)
    low = scaled.sqrt().floor().clamp(max=126.0)
    codes = low + (_uniform(random) * (low + low + 1.0) < scaled - low * low)
    return _out_of_blocks(torch.where(blocks < 0, -codes, codes).to(torch.int8), x), scales


def decode_first(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 moments of `encode_first`, of the codes' shape and strides."""
    blocks = _padded(codes)
    values = blocks.to(torch.float32)
    return _out_of_blocks(values * values.abs() * (scales * (1.0 / _FIRST_TOP))[:, None], codes)


def encode_second(x: Tensor, random: Tensor | int) -> tuple[Tensor, Tensor]:
    """Second moments in 8 bits; arguments and results as of `encode_first`, codes uint8."""
    blocks, scales = _in_blocks(x)
    scaled = blocks * _inverse(scales, _SECOND_TOP)
    low = scaled.sqrt().sqrt().floor().clamp(max=254.0)
    gap = ((4.0 * low + 6.0) * low + 4.0) * low + 1.0  # (low + 1)⁴ − low⁴
    square = low * low
    codes = low + (_uniform(random) * gap < scaled - square * square)
    return _out_of_blocks(torch.maximum(codes, (blocks > 0).to(codes.dtype)).to(torch.uint8), x), scales


def decode_second(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 moments of `encode_second`, of the codes' shape and strides."""
    blocks = _padded(codes)
    squares = blocks.to(torch.float32) ** 2
    return _out_of_blocks(squares * squares * (scales * (1.0 / _SECOND_TOP))[:, None], codes)


def _padded(x: Tensor) -> Tensor:
    """The elements in memory order as [blocks, BLOCK], zeros at the end."""
    flat = x.as_strided((x.numel(),), (1,))
    blocks = flat.new_zeros(scale_count(x.numel()) * BLOCK)
    blocks[: x.numel()] = flat
    return blocks.view(-1, BLOCK)


def _in_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    blocks = _padded(x)
    return blocks, blocks.abs().amax(1)


def _out_of_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    return blocks.flatten()[: like.numel()].as_strided(like.shape, like.stride()).clone()


def _inverse(scales: Tensor, top: float) -> Tensor:
    return (top / scales.clamp(min=top / _MOST))[:, None]


def _uniform(random: Tensor | int) -> Tensor | float:
    """16 bits as a number in (0, 1), the middle of its interval, in blocks."""
    if isinstance(random, int):
        return random / 65536.0
    return (_padded(random).to(torch.float32) + 0.5) * (1.0 / 65536.0)
