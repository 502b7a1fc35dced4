"""The backward kernels for Hopper in which warps have different work; what they compute is in `attention_backward`.

The gradients of keys and values belong to groups that keep 64 keys each, while queries and the output's gradient come
through the ring; those of queries to groups that keep 64 queries each, while keys and values come through it. One
group's exponentials run beside the other's matrix products. Sums have one order, so results are the same bit for bit
on every run. What calls they do is as in `attention_specialised`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false
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
    wait_empty,
    wait_full,
)

SIZES = (
    "heads", "kv_heads", "groups", "len_q", "len_k", "blocks", "lanes", "section", "lse_batch", "lse_head",
)  # fmt: skip


@gluon.jit
def _write(tile, tiles, group, desc, batch, head, row):
    """What a group has computed, over what it kept, and from there to its place."""
    rows_of(tiles, group).store(tile.to(desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(desc, [batch, head, row, 0], tiles.index(group))


@gluon.jit
def _start_of(i, bands, BLOCK_M: gl.constexpr):
    """The first query of the i-th tile: those that need a mask come first, then those that all keys see."""
    first, full_first, full_last, masked = bands
    start = first + i * BLOCK_M
    if start >= full_first:
        start += full_last - full_first
    if i >= masked:
        start = full_first + (i - masked) * BLOCK_M
    return start


@gluon.jit
def _load_queries(q_desc, grad_desc, lse_desc, delta_desc, k_desc, v_desc, shared, work):
    """The loading warp: the group's keys and values once, then the queries of each head, tile by tile."""
    k_tiles, v_tiles, k_full, v_full, ring, rows = shared
    batch, kv_head, row, groups, tiles, bands, _, _, _, lse_batch, lse_head = work
    q_tiles, grad_tiles, q_full, grad_full, q_empty, grad_empty = ring
    lse_rows, delta_rows = rows
    STAGES: gl.constexpr = q_tiles.shape[0]
    BLOCK_M: gl.constexpr = q_tiles.shape[3]
    load_own(k_desc, k_tiles, k_full, batch, kv_head, row)
    load_own(v_desc, v_tiles, v_full, batch, kv_head, row)
    for n in range(groups * tiles):
        stage = n % STAGES
        head = kv_head * groups + n // tiles
        start = _start_of(n % tiles, bands, BLOCK_M)
        flat = batch * lse_batch + head * lse_head + start
        wait_empty(q_empty, n)
        mbarrier.expect(q_full.index(stage), q_desc.block_type.nbytes + lse_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [batch, head, start, 0], q_full.index(stage), q_tiles.index(stage))
        tma.async_copy_global_to_shared(lse_desc, [flat], q_full.index(stage), lse_rows.index(stage))
        wait_empty(grad_empty, n)
        mbarrier.expect(grad_full.index(stage), grad_desc.block_type.nbytes + delta_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            grad_desc, [batch, head, start, 0], grad_full.index(stage), grad_tiles.index(stage)
        )
        tma.async_copy_global_to_shared(delta_desc, [flat], grad_full.index(stage), delta_rows.index(stage))


