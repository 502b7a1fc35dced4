"""Kernels that the ahead-of-time check must refuse, each for one reason, and one that it must not.

Run as a program, without TRITON_INTERPRET, it prints as JSON what the check says of each, how triton's arguments were
specialised, and what becomes of tasks that end their process.
"""

# ruff: noqa: N803
# (constants of a kernel are in capitals, as triton's own are)

import json
import os
from dataclasses import asdict

import torch
import triton
import triton.language as tl

from efftrain_kernels._kernels.launch import Launch
from efftrain_kernels.evidence.limits import Limits
from efftrain_kernels.evidence.subjects import Subject


@triton.jit
def copy(source, target, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + index, tl.load(source + index, mask=index < n), mask=index < n)


@triton.jit
def centre(source, target, BLOCK: tl.constexpr):
    """Holds the whole block while it looks for the largest."""
    index = tl.arange(0, BLOCK)
    x = tl.load(source + index)
    tl.store(target + index, x - tl.max(x, 0))


@triton.jit
def product(a, b, c, steps, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    rows, cols, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], dtype=tl.float32)
    for step in range(0, steps):
        x = tl.load(a + step * M * K + rows[:, None] * K + inner[None, :])
        y = tl.load(b + step * N * K + inner[:, None] + cols[None, :] * K)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(c + rows[:, None] * N + cols[None, :], total)


@triton.jit
def impossible(target, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK == 0)
    tl.store(target, 0.0)


@triton.jit
def arguments(pointer, nothing, flag, one, sixteen, odd, large, real, CONSTANT: tl.constexpr):
    if flag and nothing is None:
        tl.store(pointer + one + sixteen + odd + large, real + CONSTANT)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def _product(dtype, m, n, k, num_stages):
    values = {"a": meta(m, k, dtype=dtype), "b": meta(n, k, dtype=dtype), "c": meta(m, n), "steps": 64}
    return Launch(product, {**values, "M": m, "N": n, "K": k, "PRECISION": "ieee"}, (1,), 8, num_stages)


def _copy(dtype, n):
    x = meta(4096, dtype=dtype)
    return Launch(copy, {"source": x, "target": x, "n": n, "BLOCK": 2048}, (2,), 4, 1)


def shipped(_arch):
    x = meta(1 << 15)
    wide, wgmma = Limits(wide=True), Limits(wgmma=True)
    launches = {
        "good copy": (_copy(torch.float32, 4096), wide),
        "good product": (_product(torch.bfloat16, 128, 128, 64, 3), wgmma),
        "narrow": (_copy(torch.bfloat16, 4095), wide),
        "spills": (Launch(centre, {"source": x, "target": x, "BLOCK": 1 << 13}, (1,), 1, 1), Limits()),
        "too much shared memory": (_product(torch.bfloat16, 128, 256, 64, 6), wgmma),
        "no wgmma": (_product(torch.float32, 32, 32, 32, 1), wgmma),
        "does not compile": (Launch(impossible, {"target": x, "BLOCK": 1}, (1,), 4, 1), Limits()),
    }
    return [Subject(name, "adamw", launch, limits) for name, (launch, limits) in launches.items()]


def end_on_three(number):
    if number == 3:
        os._exit(7)
    if number == 4:
        raise ValueError("four")
    return number * number


def main():
    from triton.backends.compiler import GPUTarget

    from efftrain_kernels.evidence.aot import specialise
    from efftrain_kernels.evidence.check import check
    from efftrain_kernels.evidence.isolated import Failure, outcomes

    rows = check((90,), source="broken_kernels:shipped", processes=2)
    values = {
        "pointer": meta(8, dtype=torch.bfloat16), "nothing": None, "flag": True, "one": 1, "sixteen": 48, "odd": 17,
        "large": 1 << 40, "real": 0.5, "CONSTANT": 3,
    }  # fmt: skip
    signature, constants, promises, _ = specialise(Launch(arguments, values, (1,), 4, 1), GPUTarget("cuda", 90, 32))
    done = {out.task: out.result for out in outcomes(end_on_three, (2, 3, 4), processes=1)}
    reasons = {task: result.reason for task, result in done.items() if isinstance(result, Failure)}
    found = {
        "rows": [asdict(row) for row in rows],
        "signature": signature,
        "constants": {index[0]: value for index, value in constants.items()},
        "promises": {index[0]: value for index, value in promises.items()},
        "results": {task: result for task, result in done.items() if task not in reasons},
        "reasons": reasons,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
