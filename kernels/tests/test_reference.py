"""The reference against sums written out row by row in float64, autograd against finite differences."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import scaled_dot_product_attention

from efftrain_kernels import reference


def by_rows(q, k, v, *, scale=None, causal=False, window=(None, None), softcap=0.0, sinks=None):
    """Attention of [B, H, S, D] one row at a time: no matrix product, no mask, no shared code."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    batch, heads, len_q, dim = q.shape
    kv_heads, len_k = k.shape[1:3]
    scale = 1 / math.sqrt(dim) if scale is None else scale
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -math.inf)
    for b, h, i in itertools.product(range(batch), range(heads), range(len_q)):
        last = len_k - 1 if not causal else i + len_k - len_q
        first = 0
        if window[1] is not None:
            last = min(last, i + len_k - len_q + window[1])
        if window[0] is not None:
            first = max(first, i + len_k - len_q - window[0])
        head = h * kv_heads // heads
        seen = range(first, min(last, len_k - 1) + 1)
        logits = [float(q[b, h, i] @ k[b, head, j]) * scale for j in seen]
        if softcap:
            logits = [softcap * math.tanh(logit / softcap) for logit in logits]
        extra = [] if sinks is None else [float(sinks[h])]
        if logits or extra:
            lse[b, h, i] = np.logaddexp.reduce(logits + extra)
        for logit, j in zip(logits, seen, strict=True):
            out[b, h, i] += math.exp(logit - lse[b, h, i]) * v[b, head, j]
    return torch.from_numpy(out), torch.from_numpy(lse)


def draw(*shape, dtype=torch.float64, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_(grad)


def inputs(*, batch=2, heads=4, kv_heads=2, len_q=5, len_k=7, dim=6, dtype=torch.float64, grad=False):
    q = draw(batch, heads, len_q, dim, dtype=dtype, seed=1, grad=grad)
    k = draw(batch, kv_heads, len_k, dim, dtype=dtype, seed=2, grad=grad)
    return q, k, draw(batch, kv_heads, len_k, dim, dtype=dtype, seed=3, grad=grad)


FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "left": {"window": (2, None)},
    "right": {"window": (None, 1)},
    "band": {"window": (1, 2)},
    "causal-band": {"causal": True, "window": (2, 3)},
    "softcap": {"softcap": 0.7},
    "causal-softcap": {"causal": True, "softcap": 1.5},
}