@gluon.jit
def _add_queries(dk, dv, k, v, shared, n, start, cols, len_q, shift, scale, MASKED: gl.constexpr, CAUSAL: gl.constexpr):
    """Add what the n-th tile of queries gives to the gradients of keys and values; scores are [keys, queries]."""
    _, _, _, _, ring, rows = shared
    q_tiles, grad_tiles, q_full, grad_full, q_empty, grad_empty = ring
    lse_rows, delta_rows = rows
    STAGES: gl.constexpr = q_tiles.shape[0]
    BLOCK_M: gl.constexpr = q_tiles.shape[3]
    HEAD_DIM: gl.constexpr = q_tiles.shape[4]
    by_query: gl.constexpr = gl.SliceLayout(0, accumulator(BLOCK_M))
    wait_full(q_full, n)
    scores = start_product(k, q_tiles, n)
    wait_full(grad_full, n)
    d_weights = start_product(v, grad_tiles, n)
    scores = warpgroup_mma_wait(1, deps=[scores])
    lse = gl.expand_dims(lse_rows.index(n % STAGES).load(by_query), 0) * LOG2E
    exponents = scores * scale - lse
    if MASKED:  # what stands behind the last query is the next head's
        queries = gl.expand_dims(start + gl.arange(0, BLOCK_M, by_query), 0)
        seen = queries < len_q
        if CAUSAL:
            seen = seen & (gl.expand_dims(cols, 1) <= queries + shift)
        exponents = gl.where(seen, exponents, float("-inf"))
    weights = gl.exp2(exponents)
    rounded = gl.convert_layout(weights.to(k.dtype), operand(HEAD_DIM))
    dv = warpgroup_mma(rounded, rows_of(grad_tiles, n), dv, is_async=True)
    d_weights = warpgroup_mma_wait(1, deps=[d_weights])
    delta = gl.expand_dims(delta_rows.index(n % STAGES).load(by_query), 0)
    d_scores = weights * (d_weights - delta)
    if MASKED:
        d_scores = gl.where(seen, d_scores, 0.0)
    d_rounded = gl.convert_layout(d_scores.to(k.dtype), operand(HEAD_DIM))
    dk = warpgroup_mma(d_rounded, rows_of(q_tiles, n), dk, is_async=True)
    dk, dv, rounded, d_rounded = warpgroup_mma_wait(0, deps=[dk, dv, rounded, d_rounded])
    fence_async_shared()  # log-sum-exp and delta were read, and are overwritten by the copy engine
    let_go(q_empty, n)
    let_go(grad_empty, n)
    return dk, dv


@gluon.jit
def _compute_keys(group, dk_desc, dv_desc, shared, work, CAUSAL: gl.constexpr):
    """Gradients of 64 keys and values."""
    k_tiles, v_tiles, k_full, v_full, ring, _ = shared
    batch, kv_head, row, groups, tiles, bands, len_q, shift, scale, _, _ = work
    BLOCK_M: gl.constexpr = ring[0].shape[3]
    HEAD_DIM: gl.constexpr = ring[0].shape[4]
    masked = bands[3]
    row += group * ROWS
    cols = row + gl.arange(0, ROWS, gl.SliceLayout(1, accumulator(BLOCK_M)))
    k, v = rows_of(k_tiles, group), rows_of(v_tiles, group)
    dk = gl.zeros([ROWS, HEAD_DIM], gl.float32, accumulator(HEAD_DIM))
    dv = gl.zeros([ROWS, HEAD_DIM], gl.float32, accumulator(HEAD_DIM))
    mbarrier.wait(k_full.index(group), 0)
    mbarrier.wait(v_full.index(group), 0)
    for head in range(groups):
        for i in range(masked):
            start = _start_of(i, bands, BLOCK_M)
            dk, dv = _add_queries(
                dk, dv, k, v, shared, head * tiles + i, start, cols, len_q, shift, scale * LOG2E, True, CAUSAL
            )
        for i in range(masked, tiles):
            dk, dv = _add_queries(
                dk, dv, k, v, shared, head * tiles + i, 0, cols, len_q, shift, scale * LOG2E, False, CAUSAL
            )
    _write(dv, v_tiles, group, dv_desc, batch, kv_head, row)
    _write(dk * scale, k_tiles, group, dk_desc, batch, kv_head, row)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=SIZES)
