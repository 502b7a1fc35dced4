"""The forward kernel: attention of one block of queries over all keys that it sees, with a running softmax.

The scores never leave the program (FlashAttention-2, arXiv:2307.08691, algorithm 1). Exponentials have base 2, with
log2(e) folded into the scale. Tiles that every query of the block sees are done first, in a loop without a mask.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from efftrain_kernels._kernels.tiles import (
    LN2,
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


@triton.jit
def _attend(
    acc, total, peak, q, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right, scale, softcap,
    MASKED: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    NEGATIVE_SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: the accumulator, the row sums and the row maxima (in units of log 2) after it."""
    cols = start + tl.arange(0, BLOCK_N)
    k = load_rows(k_ptr, cols, k_row, len_k, MASKED, HEAD_DIM, BLOCK_D)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if HAS_SOFTCAP:
        scores = tanh(scores * (scale / softcap)) * (softcap * LOG2E)
    elif MASKED:
        scores *= scale * LOG2E
    if MASKED:
        seen = visible(rows[:, None], cols[None, :], len_q, len_k, left, right, HAS_LEFT, HAS_RIGHT)
        scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # a row that has seen nothing yet
        weights = tl.exp2(scores - safe[:, None])
        decay = tl.exp2(peak - safe)
    elif HAS_SOFTCAP:
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
    else:  # the scale is multiplied in together with the subtraction
        extreme = tl.min(scores, 1) if NEGATIVE_SCALE else tl.max(scores, 1)
        new_peak = tl.maximum(peak, extreme * (scale * LOG2E))
        weights = tl.exp2(scores * (scale * LOG2E) - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
    v = load_rows(v_ptr, cols, v_row, len_k, MASKED, HEAD_DIM, BLOCK_D)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, total * decay + tl.sum(weights, 1), new_peak


@triton.jit(do_not_specialize=SIZES)
def forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, sinks_ptr, cu_q_ptr, cu_k_ptr,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    lse_batch, lse_head, heads, groups, len_q, len_k, blocks, lanes, section, left, right, scale, softcap,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    PACKED: tl.constexpr, NEGATIVE_SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of one block of queries of one head; strides in elements, `section` as in `place`."""
    block, lane = place(blocks, lanes, section, HAS_RIGHT)
    batch = (lane // heads).to(tl.int64)
    head = (lane % heads).to(tl.int64)
    begin_q, len_q = sequence(batch, cu_q_ptr, len_q, PACKED)
    begin_k, len_k = sequence(batch, cu_k_ptr, len_k, PACKED)
    if block * BLOCK_M >= len_q:
        return
    q_ptr += batch * q_batch + head * q_head + begin_q * q_row
    k_ptr += batch * k_batch + head // groups * k_head + begin_k * k_row
    v_ptr += batch * v_batch + head // groups * v_head + begin_k * v_row
    out_ptr += batch * out_batch + head * out_head + begin_q * out_row
    lse_ptr += batch * lse_batch + head * lse_head + begin_q

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_rows(q_ptr, rows, q_row, len_q, True, HEAD_DIM, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    first, full_first, full_last, last = bands(
        block * BLOCK_M, len_k, len_k - len_q, left, right, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT
    )
    for start in range(full_first, full_last, BLOCK_N):
        acc, total, peak = _attend(
            acc, total, peak, q, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right, scale, softcap,
            False, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, NEGATIVE_SCALE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    for i in range(0, tl.cdiv(last - first - (full_last - full_first), BLOCK_N)):
        start = masked_start(i, first, full_first, full_last, BLOCK_N)
        acc, total, peak = _attend(
            acc, total, peak, q, k_ptr, v_ptr, k_row, v_row, rows, start, len_q, len_k, left, right, scale, softcap,
            True, HAS_LEFT, HAS_RIGHT, HAS_SOFTCAP, NEGATIVE_SCALE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip

    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2E
        new_peak = tl.maximum(peak, sink)
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        decay = tl.exp2(peak - safe)
        total = total * decay + tl.exp2(sink - safe)
        acc *= decay[:, None]
        peak = new_peak
    blind = total == 0
    out = tl.where(blind[:, None], 0.0, acc / tl.where(blind, 1.0, total)[:, None])
    store_rows(out_ptr, rows, out_row, len_q, out, HEAD_DIM, BLOCK_D)
    lse = tl.where(blind, float("-inf"), (peak + tl.log2(tl.where(blind, 1.0, total))) * LN2)
    tl.store(lse_ptr + rows, lse, mask=rows < len_q)
