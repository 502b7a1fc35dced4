"""Tile sizes by architecture, kernel, head width, kind of call and type: a table that was compiled, or a tuned file.

Nothing is tuned while somebody trains. The table was chosen by compiling ahead of time (`evidence check`): what spills
no registers and, on Hopper, keeps its wgmma in flight. `evidence tune` measures this device's candidates and writes a
file that is read here; a file can choose among the candidates alone, so that whatever runs has been compiled.
"""

import functools
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from torch import Tensor

Kernel = Literal["forward", "keys", "queries"]
"""`forward`; `keys` gives the gradients of keys and values, `queries` that of queries."""

Kind = Literal["full", "masked", "capped"]
"""Whether every tile is visible, a mask cuts some, or scores have a soft cap (masked or not)."""

ElementType = Literal["half", "float"]
"""16-bit inputs of either type, or float32."""

MAX_HEAD_DIM = 256
ENVIRONMENT = "EFFTRAIN_KERNELS_CONFIG"
"""Environment variable: the tuned file to read, in place of the cache's."""


@dataclass(frozen=True, slots=True)
class Config:
    """How a kernel is cut up.

    Attributes:
        block_m: queries a tile.
        block_n: keys a tile.
        num_warps: warps a program; of one group where specialised.
        num_stages: depth of the software pipeline, or of the ring of tiles.
        specialised: warps have different work (`specialised`).
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    specialised: bool = False

    def __str__(self) -> str:
        shape = f"{self.block_m}x{self.block_n} w{self.num_warps} s{self.num_stages}"
        return f"{shape} specialised" if self.specialised else shape


@dataclass(frozen=True, slots=True)
class Key:
    """What a configuration is looked up by.

    Attributes:
        arch: one of `ARCHITECTURES`.
        kernel: which kernel.
        block_d: head width, rounded up to 64, 128 or 256.
        kind: which kind of call.
        dtype: `half` or `float`.
    """

    arch: int
    kernel: Kernel
    block_d: int
    kind: Kind
    dtype: ElementType

    @classmethod
    def of(cls, arch: int, kernel: Kernel, q: Tensor, *, masked: bool, capped: bool) -> Self:
        """The key of a call with queries `q`."""
        block_d = next(width for width in BLOCK_D if q.shape[-1] <= width)
        kind: Kind = "capped" if capped else "masked" if masked else "full"
        return cls(arch, kernel, block_d, kind, "half" if q.element_size() == 2 else "float")

    def __str__(self) -> str:
        return f"sm_{self.arch} {self.kernel} D{self.block_d} {self.kind} {self.dtype}"


BLOCK_D = (64, 128, MAX_HEAD_DIM)
ARCHITECTURES = (80, 86, 90, 100)

# Which table serves a compute capability: by its instructions and the shared memory of a program, 163 KiB on 8.0 and
# 8.7, 99 on 8.6, 8.9 and 12.x, 227 on 9.0 and 10.x (CUDA C++ programming guide, technical specifications).
SERVED_BY = {
    (8, 0): 80, (8, 7): 80, (8, 6): 86, (8, 9): 86, (9, 0): 90, (10, 0): 100, (10, 3): 100, (12, 0): 86, (12, 1): 86,
}  # fmt: skip

_Row = dict[tuple[Kernel, int], list[Config]]

# The first of each list is the table's, the others are what tuning may choose from besides.
_AMPERE: _Row = {
    ("forward", 64): [Config(128, 64, 4, 3), Config(64, 64, 4, 3), Config(128, 64, 8, 3)],
    ("forward", 128): [Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 64, 8, 2)],
    ("forward", 256): [Config(64, 32, 8, 2)],
    ("keys", 64): [Config(64, 128, 8, 2), Config(64, 64, 4, 2)],
    ("keys", 128): [Config(64, 64, 8, 2), Config(32, 64, 8, 2)],
    ("keys", 256): [Config(32, 32, 8, 1)],
    ("queries", 64): [Config(128, 64, 8, 2), Config(64, 64, 8, 2)],
    ("queries", 128): [Config(128, 32, 8, 2), Config(64, 32, 8, 2)],
    ("queries", 256): [Config(64, 32, 8, 1)],
}
_HOPPER: _Row = {
    ("forward", 64): [Config(128, 64, 4, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 3)],
    ("forward", 128): [Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 2)],
    ("forward", 256): [Config(128, 64, 8, 2)],
    ("keys", 64): [Config(64, 128, 8, 2), Config(64, 64, 4, 2)],
    ("keys", 128): [Config(64, 128, 8, 2), Config(64, 64, 8, 2)],
    ("keys", 256): [Config(32, 64, 8, 2)],
    ("queries", 64): [Config(128, 64, 8, 2), Config(128, 128, 8, 2)],
    ("queries", 128): [Config(128, 64, 8, 2), Config(128, 128, 8, 2)],
    ("queries", 256): [Config(128, 32, 8, 2)],
}
# As Hopper's, without the candidates of 128 × 128 that spill there.
_BLACKWELL: _Row = {
    **_HOPPER,
    ("forward", 128): [Config(128, 64, 8, 3), Config(128, 64, 8, 2)],
    ("queries", 64): [Config(128, 64, 8, 2)],
    ("queries", 128): [Config(128, 64, 8, 2)],
}
# float32 products in full precision run on the ordinary units, where larger tiles spill.
_FLOAT: _Row = {
    ("forward", 64): [Config(64, 32, 8, 2)],
    ("forward", 128): [Config(32, 16, 8, 2)],
    ("forward", 256): [Config(32, 16, 8, 1)],
    ("keys", 64): [Config(32, 32, 8, 1)],
    ("keys", 128): [Config(16, 32, 8, 1)],
    ("keys", 256): [Config(16, 16, 8, 1)],
    ("queries", 64): [Config(32, 32, 8, 1)],
    ("queries", 128): [Config(16, 16, 8, 2)],
    ("queries", 256): [Config(16, 16, 8, 2)],
}
# Warps with different work, for plain calls. None is in the table until one was measured to be faster than the others.
_SPECIALISED: _Row = {
    ("forward", 64): [Config(128, 128, 4, 3, True), Config(128, 64, 4, 4, True), Config(192, 64, 4, 4, True)],
    ("forward", 128): [Config(128, 128, 4, 2, True), Config(128, 64, 4, 3, True), Config(192, 64, 4, 3, True)],
    ("keys", 64): [Config(64, 128, 4, 3, True)],
    ("keys", 128): [Config(64, 128, 4, 2, True), Config(64, 128, 4, 3, True)],
    ("queries", 64): [Config(128, 128, 4, 2, True), Config(128, 64, 4, 3, True)],
    ("queries", 128): [Config(128, 64, 4, 2, True), Config(128, 64, 4, 3, True)],
}
_HALF: dict[int, _Row] = {80: _AMPERE, 86: _AMPERE, 90: _HOPPER, 100: _BLACKWELL}

# A soft cap takes registers of its own: 88 bytes would spill from the table's.
_INSTEAD: dict[Key, list[Config]] = {
    Key(90, "keys", 128, "capped", "half"): [Config(64, 64, 8, 2)],
}


def architecture(capability: tuple[int, int]) -> int:
    """The architecture whose table serves a compute capability.

    Raises:
        ValueError: none does.
    """
    if capability not in SERVED_BY:
        major, minor = capability
        served = ", ".join(f"{a}.{b}" for a, b in SERVED_BY)
        raise ValueError(
            f"no kernel configuration was compiled for compute capability {major}.{minor}; there are some for {served};"
            " use backend='sdpa' or 'reference'"
        )
    return SERVED_BY[capability]


def candidates(key: Key) -> list[Config]:
    """What tuning may choose from; the table's own comes first, specialised ones last."""
    rows = _HALF[key.arch] if key.dtype == "half" else _FLOAT
    plain = _INSTEAD.get(key) or rows[key.kernel, key.block_d]
    divided = key.arch == 90 and key.dtype == "half" and key.kind != "capped"
    return [*plain, *(_SPECIALISED.get((key.kernel, key.block_d), []) if divided else [])]


