import json
import math
from typing import Any

import pytest

from efftrain.training.config import ConfigError, OptimizerConfig, PruneConfig, RunConfig, from_dict, learning_rate
from efftrain.workload.models.presets import PRESETS, ModelConfig


def config(**changes: Any) -> RunConfig:
    return RunConfig(**{"model": PRESETS["nano"], "steps": 30, "batch_size": 2, **changes})


def test_round_trip_through_json():
    there = config(prune=PruneConfig(), precision="bf16")
    assert from_dict(json.loads(json.dumps(there.as_dict()))) == there


@pytest.mark.parametrize("name", ["steps", "batch_size", "grad_accumulation", "eval_every", "threads"])
def test_numbers_below_one_are_refused(name: str):
    with pytest.raises(ConfigError, match=name):
        config(**{name: 0})


def test_unknown_precision_and_broken_data():
    with pytest.raises(ConfigError, match="fp32, tf32, bf16, fp16"):
        config(precision="fp64")
    with pytest.raises(ConfigError, match="configuration: "):
        from_dict({"steps": 3})


def test_pruning_needs_two_parts():
    with pytest.raises(ConfigError, match="too few"):
        config(steps=1, prune=PruneConfig())
    assert config(prune=PruneConfig()).prune_step == 10


def test_pruned_model_keeps_groups():
    pruned = config(prune=PruneConfig(keep_heads=0.5, keep_channels=0.25)).pruned_model
    assert pruned is not None
    assert (pruned.num_heads, pruned.num_kv_heads, pruned.d_ff) == (2, 2, 96)


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_share=0.1, min_learning_rate_ratio=0.1)
    assert learning_rate(5, 100, optimizer) == pytest.approx(0.5)
    assert learning_rate(10, 100, optimizer) == 1.0
    assert learning_rate(55, 100, optimizer) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(100, 100, optimizer) == pytest.approx(0.1)


def test_model_shapes_that_cannot_be():
    good = {"d_model": 8, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "d_ff": 8,
            "vocab_size": 8, "seq_len": 4}  # fmt: skip
    ModelConfig(**good)
    for bad, words in [({"num_kv_heads": 3}, "must divide"), ({"head_dim": 3}, "even"), ({"d_ff": 0}, "at least 1"),
                       ({"dropout": 1.0}, r"\[0, 1\)"), ({"attention": "magic"}, "choose one")]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            ModelConfig(**{**good, **bad})
