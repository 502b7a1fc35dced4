from pathlib import Path

import pytest
import torch

from efftrain.training.checkpoints.state import load_weights, save_weights
from efftrain.training.session import build_session


def test_weights_come_back(tiny_config, tmp_path: Path):
    session, other = build_session(tiny_config()), build_session(tiny_config(seed=1))
    save_weights(session, tmp_path / "w.pt")
    load_weights(other.model, tmp_path / "w.pt")
    for a, b in zip(session.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_missing_or_foreign_weights_are_one_line(tiny_config, tmp_path: Path):
    session = build_session(tiny_config())
    with pytest.raises(ValueError, match="no weights for this model") as caught:
        load_weights(session.model, tmp_path / "absent.pt")
    assert "\n" not in str(caught.value)
    torch.save({"other": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="no weights for this model"):
        load_weights(session.model, tmp_path / "foreign.pt")
