"""The forward kernel for Hopper in which warps have different work: one loads tiles, groups of four compute.

Each group of four warps keeps 64 queries. A group starts the scores of the next tile of keys before it multiplies the
weights of this one with the values, so that exponentials run beside matrix products (FlashAttention-3,
arXiv:2407.08608, section 3.2). Tiles are taken from the last to the first, so that those which need a mask come first.

It does plain calls alone: full or causal attention of 16-bit tensors, 64 or 128 wide. It is written in Gluon, triton's
lower language, which has no interpreter: this module is imported only where it is compiled.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (inside a kernel, numbers and tensors are one)

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from efftrain_kernels._kernels.specialised_tiles import (
    LN2,
    LOG2E,
    ROWS,
    accumulator,
    done_before_the_wait,
    key_tiles,
    let_go,
    load_keys,
    load_own,
    make_barriers,
    make_ring,
    make_tiles,
    operand,
    place,
    rows_of,
    start_product,
    wait_full,
)

SIZES = ("heads", "groups", "len_q", "len_k", "blocks", "lanes", "section", "lse_batch", "lse_head")


@gluon.jit
def _load(q_desc, k_desc, v_desc, shared, work, kv_head):
    """The loading warp."""
    q_tiles, q_full, ring = shared
    batch, head, row, tiles, _, _, _, _ = work
    load_own(q_desc, q_tiles, q_full, batch, head, row)
    load_keys(k_desc, v_desc, ring, batch, kv_head, tiles)


@gluon.jit
def _start_output(acc, weights, ring, i):
    """The accumulator plus the weights times tile i of the values, under way."""
    wait_full(ring[3], i)
    return warpgroup_mma(weights, rows_of(ring[1], i), acc, is_async=True)


@gluon.jit
def _softmax(
    scores, peak, total, rows, start, len_k, shift, scale,
    DTYPE: gl.constexpr, MASKED: gl.constexpr, CAUSAL: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """One tile's weights as an operand, row sums and maxima after it, and what the accumulator shrinks by."""
    if MASKED:
        cols = gl.expand_dims(start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, accumulator(BLOCK_N))), 0)
        seen = cols < len_k
        if CAUSAL:
            seen = seen & (cols <= gl.expand_dims(rows, 1) + shift)
        scores = gl.where(seen, scores, float("-inf"))
    new_peak = gl.maximum(peak, gl.max(scores, 1) * scale)
    safe = new_peak
    if MASKED:  # a row may have seen nothing yet
        safe = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = gl.exp2(scores * scale - gl.expand_dims(safe, 1))
    decay = gl.exp2(peak - safe)
    total = total * decay + gl.sum(weights, 1)
    shrunk = gl.convert_layout(decay, gl.SliceLayout(1, accumulator(HEAD_DIM)))
    return gl.convert_layout(weights.to(DTYPE), operand(HEAD_DIM)), total, new_peak, shrunk


