"""`torchrun ... efftrain train`: one record of all ranks, and one of a launch that lost a rank."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch._C._distributed_c10d import HashStore

from efftrain.hardware import probe
from efftrain.monitor.launch import Rank, this_rank
from efftrain.record.journal import JournalTail, append_line
from efftrain.study.follower import _Part, follow, is_follower  # pyright: ignore[reportPrivateUsage]
from efftrain.study.launch import Followers, Loss, NoCrew, check_ranks, first_cause, peak_of_all, tell_end
from efftrain.study.planning.plan import make_plan
from efftrain.study.planning.request import PlanError, Request
from efftrain.study.running.ranks import config_of_rank, journal_of_rank, sensors_of_rank
from efftrain.training.config import ConfigError, HorizonConfig

Torchrun = Callable[..., subprocess.Popen[str]]
TINY = ("--seq-len", "32", "--batch-size", "2", "--device", "cpu")


def rank_of(rank: int, size: int = 2, **more: int) -> Rank:
    return Rank(**{"rank": rank, "size": size, "local": rank, "ranks": size, **more}, started=0.0, root=1)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def torchrun(text_folder: Path, tmp_path: Path) -> Iterator[Torchrun]:
    """Start `torchrun OPTIONS -m efftrain train` on a port of its own; what is left of it at the end is ended."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: object, options: tuple[str, ...] = ("--nproc-per-node", "2")) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "torch.distributed.run", *options, "-m", "efftrain", "train", *TINY,
            "--data", str(text_folder), "--out", str(tmp_path / "out"), *map(str, arguments),
        ]  # fmt: skip
        begun.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
            )
        )  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            for child in reversed(tree(process.pid)):
                child.kill()
            process.communicate()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def lines(folder: Path, kind: str, name: str = "journal") -> list[dict[str, Any]]:
    text = (folder / "out/runs/baseline-s0" / f"{name}.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/runs/baseline-s0/run.json").read_text())


def wait_for_steps(folder: Path, steps: int) -> None:
    path = folder / "out/runs/baseline-s0/journal.jsonl"
    for _ in range(1200):
        if path.exists() and path.read_text().count('"kind":"step"') >= steps:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {steps} steps in two minutes")


def of_rank(launcher: subprocess.Popen[str], rank: int) -> tuple[psutil.Process, psutil.Process]:
    """The command of a rank, and the process of its run."""
    for command in psutil.Process(launcher.pid).children():
        if command.environ().get("RANK") == str(rank):
            (worker,) = [child for child in command.children() if "efftrain.study.running.worker" in child.cmdline()]
            return command, worker
    raise AssertionError(f"no rank {rank}")


def busy(launcher: subprocess.Popen[str]) -> float:
    """CPU seconds of all processes of a launch, as psutil reads them."""
    return sum(sum(process.cpu_times()[:2]) for process in tree(launcher.pid))


