"""The Triton kernels of AdamW: the norm of the gradients, the coefficients of a step, and the update itself.

One launch of the update serves every aligned tensor of a form, and a second one, which promises the compiler nothing,
the rest. Addresses, hyper-parameters, step counts, the clip coefficient and GradScaler's tensors are all read from
device memory: a new learning rate compiles nothing, a CUDA graph can hold a step, and the host waits for nothing.
Nothing here is tuned at run time, because a trial of a kernel that works in place would be a step.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# (a kernel's body is Triton, not Python: ints there become tensors and constexprs become values)

from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels._optimizer import layout

_COLUMNS = tl.constexpr(layout.COLUMNS)
_COEFFICIENTS = tl.constexpr(layout.COEFFICIENTS)
_SETTINGS = tl.constexpr(layout.SETTING_COLUMNS)
_ROWS = tl.constexpr(layout.ROWS)
_AT_PARAM = tl.constexpr(layout.PARAM)
_AT_GRAD = tl.constexpr(layout.GRAD)
_AT_EXP_AVG = tl.constexpr(layout.EXP_AVG)
_AT_EXP_AVG_SQ = tl.constexpr(layout.EXP_AVG_SQ)
_AT_MAX_EXP_AVG_SQ = tl.constexpr(layout.MAX_EXP_AVG_SQ)
_AT_MASTER = tl.constexpr(layout.MASTER)
_AT_EXP_AVG_SCALE = tl.constexpr(layout.EXP_AVG_SCALE)
_AT_EXP_AVG_SQ_SCALE = tl.constexpr(layout.EXP_AVG_SQ_SCALE)
_AT_MAX_EXP_AVG_SQ_SCALE = tl.constexpr(layout.MAX_EXP_AVG_SQ_SCALE)
_AT_STEP = tl.constexpr(layout.STEP)
_AT_NUMEL = tl.constexpr(layout.NUMEL)
_AT_KEY = tl.constexpr(layout.KEY)
_AT_OFFSET = tl.constexpr(layout.OFFSET)
_AT_SETTINGS = tl.constexpr(layout.SETTINGS)
_FACTOR = tl.constexpr(layout.FACTOR)
_DECAY = tl.constexpr(layout.DECAY)
_ONE_MINUS_BETA1 = tl.constexpr(layout.ONE_MINUS_BETA1)
_BETA2 = tl.constexpr(layout.BETA2)
_ONE_MINUS_BETA2 = tl.constexpr(layout.ONE_MINUS_BETA2)
_STEP_SIZE = tl.constexpr(layout.STEP_SIZE)
_INVERSE_ROOT = tl.constexpr(layout.INVERSE_ROOT)
_EPS = tl.constexpr(layout.EPS)
_ACTIVE = tl.constexpr(layout.ACTIVE)
_COUNT = tl.constexpr(layout.COUNT)
_LR = tl.constexpr(layout.LR)
_BETA1 = tl.constexpr(layout.BETA1)
_BETA2_SETTING = tl.constexpr(layout.BETA2_SETTING)
_EPS_SETTING = tl.constexpr(layout.EPS_SETTING)
_WEIGHT_DECAY = tl.constexpr(layout.WEIGHT_DECAY)
_SIGN = tl.constexpr(layout.SIGN)
_MAX_NORM = tl.constexpr(layout.MAX_NORM)
_TRITON = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_TOTAL_BLOCK = 4096
_SCALARS = ("norm", "grad_scale", "found_inf")


def update_launch(form: layout.Form, table: Tensor, chunks: Tensor, coefficients: Tensor) -> Launch:
    """The update of all chunks of one form.

    Args:
        form: what to specialise for.
        table: addresses, int64 [rows, COLUMNS].
        chunks: row and chunk of each program, int32 [chunks, 2]; a chunk is BLOCK elements.
        coefficients: float32 [rows, COEFFICIENTS], as `coefficients_launch` leaves them.
    """
    arguments = {
        "table": table, "chunks": chunks, "coefficients": coefficients, "PARAM": _TRITON[form.param],
        "GRAD": _TRITON[form.grad], "MOMENTS": form.moments, "MASTER": form.master, "STOCHASTIC": form.stochastic,
        "AMSGRAD": form.amsgrad, "ALIGNED": form.aligned, "BLOCK": layout.BLOCK,
    }  # fmt: skip
    return Launch(_update, arguments, (chunks.shape[0],), layout.NUM_WARPS, 1)


def coefficients_launch(
    table: Tensor,
    settings: Tensor,
    coefficients: Tensor,
    norm: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Launch:
    """Count the step and turn hyper-parameters, in float64, into what the update multiplies by, in float32.

    Args:
        table: addresses, int64 [rows, COLUMNS].
        settings: float64 [groups, SETTING_COLUMNS].
        coefficients: float32 [rows, COEFFICIENTS], written.
        norm: float32 [], of the gradients as they are; None where there is no clipping.
        grad_scale: float32 [], what the gradients have been multiplied by; None for 1.
        found_inf: float32 [], not 0 to leave everything as it is; None for 0.
    """
    arguments = {
        "table": table, "settings": settings, "coefficients": coefficients, "norm": norm, "grad_scale": grad_scale,
        "found_inf": found_inf,
    }  # fmt: skip
    return Launch(_coefficients, arguments, (table.shape[0] // layout.ROWS,), 4, 1)


def norm_launch(grad: torch.dtype, aligned: bool, table: Tensor, chunks: Tensor, partials: Tensor) -> Launch:
    """One sum of squares for each chunk of NORM_BLOCKS · BLOCK elements of the gradients.

    Args:
        grad: type of the gradients.
        aligned: whether all of them are, as in `Form`.
        table: addresses, int64 [rows, COLUMNS].
        chunks: row and chunk of each program, int32 [chunks, 2].
        partials: float32 [chunks], written.
    """
    arguments = {
        "table": table, "chunks": chunks, "partials": partials, "GRAD": _TRITON[grad], "ALIGNED": aligned,
        "BLOCK": layout.BLOCK, "BLOCKS": layout.NORM_BLOCKS,
    }  # fmt: skip
    return Launch(_square_sums, arguments, (chunks.shape[0],), layout.NUM_WARPS, 1)


def total_launch(partials: Tensor, norm: Tensor) -> Launch:
    """The root of the sum of all partials, added in float64 in one order.

    Args:
        partials: float32 [chunks].
        norm: float32 [1], written.
    """
    arguments = {"partials": partials, "norm": norm, "count": partials.numel(), "BLOCK": _TOTAL_BLOCK}
    return Launch(_total, arguments, (1,), 8, 1)


def shipped() -> list[tuple[str, Launch]]:
    """Every launch that a step can make, by name, over meta tensors, for the ahead-of-time check."""

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    table, chunks = meta(layout.ROWS, layout.COLUMNS, dtype=torch.int64), meta(2, 2, dtype=torch.int32)
    coefficients = meta(layout.ROWS, layout.COEFFICIENTS)
    settings = meta(1, layout.SETTING_COLUMNS, dtype=torch.float64)
    scalars = product((None, meta()), repeat=3)
    named = [
        (
            " ".join(["adamw coefficients", *(name for name, x in zip(_SCALARS, given, strict=True) if x is not None)]),
            coefficients_launch(table, settings, coefficients, *given),
        )
        for given in scalars
    ]
    named.append(("adamw norm total", total_launch(meta(3), meta(1))))
    named += [
        (f"adamw norm {name}{'' if aligned else ' tail'}", norm_launch(grad, aligned, table, chunks, meta(2)))
        for grad, name in layout.SHORT.items()
        for aligned in (True, False)
    ]
    return named + [(form.name, update_launch(form, table, chunks, coefficients)) for form in layout.forms()]


@triton.jit
def _update(
    table, chunks, coefficients, PARAM: tl.constexpr, GRAD: tl.constexpr, MOMENTS: tl.constexpr, MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr, AMSGRAD: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW (arXiv:1711.05101, algorithm 2) in the order of operations of torch's fused kernel."""
    row = tl.load(chunks + 2 * tl.program_id(0))
    start = tl.load(chunks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    t = table + row * _COLUMNS
    c = coefficients + row * _COEFFICIENTS
    index = tl.arange(0, BLOCK // 256)[:, None] * 256 + tl.arange(0, 256)[None, :]
    left = tl.minimum(tl.load(t + _AT_NUMEL) - start, BLOCK).to(tl.int32)
    left = tl.where(tl.load(c + _ACTIVE) != 0, left, 0)  # a step that is skipped reads and writes nothing
    if ALIGNED:
        left = tl.multiple_of(left, 16)
    mask = index < left
    # The addresses of 8-bit scales are used once a block, never in wide accesses.
    blocks = start // 256 + tl.arange(0, BLOCK // 256)
    in_blocks = tl.arange(0, BLOCK // 256) * 256 < left

    p = _load_param(t, start, index, mask, PARAM, MASTER, ALIGNED)
    g = _load(_address(t, _AT_GRAD, GRAD, start, ALIGNED), index, mask, GRAD) * tl.load(c + _FACTOR)
    m = _load_first(t, start, index, mask, blocks, in_blocks, MOMENTS, ALIGNED)
    v = _load_second(t, _AT_EXP_AVG_SQ, _AT_EXP_AVG_SQ_SCALE, start, index, mask, blocks, in_blocks, MOMENTS, ALIGNED)

    p = p * tl.load(c + _DECAY)
    m = m + tl.load(c + _ONE_MINUS_BETA1) * (g - m)
    v = v * tl.load(c + _BETA2) + tl.load(c + _ONE_MINUS_BETA2) * g * g
    largest = v
    if AMSGRAD:
        largest = _load_second(
            t, _AT_MAX_EXP_AVG_SQ, _AT_MAX_EXP_AVG_SQ_SCALE, start, index, mask, blocks, in_blocks, MOMENTS, ALIGNED
        )
        largest = tl.maximum(largest, v, propagate_nan=tl.PropagateNan.ALL)
    if MOMENTS == "float32":
        root = tl.sqrt_rn(largest) * tl.load(c + _INVERSE_ROOT) + tl.load(c + _EPS)
        p = p - tl.load(c + _STEP_SIZE) * tl.div_rn(m, root)
    else:  # fewer bytes leave time for fewer instructions
        p = p - tl.load(c + _STEP_SIZE) * (m / (tl.sqrt(largest) * tl.load(c + _INVERSE_ROOT) + tl.load(c + _EPS)))

    first = tl.zeros_like(index).to(tl.uint32)
    second = first
    if MOMENTS != "float32" or STOCHASTIC:
        key = _mix(tl.load(t + _AT_KEY).to(tl.uint32) ^ _mix(tl.load(c + _COUNT).to(tl.uint32)))
        first = _mix((index + (tl.load(t + _AT_OFFSET) + start).to(tl.int32)).to(tl.uint32) ^ key)
        second = _remix(first)
    _store_param(t, start, index, mask, p, first & 0xFFFF, PARAM, MASTER, STOCHASTIC, ALIGNED)
    _store_first(t, start, index, mask, blocks, in_blocks, m, first >> 16, MOMENTS, ALIGNED)
    _store_second(
        t,
        _AT_EXP_AVG_SQ,
        _AT_EXP_AVG_SQ_SCALE,
        start,
        index,
        mask,
        blocks,
        in_blocks,
        v,
        second & 0xFFFF,
        MOMENTS,
        ALIGNED,
    )
    if AMSGRAD:
        _store_second(
            t,
            _AT_MAX_EXP_AVG_SQ,
            _AT_MAX_EXP_AVG_SQ_SCALE,
            start,
            index,
            mask,
            blocks,
            in_blocks,
            largest,
            second >> 16,
            MOMENTS,
            ALIGNED,
        )


@triton.jit
def _mix(x):
    """A bijection of 32-bit words with little bias (Ettinger's lowbias32), as `_optimizer.formats.mix`."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _remix(x):
    """Other bits from bits that are mixed already, as `_optimizer.formats.remix`."""
    x = (x ^ (x >> 15)) * 0x2C1B3C6D
    return x ^ (x >> 16)


@triton.jit
def _address(t, column: tl.constexpr, TYPE: tl.constexpr, start, ALIGNED: tl.constexpr):
    pointer = tl.load(t + column).to(tl.pointer_type(TYPE)) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(pointer, index, mask, TYPE: tl.constexpr):
    return tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_bits(pointer, index, mask):
    return tl.load(pointer + index, mask=mask, other=0).to(tl.int32)


@triton.jit
def _load_param(t, start, index, mask, PARAM: tl.constexpr, MASTER: tl.constexpr, ALIGNED: tl.constexpr):
    if MASTER == "float32":
        return _load(_address(t, _AT_MASTER, tl.float32, start, ALIGNED), index, mask, tl.float32)
    elif MASTER == "split16":
        high = _load_bits(_address(t, _AT_PARAM, tl.int16, start, ALIGNED), index, mask)
        low = _load_bits(_address(t, _AT_MASTER, tl.int16, start, ALIGNED), index, mask)
        return ((high << 16) + low).to(tl.float32, bitcast=True)
    else:
        return _load(_address(t, _AT_PARAM, PARAM, start, ALIGNED), index, mask, PARAM)


@triton.jit
def _store_param(
    t, start, index, mask, p, random, PARAM: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    if MASTER == "float32":
        tl.store(_address(t, _AT_MASTER, tl.float32, start, ALIGNED) + index, p, mask=mask)
    if tl.bfloat16 == PARAM:
        bits = p.to(tl.int32, bitcast=True)
        if MASTER == "split16":
            bits = tl.where(p == p, bits, 0x7FC00000)  # NaN: its bits would carry into the sign
            high = (bits + 0x8000) >> 16
            tl.store(
                _address(t, _AT_MASTER, tl.int16, start, ALIGNED) + index, (bits - (high << 16)).to(tl.int16), mask=mask
            )
        elif STOCHASTIC:
            high = tl.where(p == p, (bits + random.to(tl.int32)) >> 16, 0x7FC0)
        else:  # to nearest, ties to even
            high = tl.where(p == p, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        tl.store(_address(t, _AT_PARAM, tl.int16, start, ALIGNED) + index, high.to(tl.int16), mask=mask)
    else:
        tl.store(_address(t, _AT_PARAM, PARAM, start, ALIGNED) + index, p.to(PARAM), mask=mask)


@triton.jit
def _load_first(t, start, index, mask, blocks, in_blocks, MOMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    if MOMENTS == "int8":
        code = _small_float(_load_bits(_address(t, _AT_EXP_AVG, tl.uint8, start, ALIGNED), index, mask) ^ 0x80, 128)
        scale = tl.load(
            tl.load(t + _AT_EXP_AVG_SCALE).to(tl.pointer_type(tl.float32)) + blocks, mask=in_blocks, other=0.0
        )
        return code * tl.abs(code) * (scale * (1.0 / 16129.0))[:, None]
    elif MOMENTS == "bfloat16":
        bits = _load_bits(_address(t, _AT_EXP_AVG, tl.int16, start, ALIGNED), index, mask)
        return (bits << 16).to(tl.float32, bitcast=True)
    else:
        return _load(_address(t, _AT_EXP_AVG, tl.float32, start, ALIGNED), index, mask, tl.float32)


@triton.jit
def _load_second(
    t, column: tl.constexpr, scale_column: tl.constexpr, start, index, mask, blocks, in_blocks, MOMENTS: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    if MOMENTS == "int8":
        code = _small_float(_load_bits(_address(t, column, tl.uint8, start, ALIGNED), index, mask), 0)
        scale = tl.load(tl.load(t + scale_column).to(tl.pointer_type(tl.float32)) + blocks, mask=in_blocks, other=0.0)
        square = code * code
        return square * square * (scale * (1.0 / 4228250625.0))[:, None]
    elif MOMENTS == "bfloat16":
        bits = _load_bits(_address(t, column, tl.int16, start, ALIGNED), index, mask)
        return (bits << 16).to(tl.float32, bitcast=True)
    else:
        return _load(_address(t, column, tl.float32, start, ALIGNED), index, mask, tl.float32)


@triton.jit
def _store_first(t, start, index, mask, blocks, in_blocks, m, random, MOMENTS: tl.constexpr, ALIGNED: tl.constexpr):
    if MOMENTS == "int8":
        scale = _largest(m)
        tl.store(tl.load(t + _AT_EXP_AVG_SCALE).to(tl.pointer_type(tl.float32)) + blocks, scale, mask=in_blocks)
        x = tl.abs(m) * _inverse(scale, 16129.0)[:, None]
        low = tl.minimum(tl.floor(tl.sqrt(x)), 126.0)
        code = low + tl.where(_uniform(random) * (low + low + 1.0) < x - low * low, 1.0, 0.0)
        code = _small_int(tl.where(m < 0, -code, code))
        tl.store(_address(t, _AT_EXP_AVG, tl.int8, start, ALIGNED) + index, code.to(tl.int8), mask=mask)
    elif MOMENTS == "bfloat16":
        _store_bfloat16(_address(t, _AT_EXP_AVG, tl.int16, start, ALIGNED) + index, m, random, mask)
    else:
        tl.store(_address(t, _AT_EXP_AVG, tl.float32, start, ALIGNED) + index, m, mask=mask)


@triton.jit
def _store_second(
    t, column: tl.constexpr, scale_column: tl.constexpr, start, index, mask, blocks, in_blocks, v, random,
    MOMENTS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    if MOMENTS == "int8":
        scale = _largest(v)
        tl.store(tl.load(t + scale_column).to(tl.pointer_type(tl.float32)) + blocks, scale, mask=in_blocks)
        x = v * _inverse(scale, 4228250625.0)[:, None]
        low = tl.minimum(tl.floor(tl.sqrt(tl.sqrt(x))), 254.0)
        gap = ((4.0 * low + 6.0) * low + 4.0) * low + 1.0  # (low + 1)⁴ − low⁴
        square = low * low
        code = low + tl.where(_uniform(random) * gap < x - square * square, 1.0, 0.0)
        code = _small_int(tl.maximum(code, tl.where(v > 0, 1.0, 0.0)))
        tl.store(_address(t, column, tl.uint8, start, ALIGNED) + index, code.to(tl.uint8), mask=mask)
    elif MOMENTS == "bfloat16":
        _store_bfloat16(_address(t, column, tl.int16, start, ALIGNED) + index, v, random, mask)
    else:
        tl.store(_address(t, column, tl.float32, start, ALIGNED) + index, v, mask=mask)


@triton.jit
def _store_bfloat16(pointer, x, random, mask):
    high = (x.to(tl.int32, bitcast=True) + random.to(tl.int32)) >> 16
    tl.store(pointer, tl.where(x == x, high, 0x7FC0).to(tl.int16), mask=mask)


@triton.jit
def _largest(x):
    """The largest magnitude of each row, NaN if one is there: as integers, NaN is above everything."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(bits, axis=1).to(tl.float32, bitcast=True)


@triton.jit
def _inverse(scale, top: tl.constexpr):
    return top / tl.maximum(scale, top / 3e38, propagate_nan=tl.PropagateNan.ALL)


# Conversions between integers and floats run at a quarter of the rate of additions, and 8-bit moments would take ten an
# element; adding 2²³ or 1.5 · 2²³ puts an integer into the low bits of a float32 instead.


@triton.jit
def _small_float(x, less: tl.constexpr):
    """An integer in [0, 2²³) as a float, less a small integer."""
    return (x | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + less)


@triton.jit
def _small_int(x):
    """An integral float whose low byte is that of the integer."""
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _uniform(random):
    """16 bits as a number in (0, 1), the middle of its interval."""
    bits = (random.to(tl.int32) << 7) | 0x3F800000
    return bits.to(tl.float32, bitcast=True) - (1.0 - 1.0 / 131072.0)


@triton.jit
def _coefficients(table, settings, coefficients, norm, grad_scale, found_inf):
    row = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    t = table + row * _COLUMNS
    steps = tl.load(t + _AT_STEP)
    exists = steps != 0
    active = exists
    if found_inf is not None:
        active = exists & (tl.load(found_inf + row * 0) == 0)
    pointer = steps.to(tl.pointer_type(tl.float32))
    count = tl.load(pointer, mask=exists, other=0.0) + 1.0
    tl.store(pointer, count, mask=active)

    s = settings + tl.load(t + _AT_SETTINGS) * _SETTINGS
    lr, beta1, beta2 = tl.load(s + _LR), tl.load(s + _BETA1), tl.load(s + _BETA2_SETTING)
    factor = tl.load(s + _SIGN)
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale).to(tl.float64)
        factor = factor / scale
    if norm is not None:
        most = tl.load(s + _MAX_NORM)
        clip = most / (tl.load(norm).to(tl.float64) / scale + 1e-6)
        clip = tl.where(clip > 1.0, 1.0, clip)  # a norm that is NaN stays one, as in torch
        factor = factor * tl.where(most > 0, clip, 1.0)

    c = coefficients + row * _COEFFICIENTS
    tl.store(c + _FACTOR, factor.to(tl.float32))
    tl.store(c + _DECAY, (1.0 - lr * tl.load(s + _WEIGHT_DECAY)).to(tl.float32))
    tl.store(c + _ONE_MINUS_BETA1, (1.0 - beta1).to(tl.float32))
    tl.store(c + _BETA2, beta2.to(tl.float32))
    tl.store(c + _ONE_MINUS_BETA2, (1.0 - beta2).to(tl.float32))
    tl.store(c + _STEP_SIZE, (lr / (1.0 - _power(beta1, count))).to(tl.float32))
    tl.store(c + _INVERSE_ROOT, (1.0 / tl.sqrt(1.0 - _power(beta2, count))).to(tl.float32))
    tl.store(c + _EPS, tl.load(s + _EPS_SETTING).to(tl.float32))
    tl.store(c + _ACTIVE, active.to(tl.float32))
    tl.store(c + _COUNT, count)


@triton.jit
def _power(beta, count):
    """A beta to the power of the step by repeated squaring: exact enough, and the same on every device."""
    power = tl.full(count.shape, 1.0, tl.float64)
    bits = count.to(tl.int32)
    for _ in range(24):  # float32 counts up to 2²⁴
        power = tl.where(bits & 1 == 1, power * beta, power)
        beta = beta * beta
        bits = bits >> 1
    return power


@triton.jit(do_not_specialize_on_alignment=["partials"])
def _square_sums(
    table, chunks, partials, GRAD: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.load(chunks + 2 * tl.program_id(0))
    start = tl.load(chunks + 2 * tl.program_id(0) + 1).to(tl.int64) * (BLOCK * BLOCKS)
    t = table + row * _COLUMNS
    pointer = _address(t, _AT_GRAD, GRAD, start, ALIGNED)
    left = tl.minimum(tl.load(t + _AT_NUMEL) - start, BLOCK * BLOCKS).to(tl.int32)
    if ALIGNED:
        left = tl.multiple_of(left, 16)
    index = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(BLOCKS):
        g = _load(pointer, index + block * BLOCK, index + block * BLOCK < left, GRAD)
        total += g * g
    tl.store(partials + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["count"])
def _total(partials, norm, count, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        total += tl.load(partials + start + index, mask=start + index < count, other=0.0).to(tl.float64)
    tl.store(norm, tl.sqrt(tl.sum(total, axis=0)).to(tl.float32))
