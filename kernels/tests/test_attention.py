"""What the public call accepts and refuses, and which implementation it takes."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from efftrain_kernels import attention, explain, reference


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def qkv(len_q=4, len_k=4, dtype=torch.float32):
    return draw(2, 4, len_q, 8, dtype=dtype), draw(2, 2, len_k, 8, dtype=dtype), draw(2, 2, len_k, 8, dtype=dtype)


def offsets(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


PLAIN = [{}, {"causal": True}, {"window": (None, 0)}, {"softmax_scale": 0.2}, {"causal": True, "window": (None, 3)}]


@pytest.mark.parametrize("settings", PLAIN)
def test_plain_calls_are_sdpas(settings):
    q, k, v = qkv()
    assert explain(q, k, v, **settings).backend == "sdpa"
    masked = settings.get("causal", False) or settings.get("window") == (None, 0)
    expected = scaled_dot_product_attention(
        q, k, v, is_causal=masked, scale=settings.get("softmax_scale"), enable_gqa=True
    )
    assert torch.equal(attention(q, k, v, **settings), expected)
    torch.testing.assert_close(attention(q, k, v, backend="reference", **settings), expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"window": (2, None)}, "window"),
        ({"window": (None, 1)}, "window"),
        ({"softcap": 5.0}, "soft cap"),
        ({"sinks": torch.zeros(4)}, "sinks"),
        ({"return_lse": True}, "log-sum-exp"),
    ],
)
def test_what_sdpa_lacks_is_the_references(settings, named):
    q, k, v = qkv()
    told = explain(q, k, v, **settings)
    assert told.backend == "reference"
    assert named in told.reason
    keep_lse = settings.pop("return_lse", False)
    out, lse = reference.attention(q, k, v, **settings)
    assert explain(q, k, v, return_lse=keep_lse, backend="triton", **settings).backend == "triton"
    result = attention(q, k, v, return_lse=keep_lse, **settings)
    got = result if keep_lse else (result, lse)
    assert torch.equal(got[0], out)
    assert torch.equal(got[1], lse)
    with pytest.raises(ValueError, match=f"'sdpa' cannot express .*{named}"):
        attention(q, k, v, backend="sdpa", return_lse=keep_lse, **settings)


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3)])
def test_causal_with_unequal_lengths_is_never_sdpas(lengths):
    q, k, v = qkv(*lengths)
    assert explain(q, k, v).backend == "sdpa"
    assert explain(q, k, v, causal=True).backend == "reference"
    assert torch.equal(attention(q, k, v, causal=True), reference.attention(q, k, v, causal=True)[0])


def test_packed_sequences_are_the_references():
    q, k, v = draw(5, 4, 8), draw(6, 2, 8), draw(6, 2, 8)
    packing = {"cu_seqlens_q": offsets(0, 2, 5), "cu_seqlens_k": offsets(0, 2, 6)}
    assert "packed" in explain(q, k, v, **packing).reason
    out, lse = attention(q, k, v, causal=True, max_seqlen_q=3, max_seqlen_k=4, return_lse=True, **packing)
    expected = reference.attention(q, k, v, causal=True, **packing)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


def test_asked_for_is_said_so():
    q, k, v = qkv()
    assert (explain(q, k, v, backend="reference").reason, explain(q, k, v, backend="sdpa").backend) == (
        "asked for", "sdpa",
    )  # fmt: skip


def test_triton_is_taken_only_where_asked_for_on_a_cpu():
    q, k, v = qkv()
    assert explain(q, k, v, backend="triton").backend == "triton"  # the tests run in triton's interpreter
    assert "on a CPU have no kernels" in explain(q, k, v, softcap=1.0).reason


def test_triton_says_what_it_cannot_take():
    q, k, v = qkv(dtype=torch.float64)
    with pytest.raises(ValueError, match="backend 'triton': the kernels have no float64; use backend='auto'"):
        attention(q, k, v, backend="triton")
    q, k, v = draw(3, 1, 1, 2, 257)
    with pytest.raises(ValueError, match="head_dim 257 is above 256"):
        attention(q, k, v, backend="triton")
    assert explain(q, k, v, softcap=1.0).backend == "reference"


def test_triton_on_a_cpu_needs_the_interpreter():
    code = (
        "import torch, efftrain_kernels as e; q = torch.zeros(1, 1, 1, 16); print(e.explain(q, q, q).backend);"
        "e.attention(q, q, q, backend='triton')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "sdpa\n"
    assert "on CPU tensors it needs TRITON_INTERPRET=1 in the environment" in done.stderr.splitlines()[-1]


def test_mixed_types_under_autocast_become_one():
    q, k, v = qkv()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for settings in ({}, {"window": (1, 0)}):  # scaled_dot_product_attention, and ours
            out = attention(q, k, v.bfloat16(), **settings)
            assert out.dtype == torch.bfloat16
        assert explain(q, k, v.bfloat16()).backend == "sdpa"
    with pytest.raises(TypeError, match="cast them to one type"):
        attention(q, k, v.bfloat16())


def test_compiles_without_a_graph_break():
    q, k, v = qkv()
    for settings in ({"causal": True}, {"window": (1, 0), "sinks": torch.zeros(4), "return_lse": True}):
        compiled = torch.compile(lambda q, k, v, s=settings: attention(q, k, v, **s), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, **settings))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": "text"}, TypeError, "q must be a tensor, not str"),
        ({"q": draw(4, 4, 8)}, ValueError, r"q has shape \[4, 4, 8\]; expected \[batch, heads"),
        ({"k": draw(2, 2, 4)}, ValueError, "k has shape"),
        ({"q": torch.zeros(2, 4, 4, 8, dtype=torch.int64)}, TypeError, "q is torch.int64"),
        ({"k": draw(2, 2, 4, 8, dtype=torch.float64)}, TypeError, "k is torch.float64 and q torch.float32"),
        ({"k": draw(2, 2, 4, 8).to("meta")}, ValueError, "k is on meta and q on cpu"),
        ({"v": draw(2, 2, 8, 4).transpose(2, 3)}, ValueError, r"v: stride 4 .* v.contiguous\(\)"),
        ({"v": draw(2, 2, 5, 8)}, ValueError, "v has shape"),
        ({"k": draw(2, 2, 4, 6), "v": draw(2, 2, 4, 6)}, ValueError, "k has head_dim 6 and q 8"),
        ({"k": draw(1, 2, 4, 8), "v": draw(1, 2, 4, 8)}, ValueError, "k has batch 1 and q 2"),
        ({"k": draw(2, 3, 4, 8), "v": draw(2, 3, 4, 8)}, ValueError, "k has 3 heads, which must divide the 4"),
        ({"causal": 1}, TypeError, "causal must be True or False"),
        ({"softmax_scale": "1"}, TypeError, "softmax_scale must be a number"),
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale must be finite"),
        ({"softcap": None}, TypeError, "softcap must be a number"),
        ({"softcap": True}, TypeError, "softcap must be a number"),
        ({"q": torch.zeros(2, 4, 4, 8).to_sparse()}, ValueError, "q has layout torch.sparse_coo; expected a dense"),
        ({"softcap": -1.0}, ValueError, "softcap must be finite and at least 0"),
        ({"window": 3}, TypeError, "window must be a pair"),
        ({"window": (-1, -1)}, ValueError, "window: left must be at least 0, not -1; None is unbounded"),
        ({"window": (None, 1.5)}, TypeError, "window: right must be an int"),
        ({"sinks": torch.zeros(2)}, ValueError, r"sinks has shape \[2\]; expected .* \[4\]"),
        ({"sinks": torch.zeros(4, dtype=torch.int32)}, TypeError, "sinks must be a floating-point tensor"),
        ({"sinks": torch.zeros(4, device="meta")}, ValueError, "sinks is on meta"),
        ({"max_seqlen_q": 4}, ValueError, "max_seqlen_q goes with cu_seqlens_q"),
        ({"backend": "flash"}, ValueError, "backend 'flash'"),
    ],
)
def test_bad_input_names_its_argument(change, error, message):
    arguments = dict(zip("qkv", qkv(), strict=True)) | change
    with pytest.raises(error, match=message):
        attention(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_k": None}, ValueError, "cu_seqlens_k is missing"),
        ({"cu_seqlens_q": [0, 5]}, TypeError, "cu_seqlens_q must be a tensor"),
        ({"cu_seqlens_q": offsets(0, 2, 5, dtype=torch.int64)}, TypeError, "cu_seqlens_q must be int32"),
        ({"cu_seqlens_q": offsets(0)}, ValueError, r"cu_seqlens_q has shape \[1\]"),
        ({"cu_seqlens_q": offsets(0, 4, 3, 5), "cu_seqlens_k": offsets(0, 1, 2, 5)}, ValueError, "must not decrease"),
        ({"cu_seqlens_q": offsets(0, 2, 4)}, ValueError, "cu_seqlens_q runs from 0 to 4; expected 0 to 5"),
        ({"cu_seqlens_k": offsets(1, 2, 5)}, ValueError, "cu_seqlens_k runs from 1 to 5"),
        ({"cu_seqlens_k": offsets(0, 5)}, ValueError, "cu_seqlens_k holds 1 sequences and cu_seqlens_q 2"),
        ({"cu_seqlens_k": offsets(0, 2, 5).to("meta")}, ValueError, "cu_seqlens_k is on meta and k on cpu"),
        ({"max_seqlen_q": 2}, ValueError, "max_seqlen_q is 2, but a sequence of q has 3 tokens"),
        ({"max_seqlen_q": -1}, ValueError, "max_seqlen_q must be at least 0, not -1"),
        ({"max_seqlen_k": 3.0}, TypeError, "max_seqlen_k must be an int"),
        ({"q": draw(1, 4, 5, 8)}, ValueError, r"q has shape .* expected \[tokens, heads, head_dim\]"),
    ],
)
def test_bad_packing_names_its_argument(change, error, message):
    arguments = {
        "q": draw(5, 4, 8), "k": draw(5, 2, 8), "v": draw(5, 2, 8),
        "cu_seqlens_q": offsets(0, 2, 5), "cu_seqlens_k": offsets(0, 2, 5), **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        attention(**arguments)
