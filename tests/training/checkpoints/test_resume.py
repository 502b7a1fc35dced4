"""Resumed at step k is the same as uninterrupted, bit for bit: weights, moments, scale, and the losses that follow."""

import dataclasses
import json
import random
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efftrain.compression.pruning import prune_session
from efftrain.record.recorder import NullRecorder
from efftrain.training.checkpoints.folder import CheckpointError, CheckpointInfo, find
from efftrain.training.checkpoints.start import load_start
from efftrain.training.checkpoints.state import reshape, resume
from efftrain.training.checkpoints.writer import CheckpointWriter
from efftrain.training.config import HorizonConfig, OptimizerConfig, OptimizerName, PruneConfig, RunConfig
from efftrain.training.horizon import Horizon
from efftrain.training.loop import train
from efftrain.training.optimizer import build_optimizer
from efftrain.training.session import Session, build_session, preserved, train_step
from efftrain.workload.models.build import build_model
from tests.training.conftest import TINY, RandomBatches

IDENTITY = {"run_id": "baseline-s0", "study_id": "study", "variant": "baseline", "seed": 0}
WITH_DROPOUT = dataclasses.replace(TINY, dropout=0.2)


class Notes(NullRecorder):
    """Keeps what training says."""

    def __init__(self) -> None:
        self.losses: dict[int, Any] = {}
        self.evaluations: dict[int, float] = {}
        self.notes: list[str] = []
        self.spans: list[str] = []

    def step(self, **fields: Any) -> None:
        self.losses[fields["step"]] = (fields["loss"], fields["grad_norm"], fields["learning_rate"])

    def evaluation(self, **fields: Any) -> None:
        self.evaluations[fields["step"]] = fields["loss"]

    def note(self, text: str, **fields: Any) -> None:
        self.notes.append(text)

    @contextmanager
    def span(self, name: str):
        self.spans.append(name)
        yield


def interventions(config: RunConfig, batches: RandomBatches) -> dict[int, Callable[[Session], None]]:
    if config.prune is None:
        return {}
    return {config.prune_step: lambda session: prune_session(session, [batches.train(1).inputs])}


def trained(config: RunConfig, folder: Path | None, *, info: CheckpointInfo | None = None) -> tuple[Session, Notes]:
    """Train as a run does: a fresh session, warmed up, and then from the beginning or from a checkpoint."""
    torch.manual_seed(config.seed)
    session, batches, notes, horizon = build_session(config), RandomBatches(config), Notes(), Horizon(config.horizon)
    if info:
        reshape(session, info)
    with preserved(session):
        train_step(session, lambda: batches.train(1), lambda _: None)
    first = resume(session, info, horizon) if info else 1
    writer = CheckpointWriter(folder, config, notes, identity=IDENTITY) if folder else None
    train(
        session, batches, notes, interventions=interventions(config, batches), horizon=horizon, checkpoints=writer,
        first_step=first,
    )  # fmt: skip
    return session, notes


def same_state(a: Session, b: Session) -> bool:
    weights = zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True)
    moments, others = a.optimizer.state_dict(), b.optimizer.state_dict()
    return (
        all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in weights)
        and all(
            torch.equal(value, others["state"][number][name])
            for number, values in moments["state"].items()
            for name, value in values.items()
        )
        and moments["state"].keys() == others["state"].keys()
        and moments["param_groups"] == others["param_groups"]
        and (a.scaler is None or (b.scaler is not None and a.scaler.state_dict() == b.scaler.state_dict()))
    )


