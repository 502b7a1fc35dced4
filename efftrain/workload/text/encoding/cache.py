"""Where encoded corpora are kept, what their files are called, and how one is written: whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Literal, get_args

import numpy as np

Part = Literal["train", "validation"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place at the end, whole, and leaves nothing behind if that does not come."""
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/efftrain`, or `~/.cache/efftrain`."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efftrain"
    except RuntimeError:  # a user without a home
        return temporary_root()


def temporary_root() -> Path:
    """A folder of this user alone under the temporary folder, the same one next time."""
    root = Path(tempfile.gettempdir()) / f"efftrain-{os.getuid()}"
    with suppress(OSError):
        root.mkdir(mode=0o700, exist_ok=True)
        if not root.is_symlink() and root.stat().st_uid == os.getuid() and os.access(root, os.W_OK):
            return root
    return Path(tempfile.mkdtemp(prefix="efftrain-"))


def part_file(part: Part, source: int, kind: str = "") -> str:
    """Name of the file with the tokens of a part of a source, or with its documents' `offsets` or `labels`."""
    return f"{part}{f'-{source + 1}' if source else ''}{f'-{kind}' if kind else ''}.bin"


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The type that tokens are stored in."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.uint32
