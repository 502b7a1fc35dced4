"""What a disk and a kill do to checkpoints: the one before stays whole, and training goes on."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efftrain.training.checkpoints.folder import find, step_folders
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import RunConfig
from efftrain.training.loop import train
from efftrain.training.session import build_session
from tests.training.checkpoints.test_resume import IDENTITY, Notes, trained
from tests.training.conftest import RandomBatches


@contextmanager
def files_of_at_most(size: int) -> Iterator[Callable[[], None]]:
    """A limit on the size of files, as a disk that is full; yields what switches it on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 3_000, 20_000])
def test_what_does_not_fit_is_a_note_and_training_goes_on(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, size: int
):
    config, notes = tiny_config(checkpoint_every=2, steps=8), Notes()
    batches, writer = RandomBatches(config), CheckpointWriter(tmp_path, config, notes, identity=IDENTITY)
    with files_of_at_most(size) as begin:

        def restore(_: object) -> None:
            writer.wait()
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        def fill(_: object) -> None:
            writer.wait()
            begin()

        status = train(
            build_session(config), batches, notes, interventions={3: fill, 7: restore}, checkpoints=writer
        )  # fmt: skip
    assert status == "complete"
    _, untouched = trained(config, None)
    assert notes.losses == untouched.losses
    assert notes.notes[:2] == [
        f"the checkpoint after step {step} could not be written: File too large; step-00000002 stays" for step in (4, 6)
    ]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000008"]
    assert find(tmp_path).step == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_is_a_note_and_the_checkpoint_before_stays(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "full", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this root may not mount either")
    try:
        config, notes = tiny_config(checkpoint_every=1, steps=3), Notes()
        batches, writer = RandomBatches(config), CheckpointWriter(disk / "c", config, notes, identity=IDENTITY)

        def fill(_: object) -> None:
            writer.wait()
            free = os.statvfs(disk)
            (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 8192))

        status = train(build_session(config), batches, notes, interventions={2: fill}, checkpoints=writer)
        assert status == "complete"
        assert notes.notes[:2] == [
            f"the checkpoint after step {step} could not be written: No space left on device; step-00000001 stays"
            for step in (2, 3)
        ]
        assert [path.name for path in (disk / "c").iterdir()] == ["step-00000001"]
        assert find(disk / "c").step == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made_is_a_note(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    (tmp_path / "c").write_text("a file stands here")
    session, notes = trained(tiny_config(checkpoint_every=3), tmp_path / "c")
    assert session.model is not None
    assert notes.notes == [
        f"the checkpoint after step {step} could not be written: File exists; there is none before it"
        for step in (3, 6)
    ]


def test_energy_that_is_not_known_costs_no_checkpoint(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    def broken() -> dict[str, object]:
        raise ValueError("no meter\nat all")

    config, notes = tiny_config(checkpoint_every=6), Notes()
    writer = CheckpointWriter(tmp_path, config, notes, identity=IDENTITY, spent=broken)
    train(build_session(config), RandomBatches(config), notes, checkpoints=writer)
    assert notes.notes[0] == "the checkpoint after step 6 does not know its energy: no meter"
    assert find(tmp_path).energy is None


SAVER = """
import json, os, pathlib, sys, time, torch
from efftrain.record.recorder import NullRecorder
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import from_dict
from efftrain.training.horizon import Horizon
from efftrain.training.session import build_session, train_step
from tests.training.conftest import RandomBatches

config, folder = from_dict(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2])

def save_for_ever():
    torch.set_num_threads(1)
    session, batches = build_session(config), RandomBatches(config)
    train_step(session, lambda: batches.train(1), lambda _: None)
    writer = CheckpointWriter(folder, config, NullRecorder(), identity=json.loads(sys.argv[3]))
    print("saving", flush=True)
    for step in range(int(sys.argv[4]), 10**6):
        writer.save(session, step, Horizon(config.horizon))

for line in sys.stdin:  # one child a line, so that torch is imported once
    sys.argv[4:] = [line.strip()]
    child = os.fork()
    if child == 0:
        save_for_ever()
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def saver_to_kill(saver: "subprocess.Popen[str]", first_step: int) -> int:
    """Start a process that saves one checkpoint after the other; its id, once it does."""
    assert saver.stdin
    assert saver.stdout
    saver.stdin.write(f"{first_step}\n")
    saver.stdin.flush()
    said = {saver.stdout.readline().strip(), saver.stdout.readline().strip()}
    (child,) = said - {"saving"}
    return int(child)


@pytest.mark.slow
def test_killed_at_any_moment_there_is_a_whole_checkpoint(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    moments, config = random.Random(5), tiny_config(checkpoint_every=1)
    command = [sys.executable, "-c", SAVER, json.dumps(config.as_dict()), str(tmp_path), json.dumps(IDENTITY)]
    whole, unfinished = 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdout
        for _ in range(25):
            child = saver_to_kill(saver, whole + 1)
            time.sleep(moments.uniform(0.0, 0.12))
            os.kill(child, signal.SIGKILL)
            assert saver.stdout.readline() == "gone\n"
            unfinished += any(path.name.startswith(".unfinished") for path in tmp_path.iterdir())
            if whole or step_folders(tmp_path):
                info = find(tmp_path)
                assert info.passed_over == ()
                assert info.step >= whole
                whole = info.step
        assert saver.stdin
        saver.stdin.close()
    assert whole > 0
    assert unfinished > 0, "no moment of writing was hit"
