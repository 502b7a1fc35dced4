"""The backward kernels: one for the gradients of keys and values, one for those of queries, both without atomics.

The scores are computed again from the saved log-sum-exp (FlashAttention-2, arXiv:2307.08691, algorithm 2). Each
gradient is summed by one program in one order, so results are the same bit for bit on every run; the price is that
the scores are computed twice. With P the weights, dP = dO·Vᵀ and δ = rowsum(dO ∘ O) − dLSE, the gradient of the
scores is dS = P ∘ (dP − δ).
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from efftrain_kernels._kernels.tiles import (
    LOG2E,
    SIZES,
    bands,
    load_rows,
    masked_start,
    place,
    sequence,
    store_rows,
    tanh,
    visible,
)  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def delta(
    out_ptr, grad_ptr, lse_ptr, grad_lse_ptr, delta_ptr, cu_q_ptr,
    out_batch, out_head, out_row, grad_batch, grad_head, grad_row, grad_lse_batch, grad_lse_head, grad_lse_row,
    lse_batch, lse_head, heads, len_q, blocks, lanes,
    HAS_GRAD_LSE: tl.constexpr, PACKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """δ of one block of queries of one head, laid out as the log-sum-exp."""
    block, lane = place(blocks, lanes, lanes, False)
    batch = (lane // heads).to(tl.int64)
    head = (lane % heads).to(tl.int64)
    begin, length = sequence(batch, cu_q_ptr, len_q, PACKED)
    if block * BLOCK_M >= length:
        return
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    out_ptr += batch * out_batch + head * out_head + begin * out_row
    grad_ptr += batch * grad_batch + head * grad_head + begin * grad_row
    out = load_rows(out_ptr, rows, out_row, length, True, HEAD_DIM, BLOCK_D).to(tl.float32)
    grad = load_rows(grad_ptr, rows, grad_row, length, True, HEAD_DIM, BLOCK_D).to(tl.float32)
    sums = tl.sum(out * grad, 1)
    if HAS_GRAD_LSE:
        grad_lse_ptr += batch * grad_lse_batch + head * grad_lse_head
        sums -= tl.load(grad_lse_ptr + (begin + rows) * grad_lse_row, mask=rows < length, other=0.0)
    # A row that sees nothing has no gradient, whatever comes in through its log-sum-exp of −∞.
    lse = tl.load(lse_ptr + batch * lse_batch + head * lse_head + begin + rows, mask=rows < length, other=0.0)
    sums = tl.where(lse == float("-inf"), 0.0, sums)
    tl.store(delta_ptr + batch * lse_batch + head * lse_head + begin + rows, sums, mask=rows < length)


@triton.jit
def _weights(scores, lse, seen, scale, softcap, MASKED: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """(Attention weights, factor of the soft cap's derivative) of raw scores; `lse` broadcasts against them."""
    slope = 1.0
    if HAS_SOFTCAP:
        capped = tanh(scores * (scale / softcap))
        slope = 1 - capped * capped
        exponents = capped * (softcap * LOG2E) - lse * LOG2E
    else:
        exponents = scores * (scale * LOG2E) - lse * LOG2E
    if MASKED:  # whatever stood there: a row that sees nothing has a log-sum-exp of −∞
        exponents = tl.where(seen, exponents, float("-inf"))
    return tl.exp2(exponents), slope


@triton.jit
def _keys_step(
    dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, q_row, grad_row, cols, start, len_q, len_k, left, right,
    scale, softcap,
    MASKED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one tile of queries gives to the gradients of keys and values; scores stand as [keys, queries]."""
    rows = start + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, rows, q_row, len_q, MASKED, HEAD_DIM, BLOCK_D)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if MASKED:
        lse = tl.load(lse_ptr + rows, mask=rows < len_q, other=0.0)
        row_delta = tl.load(delta_ptr + rows, mask=rows < len_q, other=0.0)
        seen = visible(rows[None, :], cols[:, None], len_q, len_k, left, right, HAS_LEFT, HAS_RIGHT)
    else:
        lse = tl.load(lse_ptr + rows)
        row_delta = tl.load(delta_ptr + rows)
        seen = True
    weights, slope = _weights(scores, lse[None, :], seen, scale, softcap, MASKED, HAS_SOFTCAP)
    grad = load_rows(grad_ptr, rows, grad_row, len_q, MASKED, HEAD_DIM, BLOCK_D)
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
    d_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    d_scores = weights * (d_weights - row_delta[None, :]) * slope
    return tl.dot(d_scores.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit(do_not_specialize=SIZES)
def keys_and_values(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_q_ptr, cu_k_ptr,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head, grad_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row, lse_batch, lse_head,
    kv_heads, groups, len_q, len_k, blocks, lanes, section, left, right, scale, softcap,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PACKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values, summed over the query heads that share them, in their order."""
    block, lane = place(blocks, lanes, section, False)
    batch = (lane // kv_heads).to(tl.int64)
    head = (lane % kv_heads).to(tl.int64)
    begin_q, len_q = sequence(batch, cu_q_ptr, len_q, PACKED)
    begin_k, len_k = sequence(batch, cu_k_ptr, len_k, PACKED)
    if block * BLOCK_N >= len_k:
        return
    q_ptr += batch * q_batch + head * groups * q_head + begin_q * q_row
    grad_ptr += batch * grad_batch + head * groups * grad_head + begin_q * grad_row
    lse_ptr += batch * lse_batch + head * groups * lse_head + begin_q
    delta_ptr += batch * lse_batch + head * groups * lse_head + begin_q
    k_ptr += batch * k_batch + head * k_head + begin_k * k_row
    v_ptr += batch * v_batch + head * v_head + begin_k * v_row
    dk_ptr += batch * dk_batch + head * dk_head + begin_k * dk_row
    dv_ptr += batch * dv_batch + head * dv_head + begin_k * dv_row

    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_rows(k_ptr, cols, k_row, len_k, True, HEAD_DIM, BLOCK_D)
    v = load_rows(v_ptr, cols, v_row, len_k, True, HEAD_DIM, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    # Key j is seen by the queries j − shift − right … j − shift + left.
    first, full_first, full_last, last = bands(
        block * BLOCK_N, len_q, len_q - len_k, right, left, BLOCK_N, BLOCK_M, HAS_RIGHT, HAS_LEFT
    )
    full = (full_last - full_first) // BLOCK_M
    q_head = tl.cast(q_head, tl.int64)  # times a head of the group, past 2³¹ for long sequences
    grad_head = tl.cast(grad_head, tl.int64)
    for i in range(0, groups * full):
        dk, dv = _keys_step(
            dk, dv, k, v, q_ptr + i // full * q_head, grad_ptr + i // full * grad_head,
            lse_ptr + i // full * lse_head, delta_ptr + i // full * lse_head, q_row, grad_row,
            cols, full_first + i % full * BLOCK_M, len_q, len_k, left, right, scale, softcap,
            False, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_M, PRECISION,
        )  # fmt: skip
    masked = tl.cdiv(last - first - (full_last - full_first), BLOCK_M)
    for i in range(0, groups * masked):
        dk, dv = _keys_step(
            dk, dv, k, v, q_ptr + i // masked * q_head, grad_ptr + i // masked * grad_head,
            lse_ptr + i // masked * lse_head, delta_ptr + i // masked * lse_head, q_row, grad_row,
            cols, masked_start(i % masked, first, full_first, full_last, BLOCK_M), len_q, len_k, left, right,
            scale, softcap, True, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_M, PRECISION,
        )  # fmt: skip
    store_rows(dk_ptr, cols, dk_row, len_k, dk * scale, HEAD_DIM, BLOCK_D)
    store_rows(dv_ptr, cols, dv_row, len_k, dv, HEAD_DIM, BLOCK_D)


@triton.jit
def _queries_step(
    dq, q, grad, lse, row_delta, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right, scale, softcap,
    MASKED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one tile of keys gives to the gradient of the queries."""
    cols = start + tl.arange(0, BLOCK_N)
    k = load_rows(k_ptr, cols, k_row, len_k, MASKED, HEAD_DIM, BLOCK_D)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    seen = True
    if MASKED:
        seen = visible(rows[:, None], cols[None, :], len_q, len_k, left, right, HAS_LEFT, HAS_RIGHT)
    weights, slope = _weights(scores, lse[:, None], seen, scale, softcap, MASKED, HAS_SOFTCAP)
    v = load_rows(v_ptr, cols, v_row, len_k, MASKED, HEAD_DIM, BLOCK_D)
    d_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    d_scores = weights * (d_weights - row_delta[:, None]) * slope
    return tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIZES)
def queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, cu_q_ptr, cu_k_ptr,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head, grad_row,
    dq_batch, dq_head, dq_row, lse_batch, lse_head,
    heads, groups, len_q, len_k, blocks, lanes, section, left, right, scale, softcap,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PACKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of queries of one head."""
    block, lane = place(blocks, lanes, section, HAS_RIGHT)
    batch = (lane // heads).to(tl.int64)
    head = (lane % heads).to(tl.int64)
    begin_q, len_q = sequence(batch, cu_q_ptr, len_q, PACKED)
    begin_k, len_k = sequence(batch, cu_k_ptr, len_k, PACKED)
    if block * BLOCK_M >= len_q:
        return
    q_ptr += batch * q_batch + head * q_head + begin_q * q_row
    grad_ptr += batch * grad_batch + head * grad_head + begin_q * grad_row
    k_ptr += batch * k_batch + head // groups * k_head + begin_k * k_row
    v_ptr += batch * v_batch + head // groups * v_head + begin_k * v_row
    dq_ptr += batch * dq_batch + head * dq_head + begin_q * dq_row
    lse_ptr += batch * lse_batch + head * lse_head + begin_q
    delta_ptr += batch * lse_batch + head * lse_head + begin_q

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, rows, q_row, len_q, True, HEAD_DIM, BLOCK_D)
    grad = load_rows(grad_ptr, rows, grad_row, len_q, True, HEAD_DIM, BLOCK_D)
    # +inf for the rows of the tile that do not exist: their weights are 0.
    lse = tl.load(lse_ptr + rows, mask=rows < len_q, other=float("inf"))
    row_delta = tl.load(delta_ptr + rows, mask=rows < len_q, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    first, full_first, full_last, last = bands(
        block * BLOCK_M, len_k, len_k - len_q, left, right, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT
    )
    for start in range(full_first, full_last, BLOCK_N):
        dq = _queries_step(
            dq, q, grad, lse, row_delta, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right,
            scale, softcap, False, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    for i in range(0, tl.cdiv(last - first - (full_last - full_first), BLOCK_N)):
        start = masked_start(i, first, full_first, full_last, BLOCK_N)
        dq = _queries_step(
            dq, q, grad, lse, row_delta, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right,
            scale, softcap, True, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    store_rows(dq_ptr, rows, dq_row, len_q, dq * scale, HEAD_DIM, BLOCK_D)
