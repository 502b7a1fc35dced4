"""One training on several processes of one machine: the journals of all its ranks as one.

Rank 0 of the machine reads the sensors, which see the work of all ranks; the others write down their steps and nothing
else. A step of the whole trained the tokens of all ranks. A rank that died early has fewer steps than the others, which
is said and counted as it is: its tokens are those that it wrote down.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from efftrain.record.journal import Journal, JournalError, Line, read_journal


def with_ranks(journal: Journal, others: Sequence[Path]) -> Journal:
    """The journal of a run, with the tokens of the other ranks in its steps and evaluations.

    Args:
        journal: of the machine's first rank.
        others: files of the other ranks; one that cannot be read is named among the defects.
    """
    expected = int(journal.header.get("ranks", 1)) - 1
    if expected <= 0 and not others:
        return journal
    read, defects = _read(others)
    if len(others) < expected:
        defects.append(f"{expected - len(others)} of {expected + 1} ranks wrote no journal: their tokens are missing")
    own = {line["step"]: line["tokens"] for line in journal.of("step")}
    tokens = dict(own)
    for name, rank in read.items():
        theirs = {line["step"]: line["tokens"] for line in rank.of("step")}
        for step in own.keys() & theirs.keys():
            tokens[step] += theirs[step]
        if own.keys() != theirs.keys():
            defects.append(f"{name} made {len(theirs)} steps and ended as {rank.status}, the first rank {len(own)}")
    return Journal(journal.header, _summed(journal.lines, tokens), journal.defects + defects)


def _read(paths: Sequence[Path]) -> tuple[dict[str, Journal], list[str]]:
    read: dict[str, Journal] = {}
    defects: list[str] = []
    for path in paths:
        try:
            read[path.stem] = read_journal(path)
        except JournalError as error:
            defects.append(f"{path.stem}: its tokens are missing: {str(error).removeprefix(f'{path}: ')}")
    return read, defects


def _summed(lines: Sequence[Line], tokens: dict[int, int]) -> list[Line]:
    """The lines with the tokens of all ranks: of each step, and of all steps up to each evaluation."""
    until = dict(zip(tokens, accumulate(tokens.values()), strict=True))
    changed: list[Line] = []
    for line in lines:
        if line["kind"] == "step":
            changed.append({**line, "tokens": tokens[line["step"]]})
        elif line["kind"] == "evaluation":
            changed.append({**line, "tokens": until.get(line["step"], line["tokens"])})
        else:
            changed.append(line)
    return changed
