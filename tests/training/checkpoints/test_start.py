"""A training that begins with a checkpoint begins where that one ended, or says in one line why it cannot."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from efftrain.compression.pruning import prune_session
from efftrain.record.recorder import NullRecorder
from efftrain.training.checkpoints.fit import check_lora, check_start, start_model
from efftrain.training.checkpoints.folder import CheckpointError, CheckpointInfo, find
from efftrain.training.checkpoints.start import load_start
from efftrain.training.checkpoints.state import resume
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import ConfigError, LoraConfig, PruneConfig, RunConfig
from efftrain.training.evaluation import evaluate
from efftrain.training.horizon import Horizon
from efftrain.training.loop import train
from efftrain.training.lora import apply_lora, count_trainable
from efftrain.training.optimizer import build_optimizer
from efftrain.training.precision.autocast import prepare_precision
from efftrain.training.session import Session
from efftrain.workload.models.build import build_model
from efftrain.workload.models.presets import HuggingFaceModel, ModelConfig

IDENTITY = {"run_id": "baseline-s0", "study_id": "study", "variant": "baseline", "seed": 0}
CPU = torch.device("cpu")
LORA = LoraConfig(rank=3, alpha=6.0)


def build(config: RunConfig, start: CheckpointInfo | None = None, classes: Sequence[str] = ()) -> Session:
    """As a run builds its session: weights, then adapters, then their number format, then the optimizer."""
    model = build_model(config.model, CPU, seed=config.seed)
    if start:
        load_start(model, start, classes)
    if config.lora:
        apply_lora(model, config.lora, config.seed)
    prepare_precision(model, config.precision)
    optimizer = build_optimizer(model, config.optimizer, config.precision)
    return Session(config=config, model=model, optimizer=optimizer)


def trained(
    config: RunConfig, batches: Any, folder: Path, start: CheckpointInfo | None = None
) -> tuple[Session, CheckpointInfo]:
    session, recorder = build(config, start), NullRecorder()
    config = dataclasses.replace(config, checkpoint_every=config.checkpoint_every or config.steps)
    prune = {config.prune_step: lambda s: prune_session(s, [batches(config).train(1).inputs])} if config.prune else {}
    writer = CheckpointWriter(folder, config, recorder, identity=IDENTITY)
    train(session, batches(config), recorder, checkpoints=writer, interventions=prune)
    return session, find(folder)


def tokens(config: RunConfig) -> torch.Tensor:
    return torch.randint(32, (4, config.model.seq_len), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"precision": "pure-bf16"}, {"prune": PruneConfig()}])
def test_the_loss_begins_where_the_checkpoint_ended(tiny_config, random_batches, tmp_path: Path, changes):
    config = tiny_config(**changes)
    session, info = trained(config, random_batches, tmp_path)
    model = start_model(info)
    assert model == session.model.config
    again = dataclasses.replace(config, model=model, seed=7, prune=None)
    assert check_start(again, info) == []
    begun = build(again, info)
    validation = random_batches(config).validation()
    assert evaluate(begun, validation) == evaluate(session, validation)
    for (name, a), (_, b) in zip(begun.model.named_parameters(), session.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_adapters_of_a_checkpoint_are_multiplied_out(tiny_config, random_batches, tmp_path: Path):
    config = tiny_config(lora=LORA)
    first, before = trained(tiny_config(), random_batches, tmp_path / "a")
    session, info = trained(config, random_batches, tmp_path / "b", start=before)
    plain = build(tiny_config(seed=7), info).model
    want, had = session.model(tokens(config)), first.model(tokens(config))
    assert (want - had).abs().max() > 1e-3, "the adapters have learned something"
    scale = want.abs().max().item()
    # Rounding of W + BA to fp32, and sums of some 50 terms: 2^-24 of the size each, with room for both models.
    assert torch.allclose(plain(tokens(config)), want, rtol=0, atol=100 * 2**-24 * scale)


def test_a_training_of_adapters_is_resumed_bit_for_bit(tiny_config, random_batches, tmp_path: Path):
    config = tiny_config(lora=LORA, checkpoint_every=3)
    _, begun = trained(tiny_config(), random_batches, tmp_path / "a")
    whole, _ = trained(config, random_batches, tmp_path / "b", start=begun)
    again, info = build(config, begun), find(tmp_path / "b" / "step-00000003")
    first = resume(again, info, Horizon(config.horizon))
    train(again, random_batches(config), NullRecorder(), first_step=first)
    for (name, a), (_, b) in zip(again.model.named_parameters(), whole.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_new_head_is_fresh_and_trained_and_the_body_is_the_checkpoints(tiny_config, random_batches, tmp_path: Path):
    session, info = trained(tiny_config(), random_batches, tmp_path)
    model = dataclasses.replace(info.model, num_classes=3)
    config = tiny_config(model=model, task="classification", lora=LORA, seed=5)
    (note,) = check_start(config, info)
    assert "its head over 3 classes is new" in note
    begun, there = build(config, info).model, session.model.state_dict()
    assert torch.equal(begun.classifier.weight, build_model(model, CPU, seed=5).classifier.weight)
    trained_here = {n for n, p in begun.named_parameters() if p.requires_grad}
    assert trained_here == {"classifier.weight", *(n for n, _ in begun.named_parameters() if ".lora_" in n)}
    pairs = 3 * 2 * ((16 + 16) + 2 * (16 + 8) + (16 + 16) + 3 * (16 + 24))  # rank 3, two blocks
    assert count_trainable(config) == pairs + 3 * 16
    body = {n: p for n, p in begun.state_dict().items() if ".lora_" not in n and not n.startswith("classifier")}
    assert all(torch.equal(p, there[n.replace(".base_layer", "")]) for n, p in body.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_becomes_a_language_model(tiny_config, tmp_path: Path, tied: bool):
    base = dataclasses.replace(tiny_config().model, tied_embeddings=tied)
    config = tiny_config(model=dataclasses.replace(base, num_classes=3), task="classification", checkpoint_every=1)
    session = build(config)
    writer = CheckpointWriter(tmp_path, config, NullRecorder(), identity=IDENTITY)
    writer.save(session, 1, Horizon(config.horizon))
    writer.close()
    info = find(tmp_path)
    new = tiny_config(model=base, seed=5)
    assert [("its head over the vocabulary is new" in note) for note in check_start(new, info)] == [True] * (not tied)
    begun = build(new, info).model
    head = session.model.embedding.weight if tied else build_model(base, CPU, seed=5).lm_head.weight
    assert torch.equal(begun.lm_head.weight, head)
    assert torch.equal(begun.embedding.weight, session.model.embedding.weight)


@pytest.mark.parametrize(
    ("kept", "here", "is_taken", "said"),
    [
        (("good", "ill"), ("good", "ill"), True, ""),
        (("good", "ill"), ("good", "well"), False, "its head over 2 classes is new; class 2 is 'well' here, 'ill' in"),
        (("good", "ill"), ("ill", "good"), False, "its head over 2 classes is new; class 1 is 'ill' here, 'good' in"),
        (("good", "ill"), ("fair", "good", "ill"), False, "its head over 3 classes is new; the checkpoint has no such"),
        ((), ("good", "ill"), True, "its head over 2 classes is the checkpoint's, which does not name them"),
    ],
)
def test_a_head_is_taken_for_the_same_classes_alone(
    tiny_config, tmp_path: Path, kept: tuple[str, ...], *, here: tuple[str, ...], is_taken: bool, said: str
):
    def classifier(seed: int, number: int) -> RunConfig:
        model = dataclasses.replace(tiny_config().model, num_classes=number)
        return tiny_config(model=model, task="classification", checkpoint_every=1, seed=seed)

    config = classifier(0, 2)
    there = build(config)
    named = {"classes": list(kept)} if kept else {}  # as before names were kept
    writer = CheckpointWriter(tmp_path, config, NullRecorder(), identity={**IDENTITY, **named})
    writer.save(there, 1, Horizon(config.horizon))
    writer.close()
    info, new = find(tmp_path), classifier(5, len(here))
    assert info.classes == kept
    notes = check_start(new, info, here)
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)
    begun, fresh = build(new, info, here).model, build(new).model
    head = there.model if is_taken else fresh
    assert torch.equal(begun.classifier.weight, head.classifier.weight)
    assert torch.equal(begun.embedding.weight, there.model.embedding.weight)


@pytest.mark.parametrize("length", [4, 16])
def test_another_length_keeps_what_was_learned(tiny_config, random_batches, tmp_path: Path, length: int):
    session, info = trained(tiny_config(), random_batches, tmp_path)
    config = tiny_config(model=dataclasses.replace(info.model, seq_len=length))
    notes = check_start(config, info)
    assert [("it has seen 8, and no position beyond them" in note) for note in notes] == [True] * (length > 8)
    short = tokens(config)[:, :4]
    assert torch.equal(build(config, info).model(short), session.model(short))


def whatever(config: RunConfig, model: Any = None) -> CheckpointInfo:
    """A checkpoint that nobody reads."""
    return CheckpointInfo(
        folder=Path("runs/a/checkpoints/step-00000006"), step=6, tokens=192, config=config, run_id="a", study_id="s",
        model=model or config.model, energy=None, facts={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_model": 32}, "d_model 32 in the checkpoint, 16 here"),
        ({"num_layers": 3, "d_ff": 8}, "num_layers 3 in the checkpoint, 2 here"),
        ({"vocab_size": 64}, "vocab_size 64 in the checkpoint, 32 here"),
        ({"tied_embeddings": False}, "tied_embeddings False in the checkpoint, True here"),
        ({"rope_theta": 5e5}, r"rope_theta 500000\.0 in the checkpoint, 10000\.0 here"),
    ],
)
def test_another_architecture_is_named_by_its_first_difference(
    tiny_config: Callable[..., RunConfig], change: dict[str, Any], said: str
):
    config = tiny_config()
    with pytest.raises(ConfigError, match=rf"^--from runs/a/checkpoints/step-00000006: {said}$"):
        check_start(config, whatever(config, dataclasses.replace(config.model, **change)))


@pytest.mark.parametrize("change", [{"attention": "eager"}, {"dropout": 0.1}, {"initialisation": "he"}])
def test_what_weights_do_not_depend_on_may_differ(tiny_config: Callable[..., RunConfig], change: dict[str, Any]):
    config = tiny_config()
    assert check_start(config, whatever(config, dataclasses.replace(config.model, **change))) == []


def test_attention_in_both_directions_and_another_window_are_said(tiny_config: Callable[..., RunConfig]):
    config = tiny_config()
    both = dataclasses.replace(config.model, causal=False, window=4)
    notes = check_start(dataclasses.replace(config, model=both, task="masked"), whatever(config))
    assert [note.partition(": ")[2] for note in notes] == [
        "a token sees all of its sequence here, and saw those before it in the checkpoint",
        "the attention window is 4 here, whole there",
    ]


def huggingface(**changes: Any) -> HuggingFaceModel:
    architecture = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "attention_dropout": 0.0,
        **changes,
    }
    return HuggingFaceModel(
        path="c.json", architecture=architecture, causal=True, vocab_size=32, seq_len=8, num_layers=2
    )


def test_models_of_hugging_face_are_compared_by_their_configuration(tiny_config: Callable[..., RunConfig]):
    config = tiny_config(model=huggingface(attention_dropout=0.1, transformers_version="5.1"))
    assert check_start(config, whatever(config, huggingface(_name_or_path="there"))) == []
    with pytest.raises(ConfigError, match="hidden_size 128 in the checkpoint, 64 here"):
        check_start(config, whatever(config, huggingface(hidden_size=128)))
    with pytest.raises(ConfigError, match=r"efftrain's own model in the checkpoint, a Hugging Face model .llama. here"):
        check_start(config, whatever(config, tiny_config().model))


def test_a_model_of_hugging_face_begins_where_its_checkpoint_ended(tiny_config, random_batches, tmp_path: Path):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 32}
    config = tiny_config(model=huggingface(**shape, tie_word_embeddings=True), lora=LORA)
    session, info = trained(config, random_batches, tmp_path)
    again = tiny_config(model=dataclasses.replace(start_model(info), attention="eager"), seed=7)
    assert check_start(again, info) == []
    want = session.model(tokens(config))
    got = build(again, info).model(tokens(config))
    assert torch.allclose(got, want, rtol=0, atol=100 * 2**-24 * want.abs().max().item())


def test_adapters_are_checked_before_anything_is_loaded(tiny_config: Callable[..., RunConfig], monkeypatch):
    config = tiny_config(lora=LoraConfig(targets=("c_attn",)))
    assert isinstance(config.model, ModelConfig)
    with pytest.raises(ConfigError, match=r"lora target 'c_attn': .*there are q_proj, k_proj"):
        check_start(config, whatever(config))
    monkeypatch.setattr("efftrain.training.checkpoints.fit.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install efftrain\[lora\]"):
        check_lora(LORA, config.model)


def test_weights_of_another_shape_change_nothing(tiny_config, random_batches, tmp_path: Path):
    _, info = trained(tiny_config(), random_batches, tmp_path)
    for change in ({"num_layers": 3}, {"num_layers": 1}, {"d_ff": 32}):
        model = build_model(dataclasses.replace(tiny_config().model, **change), CPU, seed=9)
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(CheckpointError, match=r"is of another model: blocks\.") as caught:
            load_start(model, info)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
