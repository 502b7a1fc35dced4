"""The specialised backward kernels, emulated: right in every order of events, and wrong once a barrier is missing."""

import gluon_emulator
import pytest
import torch
from gluon_emulator import Descriptor, Pointer

from efftrain_kernels import reference

MODULES = ("specialised_tiles", "attention_backward_specialised")
TILES = [((64, 128, 2), (128, 64, 3)), ((64, 128, 3), (128, 128, 2))]


@pytest.fixture(scope="module")
def module():
    return gluon_emulator.load(*MODULES)


def inputs(length_q, length_k, *, dim=64, heads=2, kv_heads=1, batch=1, dtype=torch.bfloat16):
    """[q, k, v, gradient of the output]."""
    generator = torch.Generator().manual_seed(length_q + length_k)
    queries, keys = (batch, heads, length_q, dim), (batch, kv_heads, length_k, dim)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in (queries, keys, keys, queries)]


def unlikely(length_q, length_k):
    """Scores so low that a key which is not there, with a score of 0, would have all the weight and more."""
    q, k, v, grad = inputs(length_q, length_k)
    return [q * 0.1 + 4, k * 0.1 - 4, v, grad]


def gradients(module, given, *, causal, tiles=TILES[0], seed=0, swapped=False):
    """(dq, dk, dv) as the kernels leave them; NaN where they wrote nothing."""
    if swapped:  # [B, S, H, D] in memory, as projections leave it
        given = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    q, k, v, grad = given
    out, lse = reference.attention(*(x.double() for x in (q, k, v)), causal=causal)
    lse, delta = lse.float().flatten(), (out * grad.double()).sum(-1).float().flatten()
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))
    batch, heads, length, dim = q.shape
    common = {
        "lse_batch": heads * length, "lse_head": length, "groups": heads // k.shape[1], "len_q": length,
        "len_k": k.shape[2], "section": heads, "scale": dim**-0.5, "CAUSAL": causal, "HEAD_DIM": dim,
    }  # fmt: skip

    def described(rows, **tensors):
        return {f"{name}_desc": Descriptor(x, [1, 1, rows, dim]) for name, x in tensors.items()}

    (keys_m, keys_n, keys_stages), (queries_m, queries_n, queries_stages) = tiles
    blocks, lanes = -(-k.shape[2] // keys_n), batch * k.shape[1]
    gluon_emulator.launch(
        module.keys_and_values, blocks * lanes, seed, **described(64, k=k, v=v, dk=dk, dv=dv),
        **described(keys_m, q=q, grad=grad), lse_desc=Descriptor(lse, [keys_m]), delta_desc=Descriptor(delta, [keys_m]),
        kv_heads=k.shape[1], blocks=blocks, lanes=lanes, BLOCK_M=keys_m, BLOCK_N=keys_n, STAGES=keys_stages, **common,
    )  # fmt: skip
    blocks, lanes = -(-length // queries_m), batch * heads
    gluon_emulator.launch(
        module.queries, blocks * lanes, seed, **described(64, q=q, grad=grad, dq=dq), **described(queries_n, k=k, v=v),
        lse_ptr=Pointer(lse), delta_ptr=Pointer(delta), heads=heads, blocks=blocks, lanes=lanes, BLOCK_M=queries_m,
        BLOCK_N=queries_n, STAGES=queries_stages, **common,
    )  # fmt: skip
    return dq, dk, dv


def error(module, given, *, causal, **options):
    """The largest error of a gradient, over that of plain PyTorch in the same type."""
    q, k, v, grad = given

    def plain(dtype):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out, _ = reference.attention(*leaves, causal=causal)
        return torch.autograd.grad(out, leaves, grad.to(dtype))

    found = zip(gradients(module, given, causal=causal, **options), plain(torch.float64), plain(q.dtype), strict=True)
    ratios = [(ours.double() - true).abs().max() / ((rough - true).abs().max() + 1e-3) for ours, true, rough in found]
    return float(torch.stack(ratios).max())  # NaN if one is


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 3), (64, 64), (113, 203), (128, 128), (192, 256), (257, 391)])
def test_it_is_as_near_as_plain_pytorch(module, lengths, causal, tiles):
    assert error(module, inputs(*lengths), causal=causal, tiles=tiles) <= 2


