import subprocess
import sys

import pytest
import torch

from efftrain_kernels import reference
from efftrain_kernels.integrations._packing import Packing, attend_packed, packing_of_padding, packing_of_starts


def test_importing_needs_no_library_of_others():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'lightning', 'accelerate'))); "
        "from efftrain_kernels import integrations as found; "
        "assert found.__all__ == ['register_with_transformers', 'trainer_optimizer']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_padding_is_left_out():
    keys = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    packing = packing_of_padding(keys, keys)
    assert packing.cu_seqlens_q.tolist() == packing.cu_seqlens_k.tolist() == [0, 2, 5, 5]
    assert packing.cu_seqlens_q.dtype == torch.int32
    assert (packing.max_seqlen_q, packing.max_seqlen_k) == (3, 3)
    assert packing.tokens_q.tolist() == packing.tokens_k.tolist() == [2, 3, 4, 5, 6]


def test_queries_after_a_cache():
    keys = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    packing = packing_of_padding(keys[:, -1:], keys)
    assert packing.cu_seqlens_q.tolist() == [0, 1, 2]
    assert packing.cu_seqlens_k.tolist() == [0, 2, 6]
    assert packing.tokens_q is None  # all of them
    assert packing.tokens_k.tolist() == [2, 3, 4, 5, 6, 7]


def test_whole_rows_need_no_packing():
    whole = torch.ones(2, 3, dtype=torch.bool)
    assert packing_of_padding(whole, whole) is None
    starts = torch.zeros(2, 3, dtype=torch.bool)
    assert packing_of_starts(starts) is None
    assert not starts.any()  # not written to


def test_rows_of_several_sequences():
    packing = packing_of_starts(torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool))
    assert packing.cu_seqlens_k.tolist() == [0, 3, 5, 9, 10]
    assert packing.max_seqlen_q == 4
    assert packing.tokens_q is None


@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_real_tokens_alone(causal):
    torch.manual_seed(0)
    keys = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    q = torch.randn(3, 4, 3, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(3, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    queries = keys[:, -3:]
    out = attend_packed(q, k, v, packing_of_padding(queries, keys), causal=causal)
    expected = torch.zeros_like(out)
    for row in range(3):
        some_q, some_k, some_v = q[row : row + 1, :, queries[row]], *(x[row : row + 1, :, keys[row]] for x in (k, v))
        expected[row, queries[row]] = reference.attention(some_q, some_k, some_v, causal=causal)[0][0].transpose(0, 1)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), (q, k, v))
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), (q, k, v)))
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_moving_to_another_device():
    packing = Packing(torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.int32), 3, 4, torch.arange(2), None)
    assert packing.to("cpu") is packing
    moved = packing.to("meta", non_blocking=True)
    assert (moved.max_seqlen_q, moved.max_seqlen_k, moved.tokens_k) == (3, 4, None)
    assert {x.device.type for x in (moved.cu_seqlens_q, moved.cu_seqlens_k, moved.tokens_q)} == {"meta"}
