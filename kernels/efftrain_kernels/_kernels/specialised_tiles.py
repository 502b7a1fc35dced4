"""What the kernels whose warps have different work share: rings of tiles, products under way, order of the work.

One warp loads through the copy engine (TMA), groups of four warps compute, and a ring of tiles stands between them: a
slot's `full` barrier says that its copy has arrived, its `empty` barrier that every group has let go of it. A ring is
(first tiles, second tiles, first full, second full, first empty, second empty), for two tensors that are streamed
together.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportCallIssue=false
# (inside a kernel, numbers and tensors are one)

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
"""Rows of one group of four warps: the height of a wgmma."""


@gluon.constexpr_function
def accumulator(columns: int) -> Any:
    """Where the lanes of four warps keep a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def operand(columns: int) -> Any:
    """Where they keep the left factor of a product with so many columns."""
    return gl.DotOperandLayout(0, accumulator(columns), 2)


@gluon.jit
def place(blocks, lanes, section, REVERSED: gl.constexpr):
    """Which block of rows and which lane this program works on, as in `tiles.place`."""
    pid = gl.program_id(0)
    first = pid // (section * blocks) * section
    within = pid % (section * blocks)
    width = min(section, lanes - first)
    block = within // width
    if REVERSED:
        block = blocks - 1 - block
    return block, first + within % width


@gluon.jit
def key_tiles(row, len_q, len_k, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """(Tiles of keys that a block of queries sees, how many of them need a mask, the last ones; one at least)."""
    last = len_k
    full = len_k // BLOCK_N
    if CAUSAL:
        last = min(len_k, row + BLOCK_M + len_k - len_q)
        full = min(full, (row + len_k - len_q + 1) // BLOCK_N)
    tiles = gl.cdiv(last, BLOCK_N)
    return tiles, max(tiles - full, 1)


@gluon.jit
def load_own(desc, tiles, full, batch, head, row):
    """What each group keeps: its 64 rows."""
    GROUPS: gl.constexpr = tiles.shape[0]
    for group in gl.static_range(GROUPS):
        mbarrier.expect(full.index(group), desc.block_type.nbytes)
        tma.async_copy_global_to_shared(
            desc, [batch, head, row + group * ROWS, 0], full.index(group), tiles.index(group)
        )


@gluon.jit
def load_keys(k_desc, v_desc, ring, batch, head, tiles):
    """Keys and values through the ring, the last tile first."""
    k_tiles, v_tiles, k_full, v_full, k_empty, v_empty = ring
    STAGES: gl.constexpr = k_tiles.shape[0]
    BLOCK_N: gl.constexpr = k_tiles.shape[3]
    for i in range(tiles):
        stage = i % STAGES
        start = (tiles - 1 - i) * BLOCK_N
        wait_empty(k_empty, i)
        mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [batch, head, start, 0], k_full.index(stage), k_tiles.index(stage))
        wait_empty(v_empty, i)
        mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [batch, head, start, 0], v_full.index(stage), v_tiles.index(stage))


@gluon.jit
def wait_empty(empty, i):
    """Until every group has let go of the slot that the i-th tile goes to."""
    STAGES: gl.constexpr = empty.shape[0]
    mbarrier.wait(empty.index(i % STAGES), (i // STAGES & 1) ^ 1)


@gluon.jit
def wait_full(full, i):
    """Until the i-th tile has arrived."""
    STAGES: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(i % STAGES), i // STAGES & 1)


@gluon.jit
def let_go(empty, i):
    """This group needs the slot of the i-th tile no more."""
    STAGES: gl.constexpr = empty.shape[0]
    mbarrier.arrive(empty.index(i % STAGES), count=1)


@gluon.jit
def rows_of(tiles, i):
    """Tile i, or that of group i, as a matrix."""
    STAGES: gl.constexpr = tiles.shape[0]
    return tiles.index(i % STAGES).reshape([tiles.shape[3], tiles.shape[4]])


@gluon.jit
def start_product(own, tiles, i):
    """64 rows times the transposed tile i, under way."""
    COLUMNS: gl.constexpr = tiles.shape[3]
    nothing = gl.zeros([ROWS, COLUMNS], gl.float32, accumulator(COLUMNS))
    return warpgroup_mma(own, rows_of(tiles, i).permute([1, 0]), nothing, use_acc=False, is_async=True)


@gluon.constexpr_function
def _sleep_if_huge(pack: int) -> str:
    """PTX that hands on so many numbers, and sleeps for a nanosecond if one of them is above 1e30."""
    largest = "".join(f" max.f32 m, m, ${pack + i};" for i in range(1, pack))
    copies = "".join(f" mov.b32 ${i}, ${pack + i};" for i in range(pack))
    head = f"{{ .reg .pred p; .reg .f32 m; mov.b32 m, ${pack};{largest}"
    return f"{head} setp.gt.f32 p, m, 0f7149F2CA; @p nanosleep.u32 1;{copies} }}"


@gluon.constexpr_function
def _registers(pack: int) -> str:
    return ",".join(["=r"] * pack + ["r"] * pack)


@gluon.jit
def done_before_the_wait(x, PACK: gl.constexpr):
    """The same numbers, in a way that keeps ptxas from putting the next wait before what they are computed by.

    A wait for a matrix product reads none of them, so ptxas takes it first, and what should run beside the product runs
    after it. This depends on every number, has a side effect, and stays before the wait. None of them is so large, and
    nothing sleeps.
    """
    return gl.inline_asm_elementwise(
        _sleep_if_huge(PACK), _registers(PACK), [x], dtype=gl.float32, is_pure=False, pack=PACK
    )


@gluon.jit
def make_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """So many barriers, each of which waits for so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
def make_tiles(desc, COUNT: gl.constexpr, ROWS_EACH: gl.constexpr, HEAD_DIM: gl.constexpr):
    """Room for so many tiles of a descriptor."""
    return gl.allocate_shared_memory(desc.dtype, [COUNT, 1, 1, ROWS_EACH, HEAD_DIM], desc.layout)


@gluon.jit
def make_ring(first_desc, second_desc, STAGES: gl.constexpr, SIZE: gl.constexpr, HEAD_DIM: gl.constexpr,
              GROUPS: gl.constexpr):  # fmt: skip
    """A ring for two tensors, let go of by so many groups."""
    first = make_tiles(first_desc, STAGES, SIZE, HEAD_DIM)
    second = make_tiles(second_desc, STAGES, SIZE, HEAD_DIM)
    return (
        first, second, make_barriers(STAGES, 1), make_barriers(STAGES, 1), make_barriers(STAGES, GROUPS),
        make_barriers(STAGES, GROUPS),
    )  # fmt: skip
