"""From the options of a command line to the configuration of a run."""

from pathlib import Path

import pytest

from efftrain.study.planning.base import STUDY_PRESETS, base
from efftrain.study.planning.request import PlanError, Request
from efftrain.training.config import ConfigError, HorizonConfig, LoraConfig
from efftrain.workload.text.config import Source


def configured(**asked: object):
    return base(Request(**asked), STUDY_PRESETS["quick"])  # pyright: ignore[reportArgumentType]


def test_what_nobody_asks_for_is_the_presets():
    config = configured().config
    assert (config.task, config.steps, config.precision, config.ranks) == ("causal", 240, "fp32", 1)
    assert config.horizon == HorizonConfig()
    assert (config.lora, config.start, config.checkpoint_every) == (None, None, None)


def test_the_task_decides_on_the_shape():
    encoder = configured(task="masked").config.model
    assert (encoder.causal, encoder.num_classes) == (False, None)


def test_a_classification_counts_the_classes_of_its_text(tmp_path: Path):
    rows = [f'{{"body": "words about {name} number {i}", "kind": "{name}"}}' for i in range(40) for name in "abc"]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    found = configured(
        task="classification", data=(str(tmp_path / "t.jsonl"),), text_column="body", label_column="kind"
    )
    assert (found.config.model.causal, found.config.model.num_classes) == (True, 3)
    assert found.classes == ("a", "b", "c")
    assert (found.text.column, found.text.label_column) == ("body", "kind")


def test_a_model_may_be_changed_on_the_way():
    model = configured(init="he", dropout=0.1, window=16, seq_len=64, attention="eager").config.model
    assert (model.initialisation, model.dropout, model.window, model.seq_len) == ("he", 0.1, 16, 64)
    assert model.attention == "eager"


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"tokens": 1025}, 3),  # 4 sequences of 128 tokens a step
        ({"tokens_per_parameter": 0.01}, 18),  # 917,504 weights of matrices and 1,152 of norms: 9,187 tokens
        ({"max_flops": 3.2e10}, 9),  # 6 · 917,504 + 12 · 4 · 4 · 32 · 128 = 6,291,456 FLOP a token, 3.22e9 a step
        ({"steps": 7, "batch_size": 2, "grad_accumulation": 3}, 7),
    ],
)
def test_the_horizon_in_steps(asked: dict[str, object], steps: int):
    assert configured(**asked).config.steps == steps


def test_ranks_share_the_tokens_of_a_step():
    config = configured(tokens=4096, ranks=2, parallel="ddp").config
    assert (config.steps, config.tokens_per_step, config.rank_tokens_per_step) == (4, 1024, 512)


def test_sources_and_their_weights(tmp_path: Path):
    odd = tmp_path / "a=3"
    odd.write_text("a file whose name looks like a weight")
    found = configured(data=("web.parquet=3", "code", str(odd))).text.sources
    assert [(Path(s.path).name, s.weight) for s in found] == [("web.parquet", 3.0), ("code", 1.0), ("a=3", 1.0)]
    assert found[2] == Source(path=str(odd))


def test_adapters():
    assert configured(lora_rank=4).config.lora == LoraConfig(rank=4, alpha=8.0)
    assert configured(lora_rank=4, lora_alpha=4.0).config.lora == LoraConfig(rank=4, alpha=4.0)


def test_adapters_beside_random_weights_are_noted():
    (note,) = configured(lora_rank=4).notes
    assert "random weights" in note
    assert configured().notes == ()


def test_limits():
    horizon = configured(max_joules=50.0, patience=3, min_delta=0.01, target_loss=2.5).config.horizon
    assert horizon == HorizonConfig(max_joules=50.0, patience=3, min_delta=0.01, target_loss=2.5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"steps": 1, "max_flops": 1e12}, "--steps and --max-flops say the same thing twice"),
        ({"max_flops": 1e3}, "--max-flops 1000: one step of this model takes"),
        ({"max_flops": float("nan")}, "--max-flops nan"),
        ({"tokens_per_parameter": -1.0}, "--tokens-per-parameter -1"),
        ({"max_joules": 0.0}, "--max-joules 0: expected a number above 0"),
        ({"max_gco2e": -1.0}, "--max-gco2e -1: expected a number above 0"),
        ({"patience": 0}, "--patience 0: expected a number above 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0: expected a number above 0"),
        ({"weight_decay": -1.0}, "--weight-decay -1: expected a number of at least 0"),
        ({"batch_size": 0}, "--batch-size 0: at least 1"),
        ({"seq_len": 0}, "--seq-len: must be at least 1, not 0"),
        ({"window": 0}, "--window: must be at least 1, not 0"),
        ({"dropout": 1.0}, "--dropout: must lie in [0, 1), not 1.0"),
        ({"precision": "tf32"}, "--precision tf32: tf32 is a format of NVIDIA's matrix units"),
        ({"lora_alpha": 2.0}, "--lora-alpha: needs --lora-rank"),
        ({"lora_rank": 0}, "--lora-rank 0: at least 1"),
        ({"task": "classification"}, "--task classification: needs --label-column"),
        ({"label_column": "kind"}, "--label-column kind: needs --task classification"),
        ({"min_delta": 0.1}, "--min-delta: needs --patience"),
        ({"parallel": "fsdp"}, "--parallel fsdp: needs several ranks: torchrun --nproc-per-node N"),
        ({"clean": ("html", "spam")}, "--clean 'spam': unknown; choose from html, control"),
        ({"data": ("web=0",)}, "a source's weight must be above 0"),
        ({"data": ("web=much",)}, "--data web=much: 'much' is not a weight"),
        ({"start": Path("/nowhere")}, "/nowhere: no such folder"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0: at least 1"),
        ({"model": "hf:/nowhere/config.json"}, "/nowhere/config.json"),
        ({"model": "hf:/nowhere/config.json", "window": 3}, "--window: is set by the Hugging Face configuration"),
    ],
)
def test_wishes_that_cannot_be_granted_are_one_line(asked: dict[str, object], words: str):
    with pytest.raises((PlanError, ConfigError)) as caught:
        configured(**asked)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
