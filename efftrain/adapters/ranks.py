"""How long the first rank of a machine waits for the others: they agree without a word, and nobody waits for long."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from efftrain.record.journal import JournalError, read_journal

PATIENCE_S: Final = 5.0
POLL_S: Final = 0.05


def wait_for_others(paths: Sequence[Path], *, patience_s: float = PATIENCE_S) -> None:
    """Give the other ranks a moment to end their journals; one whose process is gone is not waited for.

    Args:
        paths: where the journals of the others are; where there is none of them, nobody else measures.
        patience_s: the longest wait in s.
    """
    end = time.monotonic() + patience_s
    while any(path.exists() for path in paths) and not all(map(_over, paths)) and time.monotonic() < end:
        time.sleep(POLL_S)


def _over(path: Path) -> bool:
    try:
        journal = read_journal(path)
    except JournalError:
        return False
    return bool(journal.of("end")) or not Path(f"/proc/{journal.header.get('pid', 0)}").exists()