@pytest.mark.parametrize(
    "given",
    [inputs(200, 200, dim=128), inputs(150, 150, batch=3, heads=4, kv_heads=2), inputs(200, 264, dtype=torch.float16)],
    ids=["wide", "shared heads", "float16"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_widths_types_heads_and_layouts(module, given, swapped):
    assert error(module, given, causal=True, swapped=swapped) <= 2


@pytest.mark.parametrize("causal", [True, False])
def test_scores_far_below_those_of_keys_that_are_not_there(module, causal):
    assert error(module, unlikely(113, 203), causal=causal) <= 2


@pytest.mark.parametrize("tiles", TILES)
def test_no_order_of_events_changes_a_bit(module, tiles):
    given = inputs(200, 300, heads=1)
    first = gradients(module, given, causal=True, tiles=tiles)
    for seed in range(1, 12):
        for ours, again in zip(first, gradients(module, given, causal=True, tiles=tiles, seed=seed), strict=True):
            assert torch.equal(ours, again)


def test_what_stands_behind_a_head_does_not_reach_it(module):
    """The copy engine brings the next head's log-sum-exp and delta with the last tile: here they are not finite."""
    q, k, v, grad = inputs(100, 100, heads=2, kv_heads=2)
    spoilt = grad.clone()
    spoilt[:, 1] = torch.inf
    clean, other = (gradients(module, [q, k, v, x], causal=True) for x in (grad, spoilt))
    for ours, theirs in zip(clean, other, strict=True):
        assert torch.equal(ours[:, 0], theirs[:, 0])
        assert not theirs[:, 1].isfinite().all()


KEYS_FAULTS = {
    "queries let go of before they were read": (
        "    dk, dv, rounded, d_rounded = warpgroup_mma_wait(0, deps=[dk, dv, rounded, d_rounded])\n    fence_async",
        "    let_go(q_empty, n)\n    dk, dv, rounded, d_rounded = warpgroup_mma_wait(0, deps=[dk, dv, rounded,"
        " d_rounded])\n    fence_async",
    ),
    "the gradient is not let go of": ("    let_go(grad_empty, n)\n", ""),
    "no fence for what was read": ("    fence_async_shared()  # log-sum-exp", "    # log-sum-exp"),
    "queries not waited for": ("    wait_full(q_full, n)\n", ""),
    "the gradient not waited for": ("    wait_full(grad_full, n)\n", ""),
    "the scores are taken too early": (
        "    scores = warpgroup_mma_wait(1, deps=[scores])\n    lse =",
        "    scores = warpgroup_mma_wait(2, deps=[scores])\n    lse =",
    ),
    "keys not waited for": ("    mbarrier.wait(k_full.index(group), 0)\n", ""),
    "values not waited for": ("    mbarrier.wait(v_full.index(group), 0)\n", ""),
    "the slot is not waited for": ("        wait_empty(q_empty, n)\n", ""),
    "the bytes of log-sum-exp are not expected": (" + lse_desc.block_type.nbytes)", ")"),
    "another head's rows": ("head = kv_head * groups + n // tiles", "head = kv_head * groups"),
    "the diagonal is hidden": ("cols, 1) <= queries + shift", "cols, 1) < queries + shift"),
    "queries behind the end": ("seen = queries < len_q\n", "seen = queries < len_q + 8\n"),
    "a tile too few is masked": ("full_first = gl.cdiv(max(row + BLOCK_N - 1", "full_first = gl.cdiv(max(row - 1"),
    "tiles in another order": ("        start = full_first + (i - masked)", "        start = first + (i - masked)"),
    "no scale": ("_write(dk * scale,", "_write(dk,"),
}  # fmt: skip
QUERIES_FAULTS = {
    "keys let go of before they were read": (
        "        dq, before = warpgroup_mma_wait(0, deps=[dq, before])\n        let_go(k_empty, i - 1)\n",
        "        let_go(k_empty, i - 1)\n        dq, before = warpgroup_mma_wait(0, deps=[dq, before])\n",
    ),
    "keys not waited for": ("    wait_full(k_full, i)\n", ""),
    "values not waited for": ("    wait_full(v_full, i)\n", ""),
    "the scores are taken too early": ("mma_wait(1 + OLDER, deps=[scores])", "mma_wait(2 + OLDER, deps=[scores])"),
    "the gradient is taken too early": ("mma_wait(OLDER, deps=[d_w", "mma_wait(1 + OLDER, deps=[d_w"),
    "the gradient not waited for": ("    mbarrier.wait(grad_full.index(group), 0)\n", ""),
    "no fence": ("    fence_async_shared()\n    tma", "    tma"),
    "gone before the copy": ("dq_desc, batch, head, row)\n    tma.store_wait(0)\n", "dq_desc, batch, head, row)\n"),
    "another tile is multiplied": ("d_scores, rows_of(ring[0], tiles - 1), dq,", "d_scores, rows_of(ring[0], 0), dq,"),
    "keys behind the end": ("seen = cols < len_k\n", "seen = cols < len_k + 8\n"),
}  # fmt: skip


@pytest.mark.parametrize("fault", [*KEYS_FAULTS, *(f"{name}, for queries" for name in QUERIES_FAULTS)])
def test_a_fault_shows_under_some_order(fault):
    """What the emulation is worth: each of these is caught by an error, a deadlock or a wrong number."""
    name, of_queries, _ = fault.partition(", for queries")
    broken = gluon_emulator.load(*MODULES, changes=[(QUERIES_FAULTS if of_queries else KEYS_FAULTS)[name]])
    for seed in range(40):
        given = [inputs(250, 330, heads=2), unlikely(250, 330)][seed // 2 % 2]
        try:
            found = error(broken, given, causal=seed % 2 == 0, seed=seed)
        except gluon_emulator.HazardError:
            return
        if not found <= 2:
            return
    pytest.fail("40 orders of events were right")
