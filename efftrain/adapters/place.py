"""The folder of a measurement: a new one each time, the same one for all ranks of a launch."""

import os
import shutil
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Final

from efftrain.monitor.launch import Rank

DEFAULT_OUT: Final = Path("efftrain-runs")
LAUNCH: Final = ".launch"
"""Says which launch a folder belongs to, and which of its measurements."""


def claim(path: Path, key: str) -> Path:
    """A folder at `path`, or at `path-2` and so on where others were before; made now, or by another rank before.

    Args:
        path: the wish.
        key: what all processes that share the folder have in common.

    Raises:
        OSError: no folder can be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        error.filename = str(path)  # not the temporary name beside it, for which nobody has asked
        raise
    try:
        fresh.chmod(0o777 & ~_umask())
        (fresh / LAUNCH).write_text(key)
        for number in count(1):
            wish = path if number == 1 else path.with_name(f"{path.name}-{number}")
            if _move(fresh, wish) or _launch(wish) == key:
                return wish
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    raise AssertionError("the numbers ended")


def default_folder(name: str, rank: Rank, out: Path | None) -> Path:
    """Where a measurement wants to be: OUT/NAME, or efftrain-runs/NAME-TIME; a machine of several adds its number."""
    machine = f"-node{rank.node}" if rank.nodes > 1 else ""
    if out is not None:
        return out / f"{name}{machine}"
    return DEFAULT_OUT / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(rank.started))}{machine}"


def _move(fresh: Path, wish: Path) -> bool:
    """Put a whole folder in its place at once; not where something is, but where an empty folder is."""
    try:
        os.rename(fresh, wish)
    except OSError:
        if not wish.exists():
            raise
        return False
    return True


def _launch(folder: Path) -> str | None:
    try:
        return (folder / LAUNCH).read_text()
    except OSError:
        return None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
