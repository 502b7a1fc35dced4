"""What one run's process does with its checkpoints: what is written into them, and how it ends after one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from efftrain.monitor.launch import Rank
from efftrain.study.running import run as running
from efftrain.study.running.ranks import config_of_rank
from efftrain.training.checkpoints.folder import find
from efftrain.training.config import ConfigError, HorizonConfig, OptimizerConfig, RunConfig
from efftrain.training.ranks import Alone
from efftrain.training.session import Session, build_session
from tests.training.checkpoints.test_resume import IDENTITY, Notes, trained
from tests.training.conftest import TINY, RandomBatches

CONFIG = RunConfig(model=TINY, steps=6, batch_size=4, eval_every=3, checkpoint_every=3, optimizer=OptimizerConfig())
REFUSAL = "--max-joules 9: no room"


class FlushedNotes(Notes):
    """Has no file that would need it."""

    def flush(self) -> None: ...


def spec_of(config: RunConfig, folder: Path, **changed: Any) -> dict[str, Any]:
    known = {"config": config.as_dict(), "journal": str(folder / "journal.jsonl"), "weights": None}
    return {**IDENTITY, "origin": None, "phase_energy": None, **known, **changed}


def test_a_checkpoint_of_ranks_on_gpus_is_of_the_configuration_that_was_planned(tmp_path: Path):
    planned = dataclasses.replace(CONFIG, device="cuda", ranks=2, parallel="ddp")
    config = config_of_rank(planned, Rank(rank=0, size=2, ranks=2, started=0.0, root=1))
    assert config.device == "cuda:0"
    corpus: Any = SimpleNamespace(tokenizer_path=None, classes=())
    writer = running._checkpoints(spec_of(planned, tmp_path), config, corpus, cast("Any", FlushedNotes()), Alone())
    assert writer is not None
    session = build_session(CONFIG)
    writer.save(session, 3, running.Horizon(CONFIG.horizon))
    writer.close()
    assert find(tmp_path / "checkpoints").config == planned


class NoRoom:
    """A budget that holds no other step."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def first_step_refusal(self) -> str:
        return REFUSAL

    def spent(self) -> bool:
        return True


@pytest.fixture
def without_room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Session, Notes, str]]:
    def train(config: RunConfig, spec: dict[str, Any]) -> tuple[Session, Notes, str]:
        session, notes = build_session(config), FlushedNotes()
        parts = running._Parts(session, None, RandomBatches(config))
        monkeypatch.setattr(running, "_build", lambda *_: parts)
        monkeypatch.setattr(running, "_warm_up", lambda *_, **__: None)
        monkeypatch.setattr(running, "Budget", NoRoom)
        corpus: Any = SimpleNamespace(tokenizer_path=None, classes=())
        status = running._train(spec, config, corpus, cast("Any", notes), stop=lambda: False, ranks=Alone())
        return session, notes, status

    return train


def test_resumed_without_room_for_a_step_it_ends_as_what_it_was(without_room: Any, tmp_path: Path):
    config = dataclasses.replace(CONFIG, horizon=HorizonConfig(max_joules=9.0))
    trained(config, tmp_path / "checkpoints")
    kept, weights = tmp_path / "checkpoints" / "step-00000003", tmp_path / "weights.pt"
    session, notes, status = without_room(config, spec_of(config, tmp_path, resume=str(kept), weights=str(weights)))
    assert (status, notes.losses) == ("budget-spent", {})
    assert REFUSAL in notes.notes[0]
    saved = torch.load(weights, weights_only=True)
    fresh = build_session(config).model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in session.model.state_dict().items())
    assert any(not torch.equal(saved[name], value) for name, value in fresh.items())
    last = without_room(config, spec_of(config, tmp_path, resume=str(kept.with_name("step-00000006"))))
    assert last[2] == "complete", "killed after its last step: there is nothing left to refuse"


def test_begun_without_room_for_a_step_it_is_refused(without_room: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match="no room"):
        without_room(CONFIG, spec_of(CONFIG, tmp_path))
