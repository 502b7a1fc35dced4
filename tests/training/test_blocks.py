import copy
import itertools
from pathlib import Path

import pytest
import torch

from efftrain.record.journal import SCHEMA, JournalWriter, read_journal
from efftrain.record.recorder import JournalRecorder, NullRecorder
from efftrain.training.blocks import measure_blocks
from efftrain.training.config import OptimizerConfig
from efftrain.training.loop import train
from efftrain.training.session import Session, build_session, train_step


def _trained(config, batches) -> Session:
    session = build_session(config)
    train(session, batches(config), NullRecorder())
    return session


def _everything(session: Session) -> list[torch.Tensor]:
    weights = list(session.model.state_dict().values())
    state = session.optimizer.state_dict()["state"]
    moments = [v for values in state.values() for v in values.values() if isinstance(v, torch.Tensor)]
    return copy.deepcopy([*weights, *moments, torch.get_rng_state()])


@pytest.mark.parametrize("name", ["torch", "efftrain"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_blocks_change_nothing(tiny_config, random_batches, name: str, accumulation: int):
    optimizer = OptimizerConfig(name=name)  # pyright: ignore[reportArgumentType]
    config = tiny_config(optimizer=optimizer, grad_accumulation=accumulation)
    session = _trained(config, random_batches)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in copy.deepcopy(session.optimizer.param_groups)]
    before = _everything(session)
    measure_blocks(session, random_batches(config), NullRecorder(), seconds=0.02, rounds=2)
    assert all(torch.equal(a, b) for a, b in zip(before, _everything(session), strict=True))
    assert groups == [{k: v for k, v in g.items() if k != "params"} for g in session.optimizer.param_groups]
    assert all(p.grad is None for p in session.model.parameters())


def test_training_goes_on_as_if_there_had_been_no_blocks(tiny_config, random_batches):
    ends = []
    for blocks in (False, True):
        session = _trained(tiny_config(), random_batches)
        batches = random_batches(session.config)
        if blocks:
            measure_blocks(session, batches, NullRecorder(), seconds=0.01, rounds=1)
        ends.append(train_step(session, lambda batches=batches: batches.train(7), lambda _: None).loss)
    assert torch.equal(*ends)


def test_each_part_has_its_blocks_in_a_random_order(tiny_config, random_batches, tmp_path: Path):
    session = _trained(tiny_config(), random_batches)
    writer = JournalWriter(tmp_path / "j")
    writer.write("header", schema=SCHEMA)
    measure_blocks(session, random_batches(session.config), JournalRecorder(writer), seconds=0.02, rounds=3)
    writer.close()
    blocks = read_journal(tmp_path / "j").of("block")
    names = [block["name"] for block in blocks]
    assert sorted(names) == sorted(["data", "forward", "forward+backward", "optimizer"] * 3)
    assert names[:4] != names[4:8] or names[4:8] != names[8:]
    assert all(block["repetitions"] >= 1 and block["t_end"] - block["t"] >= 2e7 for block in blocks)
    assert all(a["t_end"] <= b["t"] for a, b in itertools.pairwise(blocks))


def test_blocks_end_when_asked_to(tiny_config, random_batches):
    session = _trained(tiny_config(), random_batches)
    before = _everything(session)
    measure_blocks(session, random_batches(session.config), NullRecorder(), should_stop=lambda: True)
    assert all(torch.equal(a, b) for a, b in zip(before, _everything(session), strict=True))
