"""What one of two ranks cannot do makes both give up a checkpoint, at once, and the next one is theirs again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from efftrain.training.checkpoints.folder import find
from efftrain.training.config import RunConfig
from tests.training.checkpoints.test_resume import IDENTITY

pytestmark = pytest.mark.slow  # two processes import torch

RANK = """
import json, pathlib, sys, torch
from torch._C._distributed_c10d import FileStore
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import from_dict
from efftrain.training.distributed import joined
from efftrain.training.horizon import Horizon
from efftrain.training.session import build_session
from tests.training.checkpoints.test_resume import Notes

rank, config, folder = int(sys.argv[1]), from_dict(json.loads(sys.argv[2])), pathlib.Path(sys.argv[3])
store = FileStore(str(folder / "store"), 2)
torch.set_num_threads(1)
with joined(store, rank=rank, size=2, device=torch.device("cpu"), timeout_s=15) as group:
    session, notes = build_session(config), Notes()
    writer = CheckpointWriter(
        folder / "c", config, notes, identity=json.loads(sys.argv[4]), rank=rank, group=group.checkpoints
    )
    for step in (1, 2):
        if rank == 1:
            writer.folder = folder / ("a file" if step == 1 else "c")
        writer.save(session, step, Horizon(config.horizon))
    writer.close()
print(json.dumps(notes.notes))
"""


def test_a_rank_that_cannot_make_its_folder(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    (tmp_path / "a file").write_text("stands where rank 1 wants a folder")
    config = json.dumps(tiny_config(checkpoint_every=1).as_dict())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), config, str(tmp_path), json.dumps(IDENTITY)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    failed = "the checkpoint after step 1 could not be written: rank 1: File exists; there is none before it"
    for out, _ in said:
        assert json.loads(out)[0] == failed
    assert find(tmp_path / "c").step == 2
    assert len(json.loads(said[0][0])) == 2, "the other note says what is kept"