def keys_and_values(
    q_desc, k_desc, v_desc, grad_desc, lse_desc, delta_desc, dk_desc, dv_desc, lse_batch, lse_head, kv_heads, groups,
    len_q, len_k, blocks, lanes, section, scale, CAUSAL: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, summed over the query heads that share them, in their order.

    Descriptors are of [B, H, S, D], in tiles of [1, 1, 64, D] for keys and values and their gradients and
    [1, 1, BLOCK_M, D] for queries and the output's gradient; of flat memory, BLOCK_M numbers at a time, for log-sum-exp
    and delta.
    """
    GROUPS: gl.constexpr = BLOCK_N // ROWS
    block, lane = place(blocks, lanes, section, False)
    row = block * BLOCK_N
    shift = len_k - len_q
    first = 0
    full_first = 0
    full_last = len_q // BLOCK_M * BLOCK_M
    if CAUSAL:  # key j is seen by the queries from j − shift on
        first = max(row - shift, 0) // BLOCK_M * BLOCK_M
        full_first = gl.cdiv(max(row + BLOCK_N - 1 - shift, 0), BLOCK_M) * BLOCK_M
    if full_last <= full_first:
        full_first = first
        full_last = first
    tiles = gl.cdiv(len_q - first, BLOCK_M)
    bands = (first, full_first, full_last, tiles - (full_last - full_first) // BLOCK_M)

    k_tiles = make_tiles(k_desc, GROUPS, ROWS, HEAD_DIM)
    v_tiles = make_tiles(v_desc, GROUPS, ROWS, HEAD_DIM)
    ring = make_ring(q_desc, grad_desc, STAGES, BLOCK_M, HEAD_DIM, GROUPS)
    lse_rows = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], lse_desc.layout)
    delta_rows = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], delta_desc.layout)
    shared = (k_tiles, v_tiles, make_barriers(GROUPS, 1), make_barriers(GROUPS, 1), ring, (lse_rows, delta_rows))
    work = (
        lane // kv_heads, lane % kv_heads, row, groups, tiles, bands, len_q, shift, scale, lse_batch, lse_head
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_compute_keys, (0, dk_desc, dv_desc, shared, work, CAUSAL)),
            (_compute_keys, (1, dk_desc, dv_desc, shared, work, CAUSAL)),
            (_load_queries, (q_desc, grad_desc, lse_desc, delta_desc, k_desc, v_desc, shared, work)),
        ],
        [4, 1], [240, 24],
    )  # fmt: skip


@gluon.jit
def _load(q_desc, grad_desc, k_desc, v_desc, shared, work, kv_head):
    """The loading warp of the queries' gradients."""
    q_tiles, grad_tiles, q_full, grad_full, ring = shared
    batch, head, row, tiles, _, _, _, _ = work
    load_own(q_desc, q_tiles, q_full, batch, head, row)
    load_own(grad_desc, grad_tiles, grad_full, batch, head, row)
    load_keys(k_desc, v_desc, ring, batch, kv_head, tiles)


@gluon.jit
def _score_gradients(
    q, grad, ring, i, rows, lse, delta, start, len_k, shift, scale, dq, before,
    MASKED: gl.constexpr, CAUSAL: gl.constexpr, FIRST: gl.constexpr,
):  # fmt: skip
    """The scores' gradients of tile i as an operand, while those of tile i − 1 are multiplied with their keys."""
    k_tiles, v_tiles, k_full, v_full, k_empty, v_empty = ring
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    HEAD_DIM: gl.constexpr = k_tiles.shape[4]
    wait_full(k_full, i)
    scores = start_product(q, k_tiles, i)
    wait_full(v_full, i)
    d_weights = start_product(grad, v_tiles, i)
    OLDER: gl.constexpr = 0 if FIRST else 1
    if not FIRST:
        dq = warpgroup_mma(before, rows_of(k_tiles, i - 1), dq, is_async=True)
    scores = warpgroup_mma_wait(1 + OLDER, deps=[scores])
    exponents = scores * scale - gl.expand_dims(lse, 1)
    if MASKED:
        cols = gl.expand_dims(start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, accumulator(BLOCK_N))), 0)
        seen = cols < len_k
        if CAUSAL:
            seen = seen & (cols <= gl.expand_dims(rows, 1) + shift)
        exponents = gl.where(seen, exponents, float("-inf"))
    weights = done_before_the_wait(gl.exp2(exponents), 8)
    d_weights = warpgroup_mma_wait(OLDER, deps=[d_weights])
    let_go(v_empty, i)
    d_scores = weights * (d_weights - gl.expand_dims(delta, 1))
    following = gl.convert_layout(d_scores.to(q.dtype), operand(HEAD_DIM))
    if not FIRST:
        dq, before = warpgroup_mma_wait(0, deps=[dq, before])
        let_go(k_empty, i - 1)
    return dq, following


