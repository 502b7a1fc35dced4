"""The same attention under other libraries' names: their layouts, their masks, and refusals of what is missing."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as torchs

import attention_cases as cases
from efftrain_kernels import attention, flash_attn_func, flash_attn_varlen_func, reference, scaled_dot_product_attention


def swapped(*tensors):
    return [x.transpose(1, 2) for x in tensors]


@pytest.mark.parametrize("window", [(-1, -1), (3, -1), (2, 1), (-1, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attentions_layout_and_window(causal, window):
    q, k, v = cases.inputs(batch=2, heads=4, kv_heads=2, len_q=6, len_k=8, dim=8)
    ours, lse, weights = flash_attn_func(
        *swapped(q, k, v), causal=causal, window_size=window, softcap=2.0, return_attn_probs=True
    )
    sides = tuple(None if side < 0 else side for side in window)
    expected = reference.attention(q, k, v, causal=causal, window=sides, softcap=2.0)
    assert weights is None
    torch.testing.assert_close(ours.transpose(1, 2), expected[0])
    torch.testing.assert_close(lse, expected[1])
    alone = flash_attn_func(*swapped(q, k, v), causal=causal, window_size=window, softcap=2.0)
    assert torch.equal(alone, ours)


def test_flash_attentions_packed_sequences():
    (q, k, v), packing = cases.packed_inputs([3, 4], [5, 4], dim=8)
    out, lse, _ = flash_attn_varlen_func(q, k, v, **packing, causal=True, return_attn_probs=True)
    hints = {name: packing[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    expected = reference.attention(q, k, v, causal=True, **hints)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(lse, expected[1])


LENGTHS = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_torchs_alignment_and_gradients(lengths, is_causal):
    results = []
    for call in (torchs, scaled_dot_product_attention):
        shape = {"heads": 4, "kv_heads": 2, "len_q": lengths[0], "len_k": lengths[1], "dtype": torch.float64}
        q, k, v = (x.requires_grad_() for x in cases.inputs(**shape))
        out = call(q, k, v, is_causal=is_causal, scale=0.2, enable_gqa=True)
        out.square().sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_torchs_alignment_by_the_kernels(lengths):
    q, k, v = cases.inputs(len_q=lengths[0], len_k=lengths[1], dim=16)
    ours = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, backend="triton")
    torch.testing.assert_close(ours, torchs(q, k, v, is_causal=True, enable_gqa=True))


def test_what_is_missing_is_refused():
    q, k, v = cases.inputs(heads=4, kv_heads=2, dim=8)
    with pytest.raises(ValueError, match="attention dropout is not supported"):
        flash_attn_func(*swapped(q, k, v), 0.1)
    with pytest.raises(ValueError, match="ALiBi is not supported"):
        flash_attn_func(*swapped(q, k, v), alibi_slopes=torch.ones(4))
    with pytest.raises(ValueError, match="arbitrary masks are not supported"):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        scaled_dot_product_attention(q, k, v)
    with pytest.raises(TypeError, match=r"window_size must be a pair .* not None"):
        flash_attn_func(*swapped(q, k, v), window_size=None)
    with pytest.raises(TypeError, match="q must be a tensor, not str"):
        flash_attn_func("q", k, v, deterministic=True)
    with pytest.raises(ValueError, match=r"q has shape \[5, 64\]"):
        flash_attn_func(torch.zeros(5, 64), k, v)


def test_merging_two_halves_of_the_keys_by_their_log_sum_exp():
    q, k, v = cases.inputs(len_q=6, len_k=8, dim=8)
    whole, lse = attention(q, k, v, return_lse=True)
    parts = [attention(q, k[:, :, half], v[:, :, half], return_lse=True) for half in (slice(0, 3), slice(3, 8))]
    share = torch.sigmoid(parts[1][1] - parts[0][1])[..., None]
    torch.testing.assert_close(parts[0][0] + share * (parts[1][0] - parts[0][0]), whole)
    torch.testing.assert_close(torch.logaddexp(parts[0][1], parts[1][1]), lse)
