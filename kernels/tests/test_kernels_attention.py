"""Every kernel of attention in every feature, run by triton's interpreter, against float64."""

import pytest
import torch

import attention_cases as cases
from efftrain_kernels import attention
from efftrain_kernels._kernels import attention as launches
from efftrain_kernels._kernels.configs import Config

SHAPES = [(1, 1), (3, 3), (64, 1), (113, 203), (108, 256), (239, 1)]
FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (20, 3)},
    "causal-window": {"causal": True, "window": (33, None)},
    "right": {"window": (None, 5)},
    "softcap": {"softcap": 1.5},
    "causal-softcap-sinks": {"causal": True, "softcap": 1.5, "sinks": True},
    "sinks": {"sinks": True},
    "window-sinks": {"causal": True, "window": (10, None), "sinks": True},
    "scale": {"causal": True, "softmax_scale": -0.3},
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles small enough that these shapes make several of each kind: full, cut on either side, and none."""
    tiles = {"forward": Config(32, 16, 4, 2), "keys": Config(16, 32, 4, 2), "queries": Config(32, 16, 4, 2)}
    monkeypatch.setattr(launches.Target, "config", lambda self, kernel, *_, **__: tiles[kernel])


def kernels(q, k, v, **settings):
    return attention(q, k, v, return_lse=True, backend="triton", **settings)


def check(q, k, v, settings):
    settings = dict(settings)
    if settings.pop("sinks", False):
        settings["sinks"] = cases.draw(q.shape[-3 if q.ndim == 4 else 1], seed=5)
    cases.assert_twice_as_good(cases.answer(kernels, q, k, v, **settings), q, k, v, **settings)


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature, small_tiles):
    q, k, v = cases.inputs(heads=4, kv_heads=2, len_q=41, len_k=70, dim=16)
    check(q, k, v, FEATURES[feature])


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
def test_features_with_more_queries_than_keys(feature, small_tiles):
    q, k, v = cases.inputs(heads=2, kv_heads=1, len_q=70, len_k=37, dim=16, dtype=torch.float16)
    check(q, k, v, FEATURES[feature])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_with_the_tables_tiles(shape, causal, dtype):
    q, k, v = cases.inputs(len_q=shape[0], len_k=shape[1], dtype=dtype)
    check(q, k, v, {"causal": causal})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_feature_at_every_shape(shape, feature, dtype, small_tiles):
    q, k, v = cases.inputs(len_q=shape[0], len_k=shape[1], dim=32, dtype=dtype)
    check(q, k, v, FEATURES[feature])


@pytest.mark.parametrize("dim", [8, 32, 80, 96, 128, 256])
def test_head_dims(dim):
    q, k, v = cases.inputs(len_q=20, len_k=37, dim=dim, dtype=torch.float16)
    check(q, k, v, {"causal": True, "window": (15, None)})


@pytest.mark.parametrize("feature", ["plain", "causal", "window-sinks", "causal-softcap-sinks"])
def test_packed_sequences(feature, small_tiles):
    (q, k, v), packing = cases.packed_inputs([3, 40, 0, 17], [5, 40, 6, 1], heads=2, kv_heads=1, dim=16)
    settings = dict(FEATURES[feature])
    if settings.pop("sinks", False):
        settings["sinks"] = cases.draw(2, seed=5)
    settings |= packing
    cases.assert_twice_as_good(cases.answer(kernels, q, k, v, **settings), q, k, v, **settings)


def test_packed_sequences_without_a_hint(small_tiles):
    (q, k, v), packing = cases.packed_inputs([3, 20], [5, 30], dim=16)
    offsets = {name: packing[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    for ours, hinted in zip(kernels(q, k, v, **offsets), kernels(q, k, v, **packing), strict=True):
        assert torch.equal(ours, hinted)


def test_tokens_behind_the_last_sequence_are_as_rows_that_see_nothing(small_tiles):
    """On a device nobody checks where the offsets end; the op itself does not either."""
    (q, k, v), packing = cases.packed_inputs([3, 9], [5, 9], dim=16)
    sinks = cases.draw(2, seed=5)
    call = (sinks, *packing.values(), 16**-0.5, None, 0, 0.0, "triton")
    longer = [torch.cat([x, torch.full_like(x[:4], 7.0)]).requires_grad_() for x in (q, k, v)]
    leaf = sinks.clone().requires_grad_()
    out, lse = torch.ops.efftrain.attention_forward(*longer, leaf, *call[1:])
    assert torch.equal(out[12:], torch.zeros_like(out[12:]))
    assert bool((lse[:, 12:] == -torch.inf).all())
    (out.sum() + lse[:, :12].sum()).backward()
    expected = cases.answer(kernels, q, k, v, causal=True, sinks=sinks, **packing)
    assert torch.equal(out[:12], expected.values["out"])
    assert all(bool(x.grad.isfinite().all()) for x in (*longer, leaf))
    assert not longer[0].grad[12:].any()


def test_offsets_and_sinks_of_any_stride(small_tiles):
    (q, k, v), packing = cases.packed_inputs([3, 20], [5, 30], dim=16)
    expected = kernels(q, k, v, sinks=torch.tensor([5.0, 5.0]), **packing)
    strided = {name: torch.stack([x, x + 1], dim=1)[:, 0] for name, x in packing.items() if name.startswith("cu")}
    got = kernels(q, k, v, sinks=torch.tensor([5.0]).expand(2), **{**packing, **strided})
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_rows_that_overlap_in_memory(small_tiles):
    base = cases.draw(200)
    q = base.as_strided((1, 2, 5, 16), (80, 20, 1, 1))
    k, v = (cases.draw(1, 1, 7, 16, seed=s) for s in (2, 3))
    assert torch.equal(kernels(q, k, v)[0], kernels(q.contiguous(), k, v)[0])


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_what_comes_in_through_a_log_sum_exp_of_minus_infinity_goes_nowhere(small_tiles, backend):
    q, k, v = (x.requires_grad_() for x in cases.inputs(len_q=9, len_k=3, dim=16))
    out, lse = attention(q, k, v, causal=True, return_lse=True, backend=backend)
    grad_lse = torch.where(lse == -torch.inf, torch.nan, 1.0)
    torch.autograd.backward((out, lse), (torch.ones_like(out), grad_lse))
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))


def test_a_hint_above_the_tokens_is_as_good_as_theirs(small_tiles):
    (q, k, v), packing = cases.packed_inputs([3, 20], [5, 30], dim=16)
    loose = {**packing, "max_seqlen_q": 2**31, "max_seqlen_k": 10**6}
    assert torch.equal(kernels(q, k, v, **loose)[0], kernels(q, k, v, **packing)[0])


def test_gradient_through_the_output_alone(small_tiles):
    q, k, v = cases.inputs(len_q=20, len_k=20, dim=16)
    settings = {"causal": True, "through_lse": False}
    cases.assert_twice_as_good(cases.answer(kernels, q, k, v, **settings), q, k, v, **settings)


def test_any_strides(small_tiles):
    fused = cases.draw(2, 23, 4, 3 * 16)  # [B, S, H, 3 D], as one projection gives it
    strided = [x.transpose(1, 2) for x in fused.split(16, dim=-1)]
    contiguous = [x.contiguous() for x in strided]
    for ours, expected in zip(
        cases.answer(kernels, *strided, causal=True).values.values(),
        cases.answer(kernels, *contiguous, causal=True).values.values(),
        strict=True,
    ):
        assert torch.equal(ours, expected)
    assert kernels(*strided)[0].transpose(1, 2).is_contiguous()


def test_a_gradient_of_any_stride_will_do(small_tiles):
    q, k, v = (x.requires_grad_() for x in cases.inputs(len_q=9, len_k=9, dim=16))
    kernels(q, k, v)[0].sum().backward()  # an expanded scalar
    assert torch.allclose(v.grad.sum(), torch.tensor(2 * 9 * 16.0))  # weights sum to one


def test_nan_is_not_hidden(small_tiles):
    q, k, v = cases.inputs(len_q=20, len_k=20, dim=16)
    q[0, 0, 3, 0] = torch.nan
    out, lse = kernels(q, k, v, causal=True)
    assert out[0, 0, 3].isnan().all()
    assert lse[0, 0, 3].isnan()
    assert out[0, 1].isfinite().all()


def test_backward_is_the_same_bit_for_bit(small_tiles):
    q, k, v = cases.inputs(heads=4, kv_heads=1, len_q=40, len_k=50, dim=16, dtype=torch.float16)
    first, second = (cases.answer(kernels, q, k, v, causal=True).values for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scores_that_would_overflow(small_tiles):
    q, k, v = cases.inputs(len_q=20, len_k=40, dim=16)
    check(60 * q, 60 * k, v, {"causal": True})


def test_the_interpreters_product_of_bfloat16_is_corrected():
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, c):
        i = tl.arange(0, 16)
        at = i[:, None] * 16 + i[None, :]
        tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))

    a, b = (cases.draw(16, 16, dtype=torch.bfloat16, seed=s) for s in (1, 2))
    c = torch.empty(16, 16)
    product[(1,)](a, b, c)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)