def reading(folder: Path, t: int) -> float:
    ticks = [(line["t"], line["value"]) for line in lines(folder, "tick") if line["sensor"] == "process-tree"]
    before = max((tick for tick in ticks if tick[0] <= t), key=lambda tick: tick[0])
    after = min((tick for tick in ticks if tick[0] > t), key=lambda tick: tick[0])
    return before[1] + (after[1] - before[1]) * (t - before[0]) / (after[0] - before[0])


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_with_one_record_whose_cpu_seconds_count_once(torchrun: Torchrun, tmp_path: Path):
    process = torchrun("--steps", 100_000)
    wait_for_steps(tmp_path, 5)
    everybody = tree(process.pid)
    begin, before = time.monotonic_ns(), busy(process)
    time.sleep(3)
    end, used = time.monotonic_ns(), busy(process) - before
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert output.count("interrupted; go on with --resume") == 1, output
    assert not [other for other in everybody if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    run = record(tmp_path)
    assert (run["status"], run["ranks"]) == ("interrupted", 2)
    assert run["tokens"] == sum(
        line["tokens"] for name in ("journal", "rank-1") for line in lines(tmp_path, "step", name)
    )
    cpu = run["energy"]["components"]["cpu"]
    if "process tree" in cpu["source"]:
        # The kernel counts in 1/100 s, and the sensor is read every 0.19 s.
        assert reading(tmp_path, end) - reading(tmp_path, begin) == pytest.approx(used, rel=0.1, abs=0.1)


@pytest.mark.slow
def test_a_lost_rank_ends_the_run_with_a_record_that_names_it(torchrun: Torchrun, tmp_path: Path):
    process = torchrun("--steps", 100_000)
    wait_for_steps(tmp_path, 5)
    everybody = tree(process.pid)
    of_rank(process, 1)[1].kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "baseline-s0: failed" in output
    assert not [other for other in everybody if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    run = record(tmp_path)
    assert (run["status"], run["ranks"]) == ("failed", 2)
    assert run["steps"] >= 5
    assert "failed: rank 1 was killed by SIGKILL" in run["notes"]
    assert run["energy"]["total"]["value"] > 0
    assert (tmp_path / "out/report.html").exists()


HUNGRY = """
import os, sys
if os.environ.get("RANK") == "1" and "efftrain.study.running.worker" in sys.orig_argv:
    import torch
    from efftrain.training import loop
    step = loop.train_step
    def hungry(session, batch, mark):
        hungry.calls += 1
        if hungry.calls == 4:
            torch.empty(2**50, dtype=torch.uint8)
        return step(session, batch, mark)
    hungry.calls, loop.train_step = 0, hungry
"""


@pytest.mark.slow
def test_a_rank_without_memory_is_named_in_a_record_that_says_oom(
    torchrun: Torchrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "hungry").mkdir()
    (tmp_path / "hungry/sitecustomize.py").write_text(HUNGRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hungry"))
    process = torchrun("--steps", 100_000, "--checkpoint-every", 2)
    output, _ = process.communicate(timeout=60)
    assert "baseline-s0: oom" in output, output
    run = record(tmp_path)
    assert (run["status"], run["ranks"]) == ("oom", 2)
    assert any(note.startswith("oom: rank 1: ") and "allocate memory" in note for note in run["notes"]), run["notes"]


@pytest.mark.slow
def test_the_command_of_a_rank_is_killed(torchrun: Torchrun, tmp_path: Path):
    process = torchrun("--steps", 100_000)
    wait_for_steps(tmp_path, 5)
    everybody = tree(process.pid)
    of_rank(process, 1)[0].kill()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not [other for other in everybody if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]
    run = record(tmp_path)
    assert run["status"] == "failed"
    assert "failed: the command of rank 1 was killed" in run["notes"]


@pytest.mark.slow
def test_two_machines_train_what_one_process_does(torchrun: Torchrun, efftrain: Any, text_folder: Path, tmp_path: Path):
    """Two launchers stand for two machines, with a processor each; they share the sequences of one process."""
    hosts = [
        torchrun(
            "--steps", 6, "--parallel", "fsdp",
            options=("--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
                     "--master-port", "29417"),
        )
        for node in (0, 1)
    ]  # fmt: skip
    said = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert "complete" in said[0]
    assert "efftrain" not in said[1]
    alone = tmp_path / "alone"
    done = efftrain("train", *TINY, "--batch-size", 4, "--steps", 6, "--data", text_folder, "--out", alone)
    assert done.returncode == 0, done.stderr
    one, both = json.loads((alone / "runs/baseline-s0/run.json").read_text()), record(tmp_path)
    assert (both["ranks"], both["environment"]["hosts"], both["tokens"]) == (2, 2, one["tokens"])
    journal = [json.loads(line) for line in (alone / "runs/baseline-s0/journal.jsonl").read_text().splitlines()]
    steps = [line for line in journal if line["kind"] == "step"]
    for mine, theirs in zip(steps, lines(tmp_path, "step"), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
    assert both["flops"]["model_per_step"]["value"] == one["flops"]["model_per_step"]["value"]
    memory = both["energy"]["components"]["dram"]
    if memory["method"] == "assumed":  # a power times the billed seconds, of two machines
        watts = lines(tmp_path, "header")[0]["sensors"]
        (dram,) = [info["watts_per_unit"][0] for info in watts if info["component"] == "dram"]
        assert memory["value"] == pytest.approx(2 * dram * both["time"]["total"]["value"], rel=1e-3)
    assert both["flops"]["peak_rate"]["source"].startswith("2 × ")
    assert both["memory"]["predicted_peak"]["value"] is None
    assert "of one of 2 ranks" in both["memory"]["peak"]["source"]


def test_what_torchrun_says_of_one_process_on_each_machine():
    known = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "1"}
    rank = this_rank({**known, "TORCHELASTIC_RUN_ID": "none"})
    assert (rank.rank, rank.size, rank.local, rank.ranks, rank.node, rank.nodes) == (1, 2, 0, 1, 1, 2)
    assert rank.first
    assert rank.gpus("cuda") == (0,)
    assert rank_of(0, 4).gpus("cuda") == (0, 1, 2, 3)
    assert rank_of(0, 4).gpus("cpu") == ()
    assert this_rank({**known}).size == 1
    started = this_rank({**known, "TORCHELASTIC_RUN_ID": "none"}, started_as=os.getpid())
    assert started.root == os.getppid()


def test_only_other_ranks_follow_and_help_is_said_once(monkeypatch: pytest.MonkeyPatch):
    known = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert is_follower(["train", "--steps", "3"])
    assert not is_follower(["report", "x"])
    assert follow(["train", "--help"]) == 0
    monkeypatch.setenv("RANK", "0")
    assert not is_follower(["train"])


@pytest.mark.parametrize(
    ("requested", "ranks", "count", "words"),
    [
        ("cuda", 3, 2, "3 ranks on this machine"),
        ("auto", 2, 1, "1 CUDA device:"),
        ("cuda:0", 1, 2, "take a device each"),
    ],
)
def test_more_ranks_than_devices(monkeypatch: pytest.MonkeyPatch, requested: str, ranks: int, count: int, words: str):
    monkeypatch.setattr(probe, "_nvml_count", lambda: count)
    monkeypatch.setattr(probe, "_cuda_count", lambda: count)
    with pytest.raises(probe.DeviceError, match=words) as refused:
        probe.available_device(requested, ranks=ranks)
    assert "\n" not in str(refused.value)
    assert probe.available_device("cpu", ranks=9) == "cpu"
    assert probe.available_device("cuda", ranks=count) == "cuda"


def test_what_a_launch_cannot_make():
    alone, two = make_plan(Request(seeds=1)), rank_of(0)
    check_ranks(alone, {"phase_energy": "blocks"}, NoCrew().rank)
    with pytest.raises(PlanError, match="made by 1 rank, this launch has 2"):
        check_ranks(alone, {}, two)
    plan = make_plan(Request(seeds=1, ranks=2, parallel="ddp"))
    check_ranks(plan, {}, two)
    with pytest.raises(PlanError, match="--phase-energy blocks"):
        check_ranks(plan, {"phase_energy": "blocks"}, two)
    budget = make_plan(Request(seeds=1, ranks=2, parallel="ddp", max_joules=1e6))
    check_ranks(budget, {}, two)
    with pytest.raises(PlanError, match="--max-joules"):
        check_ranks(budget, {}, rank_of(0, nodes=2, ranks=1))


def test_a_rank_has_its_own_device_and_journal_and_no_budget(tmp_path: Path):
    (run,) = make_plan(Request(variants=("baseline",), seeds=1, ranks=2, parallel="ddp")).runs
    horizon = HorizonConfig(max_joules=5.0, patience=3)
    config = dataclasses.replace(run.config, device="cuda", horizon=horizon)
    first, second = (config_of_rank(config, rank_of(rank)) for rank in (0, 1))
    assert (first.device, second.device) == ("cuda:0", "cuda:1")
    assert (first.horizon, second.horizon) == (horizon, HorizonConfig(patience=3))
    with pytest.raises(ConfigError, match="planned for 2 ranks, started as 1"):
        config_of_rank(config, NoCrew().rank)
    journal = tmp_path / "journal.jsonl"
    assert journal_of_rank(journal, rank_of(0)) == journal
    assert journal_of_rank(journal, rank_of(1)) == tmp_path / "rank-1.jsonl"
    assert sensors_of_rank("cpu", rank_of(1), None).sensors == []


def test_peaks_add_up_over_devices():
    peak = {"device": "D", "flops_per_s": 10.0, "source": "a catalogue"}
    assert peak_of_all(peak, "cuda", rank_of(0, 4))["flops_per_s"] == 40
    assert peak_of_all(peak, "cpu", rank_of(0, 4, nodes=1)) == peak  # they share the processor
    assert peak_of_all(peak, "cpu", rank_of(0, 4, nodes=2)) == {**peak, "flops_per_s": 20, "source": "2 × a catalogue"}


def test_the_first_cause_is_told():
    closed = Loss("rank 2 ended with status 1: RuntimeError: Connection closed by peer")
    killed, full = Loss("rank 3 was killed by SIGKILL"), Loss("rank 1: can't allocate memory", "oom")
    other = Loss("rank 1 ended with status 1: ValueError: x")
    assert first_cause([closed]) is None
    assert first_cause([closed, other, killed]) == killed
    assert first_cause([other, closed]) == other
    assert first_cause([closed, killed, full]) == full


def a_part(folder: Path, seconds: int, patience_s: float) -> _Part:
    process = subprocess.Popen(["sh", "-c", f"trap '' INT; sleep {seconds} & wait; wait"], start_new_session=True)
    time.sleep(0.2)  # the trap is set
    return _Part(process, JournalTail(folder / "rank-1.jsonl"), patience_s)


def wait_for(part: _Part, *, asked: bool = False, over: bool = False) -> float:
    """How many seconds it goes on."""
    began = time.monotonic()
    while part.goes_on(asked=asked, over=over) and time.monotonic() - began < 20:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(part.process.pid, signal.SIGKILL)  # what it started
    return time.monotonic() - began


def test_a_rank_without_memory_is_lost_though_its_process_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("efftrain.study.follower.LOST_PATIENCE_S", 0.2)
    part = a_part(tmp_path, 60, 20.0)
    assert part.goes_on(asked=False, over=False)
    append_line(tmp_path / "rank-1.jsonl", "end", status="oom", detail="can't allocate memory")
    assert wait_for(part) < 5
    assert part.process.returncode == -signal.SIGKILL
    assert part.failed["detail"] == "can't allocate memory"


def test_a_rank_that_writes_a_checkpoint_is_given_the_time_for_it_unless_the_run_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("efftrain.study.follower.LOST_PATIENCE_S", 0.2)
    impatient, patient = (a_part(tmp_path, 2, patience_s) for patience_s in (0.3, 20.0))
    append_line(tmp_path / "rank-1.jsonl", "end", status="interrupted")
    assert wait_for(impatient, asked=True) < 1.5
    assert (impatient.process.returncode, impatient.left_behind) == (-signal.SIGKILL, False)
    wait_for(patient, asked=True)
    assert (patient.process.returncode, patient.failed) == (0, {})
    left = a_part(tmp_path, 60, 20.0)
    assert left.goes_on(asked=True, over=False)
    assert wait_for(left, asked=True, over=True) < 5
    assert left.left_behind


def test_a_rank_that_hangs_is_ended_when_another_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("efftrain.study.launch.LOST_PATIENCE_S", 0.2)
    store = HashStore()
    followers = Followers(rank_of(0), store)
    followers.begin("r", tmp_path / "spec.json")
    assert json.loads(store.get("message/0"))["run_id"] == "r"
    process = subprocess.Popen(["sleep", "60"])
    followers.watch(process)
    assert process.poll() is None
    tell_end(store, "r", 1, Loss("rank 1: no memory", "oom"))
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 10:
        followers.watch(process)
        time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL
    assert followers.ended(process.returncode) == Loss("rank 1: no memory", "oom")
    assert store.check(["r/over"])
    followers.dismiss()
    assert json.loads(store.get("message/1")) == {"kind": "end"}
