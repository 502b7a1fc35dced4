"""Ranks of one machine make one record, whatever becomes of some of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import efftrain
from efftrain.adapters.place import claim
from efftrain.adapters.ranks import wait_for_others
from efftrain.meters.ranks import with_ranks
from efftrain.monitor.launch import this_rank
from efftrain.record.folder import StudyFolder
from efftrain.record.journal import JournalWriter, read_journal
from efftrain.record.schema import Run, load
from efftrain.study.collect import collect

LOOP = """
import os, sys, time
import efftrain
rank = int(os.environ["RANK"])
with efftrain.measure("ranks", out="out", device="cpu") as run:
    for step in range({steps}):
        with run.phase("forward"):
            if rank == 1 and step == {dies_at}:
                first = run.folder / "runs/ranks/journal.jsonl"
                while not first.exists() or first.read_text().count('"step"') < 8:
                    time.sleep(0.05)
                os._exit(3)
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
        run.step(tokens=100 * (rank + 1), loss=1.0)
if rank == 0:
    print("problems:", run.problems, flush=True)
"""


def torchrun(folder: Path, dies_at: int = -1, *, steps: int) -> tuple[subprocess.CompletedProcess[str], float]:
    (folder / "loop.py").write_text(LOOP.format(dies_at=dies_at, steps=steps))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "loop.py"]
    began = time.monotonic()
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environ
    )  # fmt: skip
    return done, time.monotonic() - began


def test_torchrun_makes_one_record(tmp_path: Path):
    done, _ = torchrun(tmp_path, steps=20)
    assert done.returncode == 0, done.stderr
    assert "problems: []" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ranks"]
    run = load(tmp_path / "out/ranks/runs/ranks/run.json", Run)
    assert (run.status, run.ranks, run.steps, run.tokens) == ("complete", 2, 20, 20 * 300)
    assert run.time.tokens_per_second.value == pytest.approx(300 / run.time.step.value)
    cpu = run.energy.components["cpu"]
    if "process tree" in cpu.source:  # the sensor of the first rank sees the second one's work
        journal = read_journal(tmp_path / "out/ranks/runs/ranks/journal.jsonl")
        seconds = [tick["value"] for tick in journal.of("tick") if tick["sensor"] == "process-tree"]
        assert seconds[-1] - seconds[0] > 1.3  # one rank alone uses 1 s
    assert [r.tokens for r in collect(StudyFolder(tmp_path / "out/ranks")).runs] == [6000]


def test_a_rank_that_dies_is_not_waited_for(tmp_path: Path):
    """torchrun ends the other rank, or finds it ended; either way there is a journal that tells what happened."""
    done, seconds = torchrun(tmp_path, dies_at=2, steps=200)
    assert done.returncode != 0
    assert seconds < 60
    run = collect(StudyFolder(tmp_path / "out/ranks")).runs[0]
    assert run.ranks == 2
    assert run.steps >= 4  # the journal's words "step" stand twice in a line
    assert run.tokens == run.steps * 100 + 2 * 200
    assert any(note.startswith("rank-1 made 2 steps and ended as killed") for note in run.notes)


def environ(local: int, **more: str) -> dict[str, str]:
    known = {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "GROUP_RANK": "1"}
    return {**known, "TORCHELASTIC_RUN_ID": "none", **more}


def test_what_torchrun_says():
    first, third = this_rank(environ(0)), this_rank(environ(2))
    assert first.first
    assert not third.first
    assert (third.local, third.ranks, third.node, third.nodes) == (2, 4, 1, 2)
    assert (first.launch, first.started, first.root) == (third.launch, third.started, os.getppid())
    assert this_rank(environ(0, TORCHELASTIC_RESTART_COUNT="1")).launch != first.launch
    alone = this_rank({})
    assert (alone.ranks, alone.nodes, alone.first, alone.root) == (1, 1, True, os.getpid())
    assert this_rank({}).launch != alone.launch


def test_ranks_share_a_folder_and_launches_do_not(tmp_path: Path):
    assert claim(tmp_path / "a", "launch 1") == claim(tmp_path / "a", "launch 1") == tmp_path / "a"
    assert claim(tmp_path / "a", "launch 2") == claim(tmp_path / "a", "launch 2") == tmp_path / "a-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-2"]


def write(path: Path, tokens: list[int], *, end: bool = True, pid: int = 0, **header: Any) -> Path:
    journal = JournalWriter(path)
    journal.write("header", schema="efftrain.journal/1", pid=pid, **header)
    for step, count in enumerate(tokens, start=1):
        journal.write("step", step=step, tokens=count, t_end=0, phases=[], loss=None)
    journal.write("evaluation", step=len(tokens), tokens=sum(tokens), loss=1.0)
    if end:
        journal.write("end", status="complete")
    journal.close()
    return path


def test_tokens_of_ranks_add_up(tmp_path: Path):
    first = write(tmp_path / "journal.jsonl", [10, 10, 10], ranks=4)
    others = [write(tmp_path / "rank-1.jsonl", [1, 2, 3]), write(tmp_path / "rank-2.jsonl", [5, 5, 5, 5], end=False)]
    (tmp_path / "rank-3.jsonl").write_text("no journal\n")
    whole = with_ranks(read_journal(first), [*others, tmp_path / "rank-3.jsonl"])
    assert [step["tokens"] for step in whole.of("step")] == [16, 17, 18]
    assert whole.of("evaluation")[0]["tokens"] == 51
    assert whole.defects == [
        "rank-3: its tokens are missing: no header line; this is not a journal, or the run died before it began",
        "rank-2 made 4 steps and ended as killed, the first rank 3",
    ]
    missing = with_ranks(read_journal(first), others).defects
    assert missing[0] == "1 of 4 ranks wrote no journal: their tokens are missing"


def test_nobody_waits_for_long(tmp_path: Path):
    began = time.monotonic()
    wait_for_others([tmp_path / "rank-1.jsonl"])  # nobody else measures
    wait_for_others([write(tmp_path / "rank-2.jsonl", [1])])  # it has ended
    wait_for_others([write(tmp_path / "rank-3.jsonl", [1], end=False, pid=2**22 + 1)])  # its process is gone
    assert time.monotonic() - began < 1
    alive = write(tmp_path / "rank-4.jsonl", [1], end=False, pid=os.getpid())
    wait_for_others([alive], patience_s=0.3)
    assert time.monotonic() - began < 2


@pytest.mark.usefixtures("meters", "no_report")
def test_only_the_first_rank_reads_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in environ(1, LOCAL_WORLD_SIZE="2", WORLD_SIZE="2", GROUP_RANK="0").items():
        monkeypatch.setenv(name, value)
    with efftrain.measure("light", out=tmp_path, device="cpu") as run:
        run.step(tokens=5)
    assert run.record is None
    assert run.problems == []
    kinds = [json.loads(line)["kind"] for line in (run.folder / "runs/light/rank-1.jsonl").read_text().splitlines()]
    assert set(kinds) == {"header", "span", "step", "end"}
