"""The forward kernel for Hopper in which warps have different work: one loads tiles, groups of four compute.

Each group of four warps keeps 64 queries. Keys and values come through the copy engine (TMA) into a ring of tiles that
the loading warp fills as soon as every group has let go of one. A group starts the scores of the next tile before it
multiplies the weights of this one with the values, so that exponentials run beside matrix products (FlashAttention-3,
arXiv:2407.08608, section 3.2). Tiles are taken from the last to the first: those that need a mask come first, and
after them every row has seen a key.

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

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
"""Queries of one group of four warps: the height of a wgmma."""

SIZES = ("heads", "groups", "len_q", "len_k", "blocks", "lanes", "section", "lse_batch", "lse_head")


@gluon.constexpr_function
def _accumulator(columns):
    """Where the lanes of four warps keep a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.jit
def _load(q_desc, k_desc, v_desc, shared, work, kv_head):
    """The loading warp: the queries once, then keys and values, the last tile first."""
    q_tiles, q_full, ring = shared
    batch, head, row, tiles, _, _, _, _ = work
    k_tiles, v_tiles, k_full, v_full, k_empty, v_empty = ring
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    GROUPS: gl.constexpr = q_tiles.shape[0]
    for group in gl.static_range(GROUPS):
        mbarrier.expect(q_full.index(group), q_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            q_desc, [batch, head, row + group * ROWS, 0], q_full.index(group), q_tiles.index(group)
        )
    for i in range(tiles):
        stage = i % STAGES
        round_before = (i // STAGES & 1) ^ 1
        start = (tiles - 1 - i) * BLOCK_N
        mbarrier.wait(k_empty.index(stage), round_before)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [batch, kv_head, start, 0], k_full.index(stage), k_tiles.index(stage))
        mbarrier.wait(v_empty.index(stage), round_before)
        mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [batch, kv_head, start, 0], v_full.index(stage), v_tiles.index(stage))


@gluon.jit
def _start_scores(q, ring, i):
    """The product of the queries with tile i of the keys, under way."""
    tiles, _, ready, _, _, _ = ring
    STAGES: gl.constexpr = tiles.shape[0]
    BLOCK_N: gl.constexpr = tiles.shape[3]
    mbarrier.wait(ready.index(i % STAGES), i // STAGES & 1)
    k = tiles.index(i % STAGES).reshape([BLOCK_N, tiles.shape[4]]).permute([1, 0])
    nothing = gl.zeros([ROWS, BLOCK_N], gl.float32, _accumulator(BLOCK_N))
    return warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)


@gluon.jit
def _start_output(acc, weights, ring, i):
    """The accumulator plus the weights times tile i of the values, under way."""
    _, tiles, _, ready, _, _ = ring
    STAGES: gl.constexpr = tiles.shape[0]
    mbarrier.wait(ready.index(i % STAGES), i // STAGES & 1)
    v = tiles.index(i % STAGES).reshape([tiles.shape[3], tiles.shape[4]])
    return warpgroup_mma(weights, v, acc, is_async=True)


@gluon.jit
def _let_go(empty, i):
    """This group needs the slot of tile i no more."""
    mbarrier.arrive(empty.index(i % empty.shape[0]), count=1)


@gluon.jit
def _softmax(
    scores, peak, total, rows, start, len_k, shift, scale,
    DTYPE: gl.constexpr, MASKED: gl.constexpr, CAUSAL: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """One tile's weights as an operand, row sums and maxima after it, and what the accumulator shrinks by."""
    if MASKED:
        cols = gl.expand_dims(start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, _accumulator(BLOCK_N))), 0)
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
    operand = gl.convert_layout(weights.to(DTYPE), gl.DotOperandLayout(0, _accumulator(HEAD_DIM), 2))
    return operand, total, new_peak, gl.convert_layout(decay, gl.SliceLayout(1, _accumulator(HEAD_DIM)))


