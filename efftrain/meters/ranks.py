"""One training on several processes: the journals of all its ranks as one.

The first rank of each machine reads the machine's sensors, which see the work of all ranks there; the others write down
their steps and nothing else. A step of the whole trained the tokens of all ranks and did the work of all of them, and
joules are those of all machines. A rank that died early has fewer steps than the others, which is said and counted as
it is: its tokens are those that it wrote down.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from efftrain.record.journal import Journal, JournalError, Line, read_journal

COUNTS: Final = ("calls", "flops", "model_flops", "bytes")
"""What a cost row counts for one rank, and what ranks that do the same do alike."""


def with_ranks(journal: Journal, others: Sequence[Path]) -> Journal:
    """The journal of a run, with the tokens, the work and the machines of the other ranks.

    Args:
        journal: of the first rank. `ranks` in its header is how many there are, `hosts` on how many machines, where one
            record is made of them.
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
    header, ticks = _with_machines(journal.header, [rank for rank in read.values() if rank.header.get("sensors")])
    return Journal(header, [*_summed(journal, tokens), *ticks], journal.defects + defects)


def of_all_ranks(line: Line, ranks: int) -> Line:
    """A step or cost line of one rank as that of `ranks` that do the same: while the others' lines are not at hand."""
    if line["kind"] == "step":
        return {**line, "tokens": line["tokens"] * ranks}
    if line["kind"] == "cost" and "phase" in line:
        return {**line, **{name: line[name] * ranks for name in COUNTS}}
    return line


def _read(paths: Sequence[Path]) -> tuple[dict[str, Journal], list[str]]:
    read: dict[str, Journal] = {}
    defects: list[str] = []
    for path in paths:
        try:
            read[path.stem] = read_journal(path)
        except JournalError as error:
            defects.append(f"{path.stem}: its tokens are missing: {str(error).removeprefix(f'{path}: ')}")
    return read, defects


def _summed(journal: Journal, tokens: dict[int, int]) -> list[Line]:
    """The lines with the tokens of all ranks, of each step and of all up to each evaluation, and the work of all."""
    ranks = int(journal.header.get("ranks", 1))
    until = dict(zip(tokens, accumulate(tokens.values()), strict=True))
    own = dict(zip(tokens, accumulate(line["tokens"] for line in journal.of("step")), strict=True))
    changed: list[Line] = []
    for line in journal.lines:
        if line["kind"] == "step":
            changed.append({**line, "tokens": tokens[line["step"]]})
        elif line["kind"] == "evaluation":
            step = line["step"]
            before = line["tokens"] - own.get(step, 0)  # by this rank in attempts before; other ranks did as many
            changed.append({**line, "tokens": until.get(step, 0) + ranks * before})
        else:
            changed.append(of_all_ranks(line, ranks))
    return changed


def _with_machines(header: Line, machines: Sequence[Journal]) -> tuple[Line, list[Line]]:
    """The header with the sensors of further machines, and the lines of those sensors on the first machine's clock."""
    expected = int(header.get("hosts", 1)) - 1
    if expected <= 0 and not machines:
        return header, []
    whole, lines = dict(header), list[Line]()
    for machine in machines:
        there = machine.header
        name, shift = f"host-{there.get('node', 0)}", _shift(there, header)
        whole["sensors"] = [*whole["sensors"], *(_renamed(info, name) for info in there["sensors"])]
        whole["absent"] = [*whole["absent"], *there["absent"]]
        whole["idle"] = {**whole["idle"], **{f"{name}/{sensor}": idle for sensor, idle in there["idle"].items()}}
        whole["environment"] = _both(whole["environment"], there["environment"])
        lines += [
            {**line, **{t: line[t] + shift for t in ("t", "since") if t in line}, "sensor": f"{name}/{line['sensor']}"}
            for line in machine.lines
            if "sensor" in line
        ]
    if silent := expected - len(machines):
        why = f"{silent} of {expected + 1} machines wrote no readings"
        whole["absent"] = [*whole["absent"], {"component": "cpu", "why": why}]
    return whole, lines


def _shift(there: Mapping[str, Any], here: Mapping[str, Any]) -> int:
    """What is added to a time there to get the same moment's time here, ns; as good as both machines' wall clocks."""
    unix_s = there["clock"]["unix_s"] - here["clock"]["unix_s"]
    return round(unix_s * 1e9) - there["clock"]["monotonic_ns"] + here["clock"]["monotonic_ns"]


def _renamed(info: Mapping[str, Any], machine: str) -> Line:
    witness = info.get("witness_of")
    return {**info, "name": f"{machine}/{info['name']}", "witness_of": f"{machine}/{witness}" if witness else None}


def _both(here: Mapping[str, Any], there: Mapping[str, Any]) -> Line:
    devices = [*here.get("devices", []), *there.get("devices", [])]
    return {**here, "devices": devices, "hosts": here.get("hosts", 1) + 1}