@gluon.jit
def _advance(
    acc, weights, total, peak, q, ring, i, rows, tiles, len_k, shift, scale,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Weights of tile i, while those of tile i − 1 are multiplied with their values."""
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    wait_full(ring[2], i)
    scores = start_product(q, ring[0], i)
    acc = _start_output(acc, weights, ring, i - 1)
    scores = warpgroup_mma_wait(1, deps=[scores])
    let_go(ring[4], i)
    following, total, peak, decay = _softmax(
        scores, peak, total, rows, (tiles - 1 - i) * BLOCK_N, len_k, shift, scale,
        weights.dtype, MASKED, CAUSAL, ring[0].shape[4], BLOCK_N,
    )  # fmt: skip
    total = done_before_the_wait(total, 1)
    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
    let_go(ring[5], i - 1)
    return acc * gl.expand_dims(decay, 1), following, total, peak


@gluon.jit
def _compute(group, out_desc, lse_ptr, shared, work, CAUSAL: gl.constexpr):
    """Output and log-sum-exp of 64 queries; `lse_ptr` is the head's, the scale is in units of log 2."""
    q_tiles, q_full, ring = shared
    batch, head, row, tiles, masked, len_q, len_k, scale = work
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    HEAD_DIM: gl.constexpr = ring[0].shape[4]
    by_row: gl.constexpr = gl.SliceLayout(1, accumulator(BLOCK_N))
    row += group * ROWS
    rows = row + gl.arange(0, ROWS, by_row)
    shift = len_k - len_q
    q = rows_of(q_tiles, group)
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, accumulator(HEAD_DIM))
    total = gl.zeros([ROWS], gl.float32, by_row)
    peak = gl.full([ROWS], float("-inf"), gl.float32, by_row)

    mbarrier.wait(q_full.index(group), 0)
    wait_full(ring[2], 0)
    scores = warpgroup_mma_wait(0, deps=[start_product(q, ring[0], 0)])
    let_go(ring[4], 0)
    weights, total, peak, _ = _softmax(
        scores, peak, total, rows, (tiles - 1) * BLOCK_N, len_k, shift, scale,
        out_desc.dtype, True, CAUSAL, HEAD_DIM, BLOCK_N,
    )  # fmt: skip
    for i in range(1, masked):
        acc, weights, total, peak = _advance(
            acc, weights, total, peak, q, ring, i, rows, tiles, len_k, shift, scale, True, CAUSAL
        )
    for i in range(masked, tiles):
        acc, weights, total, peak = _advance(
            acc, weights, total, peak, q, ring, i, rows, tiles, len_k, shift, scale, False, CAUSAL
        )
    acc = _start_output(acc, weights, ring, tiles - 1)
    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])

    gl.store(lse_ptr + rows, (peak + gl.log2(total)) * LN2, mask=rows < len_q)
    out = acc / gl.expand_dims(gl.convert_layout(total, gl.SliceLayout(1, accumulator(HEAD_DIM))), 1)
    q.store(out.to(out_desc.dtype))  # where the queries were; rows from len_q on are not copied out
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [batch, head, row, 0], q_tiles.index(group))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=SIZES)
def forward(
    q_desc, k_desc, v_desc, out_desc, lse_ptr, lse_batch, lse_head, heads, groups, len_q, len_k, blocks, lanes, section,
    scale, CAUSAL: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one block of queries of one head.

    Descriptors are of [B, H, S, D], in tiles of [1, 1, 64, D] for queries and output and [1, 1, BLOCK_N, D] for keys
    and values. `scale` is positive. Where CAUSAL, there are at least as many keys as queries.
    """
    GROUPS: gl.constexpr = BLOCK_M // ROWS
    block, lane = place(blocks, lanes, section, CAUSAL)
    batch = lane // heads
    head = lane % heads
    lse_ptr += batch.to(gl.int64) * lse_batch + head.to(gl.int64) * lse_head
    row = block * BLOCK_M
    tiles, masked = key_tiles(row, len_q, len_k, BLOCK_M, BLOCK_N, CAUSAL)
    q_tiles = make_tiles(q_desc, GROUPS, ROWS, HEAD_DIM)
    q_full = make_barriers(GROUPS, 1)
    ring = make_ring(k_desc, v_desc, STAGES, BLOCK_N, HEAD_DIM, GROUPS)
    shared = (q_tiles, q_full, ring)
    work = (batch, head, row, tiles, masked, len_q, len_k, scale * LOG2E)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_compute, (0, out_desc, lse_ptr, shared, work, CAUSAL)),
                (_compute, (1, out_desc, lse_ptr, shared, work, CAUSAL)),
                (_load, (q_desc, k_desc, v_desc, shared, work, head // groups)),
            ],
            [4, 1], [240, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_compute, (0, out_desc, lse_ptr, shared, work, CAUSAL)),
                (_compute, (1, out_desc, lse_ptr, shared, work, CAUSAL)),
                (_compute, (2, out_desc, lse_ptr, shared, work, CAUSAL)),
                (_load, (q_desc, k_desc, v_desc, shared, work, head // groups)),
            ],
            [4, 4, 1], [160, 160, 24],
        )  # fmt: skip