@gluon.jit
def _taken_by_now(total):
    """The same row sums, in a way that keeps ptxas from waiting first and taking the exponentials afterwards.

    A sum of weights is never negative, so nothing sleeps; but the instruction depends on every weight, has a side
    effect, and so stays before the wait that follows it.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.f32 p, $1, 0f00000000; @p nanosleep.u32 1; mov.b32 $0, $1; }", "=r,r", [total],
        dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _advance(
    acc, weights, total, peak, q, ring, i, rows, tiles, len_k, shift, scale,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Weights of tile i, while those of tile i − 1 are multiplied with their values."""
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    scores = _start_scores(q, ring, i)
    acc = _start_output(acc, weights, ring, i - 1)
    scores = warpgroup_mma_wait(1, deps=[scores])
    _let_go(ring[4], i)
    following, total, peak, decay = _softmax(
        scores, peak, total, rows, (tiles - 1 - i) * BLOCK_N, len_k, shift, scale,
        weights.dtype, MASKED, CAUSAL, ring[0].shape[4], BLOCK_N,
    )  # fmt: skip
    total = _taken_by_now(total)
    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])
    _let_go(ring[5], i - 1)
    return acc * gl.expand_dims(decay, 1), following, total, peak


@gluon.jit
def _compute(group, out_desc, lse_ptr, shared, work, CAUSAL: gl.constexpr):
    """Output and log-sum-exp of 64 queries; `lse_ptr` is the head's, the scale is in units of log 2."""
    q_tiles, q_full, ring = shared
    batch, head, row, tiles, masked, len_q, len_k, scale = work
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    HEAD_DIM: gl.constexpr = ring[0].shape[4]
    by_row: gl.constexpr = gl.SliceLayout(1, _accumulator(BLOCK_N))
    row += group * ROWS
    rows = row + gl.arange(0, ROWS, by_row)
    shift = len_k - len_q
    q = q_tiles.index(group).reshape([ROWS, HEAD_DIM])
    acc = gl.zeros([ROWS, HEAD_DIM], gl.float32, _accumulator(HEAD_DIM))
    total = gl.zeros([ROWS], gl.float32, by_row)
    peak = gl.full([ROWS], float("-inf"), gl.float32, by_row)

    mbarrier.wait(q_full.index(group), 0)
    scores = warpgroup_mma_wait(0, deps=[_start_scores(q, ring, 0)])
    _let_go(ring[4], 0)
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
    out = acc / gl.expand_dims(gl.convert_layout(total, gl.SliceLayout(1, _accumulator(HEAD_DIM))), 1)
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
    """Output and log-sum-exp of one block of queries of one head; blocks in the order of `tiles.place`.

    Descriptors are of [B, H, S, D], in tiles of [1, 1, 64, D] for queries and output and [1, 1, BLOCK_N, D] for keys
    and values. `scale` is positive. Where CAUSAL, there are at least as many keys as queries.
    """
    GROUPS: gl.constexpr = BLOCK_M // ROWS
    pid = gl.program_id(0)
    first_lane = pid // (section * blocks) * section
    within = pid % (section * blocks)
    width = min(section, lanes - first_lane)
    block = within // width
    if CAUSAL:
        block = blocks - 1 - block
    lane = first_lane + within % width
    batch = lane // heads
    head = lane % heads
    row = block * BLOCK_M
    lse_ptr += batch.to(gl.int64) * lse_batch + head.to(gl.int64) * lse_head

    last = len_k
    full = len_k // BLOCK_N
    if CAUSAL:
        last = min(len_k, row + BLOCK_M + len_k - len_q)
        full = min(full, (row + len_k - len_q + 1) // BLOCK_N)
    tiles = gl.cdiv(last, BLOCK_N)
    masked = max(tiles - full, 1)  # the first of them is masked in any case

    q_tiles = gl.allocate_shared_memory(q_desc.dtype, [GROUPS, 1, 1, ROWS, HEAD_DIM], q_desc.layout)
    k_tiles = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, 1, BLOCK_N, HEAD_DIM], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, 1, BLOCK_N, HEAD_DIM], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(GROUPS):
        mbarrier.init(q_full.index(group), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=GROUPS)
        mbarrier.init(v_empty.index(stage), count=GROUPS)

    shared = (q_tiles, q_full, (k_tiles, v_tiles, k_full, v_full, k_empty, v_empty))
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
