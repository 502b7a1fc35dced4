"""What the attention kernels share: which tiles a program visits, which scores are visible, and how a score is made.

Positions follow `efftrain_kernels.attention`: query i sees key j where i + shift − left ≤ j ≤ i + shift + right and
shift = Sk − Sq. A side that is not bounded is left out at compile time.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (inside a kernel, numbers and tensors are one)

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

SIZES = (
    "heads", "kv_heads", "len_q", "len_k", "blocks", "lanes", "section", "left", "right", "lse_batch", "lse_head",
    "grad_lse_batch", "grad_lse_head", "grad_lse_row",
)  # fmt: skip
"""Arguments of which no kernel is compiled anew when they become, or cease to be, a multiple of 16."""


@triton.jit
def place(blocks, lanes, section, REVERSED: tl.constexpr):
    """Which block of rows and which lane (sequence and head) this program works on.

    Lanes are taken in sections whose keys and values fit into the L2 cache together; within a section all lanes do
    one block before any does the next, so that heads which share keys run side by side. With a causal mask the last
    blocks of rows are the longest and go first.
    """
    pid = tl.program_id(0)
    first = pid // (section * blocks) * section
    within = pid % (section * blocks)
    width = min(section, lanes - first)
    block = within // width
    if REVERSED:
        block = blocks - 1 - block
    return block, first + within % width


@triton.jit
def sequence(batch, cu_ptr, length, PACKED: tl.constexpr):
    """(First row of a sequence in its tensor, its length)."""
    begin = tl.zeros([], dtype=tl.int64)
    if PACKED:
        begin = tl.load(cu_ptr + batch).to(tl.int64)
        length = (tl.load(cu_ptr + batch + 1) - begin).to(tl.int32)
    return begin, length


@triton.jit
def bands(
    start, length, shift, before, after,
    SIZE: tl.constexpr, STEP: tl.constexpr, HAS_BEFORE: tl.constexpr, HAS_AFTER: tl.constexpr,
):  # fmt: skip
    """Tiles of the other side that positions start … start + SIZE − 1 see, as bounds of three stretches.

    Position i sees i + shift − before … i + shift + after of the other side. Tiles between `full_first` and
    `full_last` are seen by all positions; those from `first` and those up to `last` need a mask. All but `last` are
    multiples of STEP.
    """
    first = 0
    full_first = 0
    last = length
    full_last = length // STEP * STEP
    if HAS_BEFORE:
        first = tl.maximum(start + shift - before, 0) // STEP * STEP
        full_first = tl.cdiv(tl.maximum(start + SIZE - 1 + shift - before, 0), STEP) * STEP
    if HAS_AFTER:
        last = tl.minimum(length, start + SIZE + shift + after)
        full_last = tl.minimum(full_last, tl.maximum(start + shift + after + 1, 0) // STEP * STEP)
    last = tl.maximum(last, first)
    if full_last <= full_first:
        full_first = first
        full_last = first
    return first, full_first, full_last, last


@triton.jit
def masked_start(i, first, full_first, full_last, STEP: tl.constexpr):
    """Where the i-th masked tile begins: those before the full stretch come first, then those after it."""
    start = first + i * STEP
    return tl.where(start < full_first, start, start + full_last - full_first)


@triton.jit
def visible(rows, cols, len_q, len_k, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Whether each query of `rows` sees each key of `cols`, for shapes that broadcast."""
    seen = (rows < len_q) & (cols < len_k)
    offset = cols - rows - (len_k - len_q)
    if HAS_LEFT:
        seen &= offset >= -left
    if HAS_RIGHT:
        seen &= offset <= right
    return seen


@triton.jit
def tanh(x):
    """Tanh with a relative error of about 1e-7: a Taylor series near 0, where 1 − 2/(e²ˣ + 1) cancels."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    # At ±∞ the quotient is 0 or 2, so the result is ±1.
    return tl.where(square < 0.0625, series, 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1))


@triton.jit
def load_rows(ptr, rows, row_stride, length, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Tile [rows, BLOCK_D]; rows from `length` on and columns from HEAD_DIM on are 0."""
    dims = tl.arange(0, BLOCK_D)
    ptrs = ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    if MASKED:
        if HEAD_DIM == BLOCK_D:
            return tl.load(ptrs, mask=rows[:, None] < length, other=0.0)
        return tl.load(ptrs, mask=(rows[:, None] < length) & (dims[None, :] < HEAD_DIM), other=0.0)
    if HEAD_DIM == BLOCK_D:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=dims[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def store_rows(ptr, rows, row_stride, length, tile, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the tile [rows, BLOCK_D] in the tensor's type; rows from `length` on are left alone."""
    dims = tl.arange(0, BLOCK_D)
    ptrs = ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    mask = rows[:, None] < length
    if HEAD_DIM != BLOCK_D:
        mask &= dims[None, :] < HEAD_DIM
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=mask)
