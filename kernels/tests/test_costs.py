"""The formulas against a count of the matrix products that the reference really runs, and torch's own registry."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from efftrain_kernels import costs, reference

ATEN = torch.ops.aten
SHAPES = [((2, 4, 5, 8), (2, 4, 5, 8)), ((2, 4, 5, 8), (2, 2, 9, 8)), ((1, 6, 3, 4), (1, 1, 7, 4))]


@pytest.mark.parametrize(("q_shape", "k_shape"), SHAPES)
def test_flops_are_those_of_the_matrix_products(q_shape, k_shape):
    # The reference is made of matrix products, which torch counts; its backward pass does not repeat the scores.
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in (q_shape, k_shape, k_shape))
    with FlopCounterMode(display=False) as forward:
        out, _ = reference.attention(q, k, v)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == costs.attention_flops(q_shape, k_shape, k_shape)
    model = costs.attention_backward_flops(q_shape, k_shape, k_shape, recomputed_scores=False)
    assert backward.get_total_flops() == model == 2 * forward.get_total_flops()
    hardware = costs.attention_backward_flops(q_shape, k_shape, k_shape, recomputed_scores=True)
    assert 2 * hardware == 5 * forward.get_total_flops()


@pytest.mark.parametrize(("q_shape", "k_shape"), SHAPES)
@pytest.mark.parametrize("value_dim", [4, 8, 16])
def test_formulas_agree_with_torchs_for_other_backends(q_shape, k_shape, value_dim):
    v_shape, out_shape = (*k_shape[:3], value_dim), (*q_shape[:3], value_dim)
    theirs = flop_registry[ATEN._scaled_dot_product_flash_attention]
    tensors = [torch.empty(shape, device="meta") for shape in (q_shape, k_shape, v_shape, out_shape)]
    q, k, v, grad = tensors
    ours = costs.FORMULAS[ATEN._scaled_dot_product_flash_attention_for_cpu]
    assert ours(q_shape, k_shape, v_shape) == theirs(q, k, v)
    theirs = flop_registry[ATEN._scaled_dot_product_flash_attention_backward]
    ours = costs.FORMULAS[ATEN._scaled_dot_product_flash_attention_for_cpu_backward]
    assert ours(out_shape, q_shape, k_shape, v_shape) == theirs(grad, q, k, v)


def test_a_counter_sees_sdpa_on_cpu():
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)))
    with FlopCounterMode(display=False, custom_mapping=costs.missing_formulas()) as counter:
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
    assert counter.get_total_flops() == 3.5 * 4 * 2 * 4 * 5 * 5 * 8


def test_nothing_that_torch_knows_is_offered_again(monkeypatch):
    op = ATEN._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(flop_registry, op, raising=False)
    assert op in costs.missing_formulas()
    monkeypatch.setitem(flop_registry, op, lambda *_: 0)
    assert op not in costs.missing_formulas()


def test_bytes_of_the_tensors_themselves():
    q, k, out = torch.empty(2, 4, 5, 8), torch.empty(2, 2, 9, 8), torch.empty(2, 4, 5, 8)
    lse = torch.empty(2, 4, 5)
    forward = sum(x.nbytes for x in (q, k, k, out, lse))
    assert costs.attention_bytes(q.shape, k.shape, k.shape, itemsize=4) == forward
    backward = sum(x.nbytes for x in (q, k, k, out, out, lse, q, k, k))
    assert costs.attention_backward_bytes(q.shape, k.shape, k.shape, itemsize=4) == backward