def keys() -> list[Key]:
    """Every key of the table."""
    return [
        Key(arch, kernel, block_d, kind, dtype)
        for arch in ARCHITECTURES
        for dtype in get_args(ElementType)
        for kernel in get_args(Kernel)
        for block_d in BLOCK_D
        for kind in get_args(Kind)
    ]


def shipped() -> list[tuple[Key, Config]]:
    """The table: every key with its configuration."""
    return [(key, candidates(key)[0]) for key in keys()]


def config_for(key: Key, device: str | None = None, *, specialised: bool = False) -> Config:
    """The tuned configuration of the device of that name where there is one, else the table's.

    Args:
        key: what it is for.
        device: its name; None for the table alone.
        specialised: the call is one that the specialised kernel takes; whether it is taken is for the tuned file.
    """
    tuned = _tuned(device)
    return (tuned.get((key, True)) if specialised else None) or tuned.get((key, False)) or candidates(key)[0]


def tuned_path(device: str) -> Path:
    """Where the tuned file of a device of that name is kept."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "efftrain" / "kernels" / f"{device.replace(' ', '-').replace('/', '-')}.json"


def tuned_document(device: str, chosen: Iterable[tuple[Key, Config]], **facts: Any) -> dict[str, Any]:
    """What a tuned file holds, ready for JSON: `facts` (versions, method) stand beside the configurations.

    A key may have two: one for every call, and a specialised one that goes before it where a call allows that.
    """
    named = {_entry(key, config.specialised): list(astuple(config)) for key, config in chosen}
    return {**facts, "device": device, "configs": named}


def _entry(key: Key, specialised: bool) -> str:
    return f"{key}{' specialised' * specialised}"


@functools.cache
def _tuned(device: str | None) -> dict[tuple[Key, bool], Config]:
    """What this device's file says, less what was never compiled; a file that cannot be used is said so once.

    By key, and whether it is the specialised one.
    """
    if device is None:
        return {}
    path = tuned_path(device)
    try:
        document = json.loads(path.read_text())
        named = {name: Config(*values) for name, values in document["configs"].items()}
        if document["device"] != device:
            raise ValueError(f"it was tuned for {document['device']!r}, not {device!r}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is not used: {error}", RuntimeWarning, stacklevel=2)
        return {}
    entries = {_entry(key, divided): (key, divided) for key in keys() for divided in (False, True)}
    chosen = {entry: config for entry, config in named.items() if entry in entries}
    right = {
        entries[entry]: config
        for entry, config in chosen.items()
        if config in candidates(entries[entry][0]) and config.specialised == entries[entry][1]
    }
    unknown = [entry for entry in chosen if entries[entry] not in right]
    if unknown:
        told = f"{path}: {', '.join(unknown)}: not among the compiled candidates; the table's are used"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    return right
