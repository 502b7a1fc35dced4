"""The specialised forward kernel, emulated: right in every order of events, and wrong once a barrier is missing."""

import gluon_emulator
import pytest
import torch

from efftrain_kernels import reference

MODULES = ("specialised_tiles", "attention_specialised")
TILES = [(128, 128, 2), (128, 64, 3), (192, 64, 4)]


@pytest.fixture(scope="module")
def module():
    return gluon_emulator.load(*MODULES)


def attend(module, q, k, v, *, causal, tiles=TILES[0], seed=0, swapped=False):
    """(Output, log-sum-exp) as the kernel leaves them; NaN where it wrote nothing."""
    block_m, block_n, stages = tiles
    batch, heads, length, dim = q.shape
    if swapped:  # [B, S, H, D] in memory, as projections leave it
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    out, lse = torch.full_like(q, torch.nan), torch.full((batch, heads, length), torch.nan)
    blocks = -(-length // block_m)
    gluon_emulator.launch(
        module.forward, blocks * batch * heads, seed,
        **{f"{name}_desc": gluon_emulator.Descriptor(x, [1, 1, 64, dim]) for name, x in (("q", q), ("out", out))},
        **{f"{name}_desc": gluon_emulator.Descriptor(x, [1, 1, block_n, dim]) for name, x in (("k", k), ("v", v))},
        lse_ptr=gluon_emulator.Pointer(lse.view(-1)), lse_batch=heads * length, lse_head=length, heads=heads,
        groups=heads // k.shape[1], len_q=length, len_k=k.shape[2], blocks=blocks, lanes=batch * heads, section=heads,
        scale=dim**-0.5, CAUSAL=causal, HEAD_DIM=dim, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
    )  # fmt: skip
    return out, lse


def inputs(length_q, length_k, *, dim=64, heads=2, kv_heads=1, batch=1, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(length_q + length_k)
    shapes = [(batch, heads, length_q, dim), *[(batch, kv_heads, length_k, dim)] * 2]
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def errors(module, given, **options):
    """Largest errors of output and log-sum-exp, the former over that of plain PyTorch in the same type."""
    out, lse = attend(module, *given, **options)
    true, true_lse = reference.attention(*(x.double() for x in given), causal=options["causal"])
    plain, _ = reference.attention(*given, causal=options["causal"])
    rounding = float((plain.double() - true).abs().max()) + 1e-4
    return float((out.double() - true).abs().max()) / rounding, float((lse.double() - true_lse).abs().max())


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths", [(1, 1), (3, 3), (64, 64), (113, 203), (128, 128), (192, 256), (257, 391), (400, 400)]
)
def test_it_is_as_near_as_plain_pytorch(module, lengths, causal, tiles):
    out, lse = errors(module, inputs(*lengths), causal=causal, tiles=tiles)
    assert out <= 2
    assert lse < 1e-5


@pytest.mark.parametrize(
    "given",
    [inputs(200, 200, dim=128), inputs(150, 150, batch=3, heads=4, kv_heads=2), inputs(200, 264, dtype=torch.float16)],
    ids=["wide", "shared heads", "float16"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_widths_types_heads_and_layouts(module, given, swapped):
    out, lse = errors(module, given, causal=True, tiles=TILES[1], swapped=swapped)
    assert out <= 2
    assert lse < 1e-5


@pytest.mark.parametrize("tiles", TILES)
def test_no_order_of_events_changes_a_bit(module, tiles):
    given = inputs(300, 400, heads=1)
    first = attend(module, *given, causal=True, tiles=tiles)
    for seed in range(1, 25):
        for ours, again in zip(first, attend(module, *given, causal=True, tiles=tiles, seed=seed), strict=True):
            assert torch.equal(ours, again)


FAULTS = {
    "values let go of before they were read": (
        "    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])\n    let_go(ring[5], i - 1)\n",
        "    let_go(ring[5], i - 1)\n    acc, weights = warpgroup_mma_wait(0, deps=[acc, weights])\n",
    ),
    "values let go of twice": ("let_go(ring[5], i - 1)", "let_go(ring[5], i - 1)\n    let_go(ring[5], i - 1)"),
    "keys not waited for": ("    wait_full(ring[2], i)\n", ""),
    "values not waited for": ("    wait_full(ring[3], i)\n", ""),
    "queries not waited for": ("    mbarrier.wait(q_full.index(group), 0)\n", ""),
    "scores not waited for": ("warpgroup_mma_wait(1, deps=[scores])", "warpgroup_mma_wait(2, deps=[scores])"),
    "the slot is not waited for": ("        wait_empty(v_empty, i)\n", ""),
    "the first tile is kept": ("    let_go(ring[4], 0)\n", ""),
    "the wrong round": ("(i // STAGES & 1) ^ 1", "i // STAGES & 1"),
    "one group answers for both": (
        "make_barriers(STAGES, GROUPS),\n        make_barriers(STAGES, GROUPS)",
        "make_barriers(STAGES, 1),\n        make_barriers(STAGES, GROUPS)",
    ),
    "no fence": ("    fence_async_shared()\n", ""),
    "gone before the copy": ("    tma.store_wait(0)\n", ""),
    "the diagonal is hidden": ("<= gl.expand_dims(rows, 1) + shift", "< gl.expand_dims(rows, 1) + shift"),
    "the last tile is not multiplied": ("    acc = _start_output(acc, weights, ring, tiles - 1)\n", ""),
    "old rows do not shrink": ("return acc * gl.expand_dims(decay, 1), following", "return acc, following"),
    "keys behind the end": ("seen = cols < len_k", "seen = cols < len_k + 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_shows_under_some_order(fault):
    """What the emulation is worth: each of these is caught by an error, a deadlock or a wrong number."""
    broken = gluon_emulator.load(*MODULES, changes=[FAULTS[fault]])
    given = inputs(250, 410, heads=1)
    for seed in range(40):
        try:
            out, lse = errors(broken, given, causal=seed % 2 == 0, tiles=(128, 64, 2), seed=seed)
        except gluon_emulator.HazardError:
            return
        if not (out <= 2 and lse < 1e-5):
            return
    pytest.fail("40 orders of events were right")