@pytest.mark.parametrize("lengths", [(5, 7), (7, 5), (6, 6), (1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_equals_the_sum_written_out(lengths, feature, with_sinks):
    q, k, v = inputs(len_q=lengths[0], len_k=lengths[1])
    sinks = draw(4) if with_sinks else None
    out, lse = reference.attention(q, k, v, sinks=sinks, **FEATURES[feature])
    expected_out, expected_lse = by_rows(q, k, v, sinks=sinks, **FEATURES[feature])
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.tuples(*[st.none() | st.integers(0, 5)] * 2),
    scale=st.floats(0.1, 2.0),
)
def test_any_grouping_and_window(heads, lengths, window, scale):
    kv_heads, groups = heads
    q, k, v = inputs(batch=1, heads=kv_heads * groups, kv_heads=kv_heads, len_q=lengths[0], len_k=lengths[1], dim=3)
    out, lse = reference.attention(q, k, v, softmax_scale=scale, window=window)
    expected = by_rows(q, k, v, scale=scale, window=window)
    torch.testing.assert_close(out, expected[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lse, expected[1], rtol=1e-11, atol=1e-12)


def test_log_sum_exp_is_torchs_own():
    q, k, v = inputs(heads=2)
    _, lse = reference.attention(q, k, v, softmax_scale=0.3)
    torch.testing.assert_close(lse, torch.logsumexp(q @ k.transpose(-1, -2) * 0.3, dim=-1))


def test_rows_that_see_nothing():
    q, k, v = inputs(len_q=6, len_k=2, grad=True)
    out, lse = reference.attention(q, k, v, causal=True)
    assert torch.equal(out[:, :, :4], torch.zeros_like(out[:, :, :4]))
    assert torch.equal(lse[:, :, :4], torch.full_like(lse[:, :, :4], -math.inf))
    (out.sum() + lse[:, :, 4:].sum()).backward()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))
    assert torch.equal(q.grad[:, :, :4], torch.zeros_like(q.grad[:, :, :4]))


def test_rows_that_see_only_the_sink():
    q, k, v = inputs(len_q=6, len_k=2)
    sinks = draw(4)
    out, lse = reference.attention(q, k, v, causal=True, sinks=sinks)
    assert torch.equal(out[:, :, :4], torch.zeros_like(out[:, :, :4]))
    torch.testing.assert_close(lse[:, :, :4], sinks[:, None].expand(2, 4, 4))


@pytest.mark.parametrize("feature", FEATURES)
def test_gradients_by_finite_differences(feature):
    sinks = draw(2, grad=True)
    q, k, v = inputs(batch=1, heads=2, kv_heads=1, len_q=3, len_k=4, dim=2, grad=True)

    def call(q, k, v, sinks):
        return reference.attention(q, k, v, sinks=sinks, **FEATURES[feature])

    assert gradcheck(call, (q, k, v, sinks))


def test_gradients_by_finite_differences_with_blind_rows():
    q, k, v = inputs(batch=1, heads=2, kv_heads=1, len_q=4, len_k=2, dim=2, grad=True)
    assert gradcheck(lambda q, k, v: reference.attention(q, k, v, causal=True)[0], (q, k, v))


@pytest.mark.parametrize("feature", ["plain", "causal", "band", "softcap"])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_packed_equals_each_sequence_alone(feature, with_sinks):
    lengths_q, lengths_k = [3, 0, 5, 1], [3, 2, 4, 0]
    q, k, v = draw(9, 4, 6, seed=1), draw(9, 2, 6, seed=2), draw(9, 2, 6, seed=3)
    sinks = draw(4) if with_sinks else None
    cu_q, cu_k = (torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32) for n in (lengths_q, lengths_k))
    settings = {"sinks": sinks, **FEATURES[feature]}
    out, lse = reference.attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **settings)
    assert (out.shape, lse.shape) == ((9, 4, 6), (4, 9))
    pieces = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    alone = [by_rows(*(x.transpose(0, 1)[None] for x in piece), **settings) for piece in pieces]
    torch.testing.assert_close(out, torch.cat([o[0].transpose(0, 1) for o, _ in alone]), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, torch.cat([x[0] for _, x in alone], dim=-1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_types_are_rounded_once(dtype):
    q, k, v = inputs(len_q=33, len_k=33, dim=16, dtype=dtype)
    out, lse = reference.attention(q, k, v, causal=True)
    exact_out, exact_lse = reference.attention(q.double(), k.double(), v.double(), causal=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    # Half a unit of the last place for the one rounding; the sums in float32 add 1e-6.
    allowed = torch.finfo(dtype).eps / 2 * exact_out.abs() + 2e-6
    assert bool(((out.double() - exact_out).abs() <= allowed).all())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)


def test_autocast_does_not_lower_the_sums():
    q, k, v = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = reference.attention(q, k, v)
    assert torch.equal(inside, reference.attention(q, k, v)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_equals_sdpa_forward_and_backward(causal):
    q, k, v = inputs(len_q=8, len_k=8, grad=True)
    weight = draw(*q.shape, seed=9)
    results = []
    for call in (
        lambda: reference.attention(q, k, v, causal=causal)[0],
        lambda: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
    ):
        out = call()
        results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_alignment_is_bottom_right_where_sdpas_is_top_left():
    q, k, v = inputs(len_q=2, len_k=5)
    last_query = reference.attention(q, k, v, causal=True)[0][:, :, -1:]
    torch.testing.assert_close(last_query, reference.attention(q[:, :, -1:], k, v)[0])
    top_left = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(top_left[:, :, 0], v[:, :, 0].repeat_interleave(2, dim=1))