@gluon.jit
def _compute_queries(group, dq_desc, lse_ptr, delta_ptr, shared, work, CAUSAL: gl.constexpr):
    """Gradient of 64 queries; `lse_ptr` and `delta_ptr` are the head's."""
    q_tiles, grad_tiles, q_full, grad_full, ring = shared
    batch, head, row, tiles, masked, len_q, len_k, scale = work
    BLOCK_N: gl.constexpr = ring[0].shape[3]
    HEAD_DIM: gl.constexpr = ring[0].shape[4]
    row += group * ROWS
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, accumulator(BLOCK_N)))
    shift = len_k - len_q
    # +inf for rows that do not exist: their weights are 0.
    lse = gl.load(lse_ptr + rows, mask=rows < len_q, other=float("inf")) * LOG2E
    delta = gl.load(delta_ptr + rows, mask=rows < len_q, other=0.0)
    q, grad = rows_of(q_tiles, group), rows_of(grad_tiles, group)
    dq = gl.zeros([ROWS, HEAD_DIM], gl.float32, accumulator(HEAD_DIM))
    none = gl.zeros([ROWS, BLOCK_N], dq_desc.dtype, operand(HEAD_DIM))
    mbarrier.wait(q_full.index(group), 0)
    mbarrier.wait(grad_full.index(group), 0)
    dq, d_scores = _score_gradients(
        q, grad, ring, 0, rows, lse, delta, (tiles - 1) * BLOCK_N, len_k, shift, scale * LOG2E, dq, none,
        True, CAUSAL, True,
    )  # fmt: skip
    for i in range(1, masked):
        dq, d_scores = _score_gradients(
            q, grad, ring, i, rows, lse, delta, (tiles - 1 - i) * BLOCK_N, len_k, shift, scale * LOG2E, dq, d_scores,
            True, CAUSAL, False,
        )  # fmt: skip
    for i in range(masked, tiles):
        dq, d_scores = _score_gradients(
            q, grad, ring, i, rows, lse, delta, 0, len_k, shift, scale * LOG2E, dq, d_scores, False, CAUSAL, False
        )
    dq = warpgroup_mma(d_scores, rows_of(ring[0], tiles - 1), dq, is_async=True)
    dq, d_scores = warpgroup_mma_wait(0, deps=[dq, d_scores])
    _write(dq * scale, q_tiles, group, dq_desc, batch, head, row)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=SIZES)
def queries(
    q_desc, k_desc, v_desc, grad_desc, dq_desc, lse_ptr, delta_ptr, lse_batch, lse_head, heads, groups, len_q, len_k,
    blocks, lanes, section, scale, CAUSAL: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Gradient of one block of queries of one head.

    Descriptors are of [B, H, S, D], in tiles of [1, 1, 64, D] for queries, their gradient and the output's and
    [1, 1, BLOCK_N, D] for keys and values.
    """
    GROUPS: gl.constexpr = BLOCK_M // ROWS
    block, lane = place(blocks, lanes, section, CAUSAL)
    batch = lane // heads
    head = lane % heads
    offset = batch.to(gl.int64) * lse_batch + head.to(gl.int64) * lse_head
    row = block * BLOCK_M
    tiles, masked = key_tiles(row, len_q, len_k, BLOCK_M, BLOCK_N, CAUSAL)
    q_tiles = make_tiles(q_desc, GROUPS, ROWS, HEAD_DIM)
    grad_tiles = make_tiles(grad_desc, GROUPS, ROWS, HEAD_DIM)
    ring = make_ring(k_desc, v_desc, STAGES, BLOCK_N, HEAD_DIM, GROUPS)
    shared = (q_tiles, grad_tiles, make_barriers(GROUPS, 1), make_barriers(GROUPS, 1), ring)
    work = (batch, head, row, tiles, masked, len_q, len_k, scale)
    gl.warp_specialize(
        [
            (_compute_queries, (0, dq_desc, lse_ptr + offset, delta_ptr + offset, shared, work, CAUSAL)),
            (_compute_queries, (1, dq_desc, lse_ptr + offset, delta_ptr + offset, shared, work, CAUSAL)),
            (_load, (q_desc, grad_desc, k_desc, v_desc, shared, work, head // groups)),
        ],
        [4, 1], [240, 24],
    )  # fmt: skip
