"""CPU seconds of a process tree: on a scripted /proc with known answers, and against the kernel's own accounts."""

import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from efftrain.sensors.process_tree import ProcessTreeSensor
from efftrain.sensors.protocol import SensorError, SensorInfo

MODEL = SensorInfo(
    name="cpu-time", component="cpu", device="host", kind="cpu_time", unit="s", watts_per_unit=(4.0, 2.0, 10.0),
    period_s=0.2, method="assumed", source="CPU seconds of the process × 4 W", boundary="this process",
)  # fmt: skip
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class FakeProc:
    """A /proc with processes that work, fork, end and are waited for; it knows the true sum."""

    root: Path
    times: dict[int, list[int]] = field(default_factory=dict)  # pid -> parent, began, own, reaped (in clock ticks)
    true: int = 0
    clock: int = 0

    def fork(self, pid: int, parent: int) -> None:
        self.clock += 1
        self.times[pid] = [parent, self.clock, 0, 0]

    def work(self, pid: int, ticks: int) -> None:
        self.times[pid][2] += ticks
        self.true += ticks

    def end(self, pid: int, *, waited: bool = True, heir: int = 1) -> None:
        parent, _, own, reaped = self.times.pop(pid)
        if waited and parent in self.times:
            self.times[parent][3] += own + reaped
        for orphan in self.times.values():
            orphan[0] = heir if orphan[0] == pid else orphan[0]

    def write(self) -> None:
        for stale in self.root.iterdir():
            (stale / "stat").unlink()
            stale.rmdir()
        for pid, (parent, began, own, reaped) in self.times.items():
            (self.root / str(pid)).mkdir()
            fields = ["S", parent, *[0] * 9, own // 2, own - own // 2, reaped // 2, reaped - reaped // 2]
            fields += [0] * 4 + [began]
            text = f"{pid} (a) name (with) {pid}) {' '.join(map(str, fields))} 0 0"
            (self.root / str(pid) / "stat").write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    fake = FakeProc(tmp_path)
    for pid, parent in ((1, 0), (10, 1), (20, 10)):
        fake.fork(pid, parent)
    fake.write()
    return fake


def sensor(proc: FakeProc, root: int = 10, **options: bool) -> ProcessTreeSensor:
    return ProcessTreeSensor(MODEL, root, proc=proc.root, **options)


def test_running_descendants_are_seen(proc: FakeProc):
    tree = sensor(proc)
    proc.fork(30, 20)
    proc.work(30, 700)
    proc.work(1, 900)  # not of the tree
    proc.write()
    assert tree.read() == pytest.approx(700 * TICK)
    assert tree.alive == 2


def test_a_child_that_ends_is_counted_once(proc: FakeProc):
    tree = sensor(proc)
    proc.work(20, 500)
    proc.write()
    assert tree.read() == pytest.approx(500 * TICK)
    proc.work(20, 30)
    proc.end(20)
    proc.write()
    assert tree.read() == pytest.approx(530 * TICK)
    assert tree.read() == pytest.approx(530 * TICK)


def test_a_whole_branch_that_ends_between_two_readings(proc: FakeProc):
    tree = sensor(proc)
    proc.fork(30, 20)
    proc.work(30, 100)
    proc.work(20, 50)
    proc.write()
    tree.read()
    proc.fork(40, 30)
    proc.work(40, 7)
    for pid in (40, 30, 20):
        proc.end(pid)
    proc.write()
    assert tree.read() == pytest.approx(157 * TICK)


def test_a_wait_that_falls_between_two_files_is_not_counted_twice(proc: FakeProc):
    tree = sensor(proc)
    proc.work(20, 500)
    proc.write()
    tree.read()
    late = proc.times[10].copy()
    proc.end(20)
    waited, proc.times[10] = proc.times[10], late  # the parent was read before it waited, the child was gone after
    proc.write()
    assert tree.read() == pytest.approx(500 * TICK)
    proc.times[10] = waited
    proc.write()
    assert tree.read() == pytest.approx(500 * TICK)


def test_children_that_nobody_waits_for_do_not_hide_later_ones(proc: FakeProc):
    tree = sensor(proc)
    proc.work(20, 500)
    proc.write()
    tree.read()
    proc.end(20, waited=False)
    proc.write()
    tree.read(), tree.read()
    proc.fork(21, 10)
    proc.work(21, 40)
    proc.end(21)
    proc.write()
    assert tree.read() == pytest.approx(540 * TICK)


def test_a_number_that_is_used_again_is_another_process(proc: FakeProc):
    tree = sensor(proc)
    proc.work(20, 500)
    proc.write()
    tree.read()
    proc.end(20)
    proc.fork(20, 10)
    proc.work(20, 3)
    proc.write()
    assert tree.read() == pytest.approx(503 * TICK)


def test_without_its_root(proc: FakeProc):
    tree = sensor(proc, with_root=False)
    proc.work(10, 1000)
    proc.work(20, 5)
    proc.write()
    assert tree.read() == pytest.approx(5 * TICK)


@pytest.mark.parametrize("seed", range(60))
def test_any_history_sums_up_and_never_falls(proc: FakeProc, seed: int):
    chance, tree, last = random.Random(seed), sensor(proc), 0.0
    for number in range(100, 160):
        members = [pid for pid in proc.times if pid != 1]
        for pid in members:
            proc.work(pid, chance.randrange(20))
        if chance.random() < 0.6:
            proc.fork(number, chance.choice(members))
        elif leaves := [p for p in members if p != 10]:
            proc.end(chance.choice(leaves), heir=10)
        if chance.random() < 0.5:
            proc.write()
            value = tree.read()
            assert value >= last
            last = value
    proc.write()
    assert tree.read() == pytest.approx(proc.true * TICK)


def test_a_root_that_is_gone_says_so(proc: FakeProc):
    tree = sensor(proc)
    proc.end(20)
    proc.end(10)
    proc.write()
    with pytest.raises(SensorError, match="process 10 is gone"):
        tree.read()
    with pytest.raises(SensorError, match="99"):
        sensor(proc, root=99)


def test_the_declaration_keeps_the_model(proc: FakeProc):
    info = sensor(proc).info
    assert (info.name, info.kind, info.watts_per_unit, info.method) == (
        "process-tree",
        "cpu_time",
        (4, 2, 10),
        "assumed",
    )
    assert info.source == "CPU seconds of the process tree × 4 W"


BURN = "import time\nwhile time.process_time() < {}: pass\n"
TREE = f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {BURN.format(0.4)!r}]) for _ in range(2)]
{BURN.format(0.3)}
for child in children: child.wait()
"""


def test_against_the_kernels_own_account():
    """A real tree: seen while it runs, exact to 1 ms once it has ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    tree = ProcessTreeSensor(MODEL, os.getpid(), with_root=False)
    process, seen = subprocess.Popen([sys.executable, "-c", TREE]), [0.0]
    while process.poll() is None:
        time.sleep(0.05)
        seen.append(tree.read())
    seen.append(tree.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seen == sorted(seen)
    assert any(0.2 < value < 0.8 for value in seen)  # before any of its processes had ended
    assert seen[-1] == pytest.approx(used, abs=1e-3)
