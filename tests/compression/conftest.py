"""A small model and a session around it."""

import pytest

from efftrain.training.config import PruneConfig, RunConfig
from efftrain.training.session import build_session
from efftrain.workload.models.presets import ModelConfig

TINY = ModelConfig(
    d_model=16, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=4, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip


@pytest.fixture
def session():
    config = RunConfig(model=TINY, steps=9, batch_size=4, prune=PruneConfig())
    return build_session(config)