CASES: dict[str, dict[str, Any]] = {
    "fp32 with accumulation": {"grad_accumulation": 2},
    "bf16": {"precision": "bf16"},
    "fp16 with its scaler": {"precision": "fp16"},
    "pure bf16": {"precision": "pure-bf16"},
    "pure bf16 with efftrain's AdamW": {"precision": "pure-bf16", "optimizer": OptimizerConfig(name="efftrain")},
    "pure bf16, pruned before the checkpoint": {"precision": "pure-bf16", "prune": PruneConfig(after=1 / 3)},
    "efftrain's AdamW": {"optimizer": OptimizerConfig(name="efftrain")},
    "pruned after step 2, before the checkpoint": {"prune": PruneConfig(after=1 / 3)},
    "pruned after step 5, after the checkpoint": {"prune": PruneConfig(after=5 / 6)},
    "pruned at the checkpoint": {"prune": PruneConfig(after=1 / 2)},
    "recomputed": {"recompute": "full"},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted_bit_for_bit(tiny_config: Callable[..., RunConfig], tmp_path: Path, case: str):
    config = tiny_config(**{"model": WITH_DROPOUT, "eval_every": 2, "checkpoint_every": 3, **CASES[case]})
    whole, uninterrupted = trained(config, tmp_path / "checkpoints")
    unsaved, without = trained(config, None)
    assert same_state(whole, unsaved), "keeping checkpoints changes nothing"
    assert uninterrupted.losses == without.losses
    info = find(tmp_path / "checkpoints" / "step-00000003")
    again, resumed = trained(info.config, None, info=info)
    assert same_state(again, whole)
    assert list(resumed.losses) == [4, 5, 6]
    assert resumed.losses == {step: uninterrupted.losses[step] for step in (4, 5, 6)}
    assert resumed.evaluations == {step: uninterrupted.evaluations[step] for step in (4, 6)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_resumed_is_uninterrupted_where_it_is_compiled(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    config = tiny_config(compile=True, checkpoint_every=3)
    whole, uninterrupted = trained(config, tmp_path)
    info = find(tmp_path / "step-00000003")
    eager = build_model(config.model, torch.device("cpu"))
    load_start(eager, info)  # its names are those of the model that was not compiled
    again, resumed = trained(config, None, info=info)
    assert same_state(again, whole)
    assert resumed.losses == {step: uninterrupted.losses[step] for step in (4, 5, 6)}


def test_random_state_of_torch_python_and_numpy_comes_back(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), random.gauss(), np.random.rand(), np.random.randn()

    config = tiny_config(checkpoint_every=1)
    session = build_session(config)
    train_step(session, lambda: RandomBatches(config).train(1), lambda _: None)
    draw()
    writer = CheckpointWriter(tmp_path, config, Notes(), identity=IDENTITY)
    writer.save(session, 1, Horizon(config.horizon))
    drawn = draw()
    writer.close()
    resume(build_session(config), find(tmp_path), Horizon(config.horizon))
    assert draw() == drawn


def test_best_loss_and_patience_come_back_exactly(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    config = tiny_config(checkpoint_every=1, horizon=HorizonConfig(patience=3))
    session = build_session(config)
    train_step(session, lambda: RandomBatches(config).train(1), lambda _: None)
    writer = CheckpointWriter(tmp_path, config, Notes(), identity=IDENTITY)
    writer.save(session, 1, Horizon(config.horizon, best=1 / 3, waited=2))
    writer.close()
    horizon = Horizon(config.horizon)
    assert resume(build_session(config), find(tmp_path), horizon) == 2
    assert (horizon.best, horizon.waited) == (1 / 3, 2)
    assert horizon.after_evaluation(0.5) == "early-stopped"


def test_the_newest_two_are_kept_and_the_last_step_always(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    tokenizer = tmp_path / "mine.json"
    tokenizer.write_text(json.dumps({"model": "BPE"}))
    config, notes = tiny_config(checkpoint_every=2, steps=7), Notes()
    spent = {"energy": None, "grams": 1.5, "seconds": 2.5}
    writer = CheckpointWriter(
        tmp_path / "c", config, notes, identity=IDENTITY, tokenizer=tokenizer, spent=lambda: spent
    )  # fmt: skip
    train(build_session(config), RandomBatches(config), notes, checkpoints=writer)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000006", "step-00000007"]
    info = find(tmp_path / "c")
    assert info.tokenizer is not None
    assert info.tokenizer.read_text() == tokenizer.read_text()
    assert (info.facts["grams"], info.facts["seconds"], info.energy) == (1.5, 2.5, None)
    assert info.tokens == 7 * config.tokens_per_step
    assert notes.spans.count("checkpoint") == 4
    weight = sum(path.stat().st_size for path in (tmp_path / "c").glob("*/*")) / 1e6
    assert notes.notes == [f"checkpoints: 2 kept, {weight:.1f} MB, in c/"]


def test_an_interrupted_training_keeps_where_it_stopped(tiny_config: Callable[..., RunConfig], tmp_path: Path):
    config, batches, notes = tiny_config(checkpoint_every=2), RandomBatches, Notes()
    writer = CheckpointWriter(tmp_path, config, notes, identity=IDENTITY)
    asked = iter([False] * 3 + [True])
    status = train(build_session(config), batches(config), notes, checkpoints=writer, should_stop=lambda: next(asked))
    assert status == "interrupted"
    assert find(tmp_path).step == 3


@pytest.mark.parametrize("precision", ["fp32", "pure-bf16"])
def test_a_parameter_that_never_had_a_gradient_has_no_moments(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, precision: str
):
    def with_spare(config: RunConfig) -> Session:
        session = build_session(config)
        session.model.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
        session.use_model(session.model, build_optimizer(session.model, config.optimizer, config.precision))
        return session

    config = tiny_config(checkpoint_every=3, precision=precision)
    whole, notes = with_spare(config), Notes()
    writer = CheckpointWriter(tmp_path, config, notes, identity=IDENTITY)
    train(whole, RandomBatches(config), notes, checkpoints=writer)
    again, horizon = with_spare(config), Horizon(config.horizon)
    first = resume(again, find(tmp_path / "step-00000003"), horizon)
    train(again, RandomBatches(config), Notes(), horizon=horizon, first_step=first)
    assert same_state(again, whole)
    assert len(again.optimizer.state) == len(list(again.model.parameters())) - 1


@pytest.mark.parametrize("optimizer", ["torch", "efftrain"])
def test_where_fp16_has_skipped_every_step_there_are_no_moments_and_keeping_makes_none(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, optimizer: OptimizerName
):
    def overflowing(config: RunConfig) -> Session:
        session = build_session(config)
        session.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000, backoff_factor=2.0**-32)
        return session

    def made(folder: Path | None, info: CheckpointInfo | None = None) -> tuple[Session, Notes]:
        session, notes, horizon = overflowing(config), Notes(), Horizon(config.horizon)
        first = resume(session, info, horizon) if info else 1
        writer = CheckpointWriter(folder, config, notes, identity=IDENTITY) if folder else None
        train(session, RandomBatches(config), notes, horizon=horizon, checkpoints=writer, first_step=first)
        return session, notes

    config = tiny_config(checkpoint_every=1, precision="fp16", optimizer=OptimizerConfig(name=optimizer))
    (without, untouched), (kept, notes) = made(None), made(tmp_path / "all")
    assert any("was skipped" in note for note in notes.notes)
    assert same_state(kept, without)
    assert notes.losses == untouched.losses
    first = overflowing(config)
    train_step(first, lambda: RandomBatches(config).train(1), lambda _: None)
    writer = CheckpointWriter(tmp_path / "first", config, Notes(), identity=IDENTITY)
    writer.save(first, 1, Horizon(config.horizon))
    writer.close()
    assert not first.optimizer.state
    again, resumed = made(None, find(tmp_path / "first"))
    assert same_state(again, without)
    assert resumed.losses == {step: untouched.losses[step] for step in range(2, 7)}


@pytest.mark.parametrize("change", [{"num_layers": 3}, {"num_layers": 1}, {"d_ff": 32}])
def test_another_architecture_is_one_line_and_changes_nothing(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, change: dict[str, int]
):
    trained(tiny_config(checkpoint_every=6), tmp_path)
    session = build_session(tiny_config(model=dataclasses.replace(TINY, **change)))
    before = [p.clone() for p in session.model.parameters()]
    with pytest.raises(CheckpointError, match="is of another model") as caught:
        resume(session, find(tmp_path), Horizon(session.config.horizon))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(session.model.parameters(), before, strict=True))
