import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch

from efftrain.record.journal import SCHEMA, JournalWriter, read_journal
from efftrain.record.recorder import JournalRecorder, NullRecorder
from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.config import OptimizerConfig
from efftrain.training.evaluation import evaluate
from efftrain.training.loop import train
from efftrain.training.session import Session, build_session


def run(config, batches, path: Path, **more):
    writer = JournalWriter(path)
    writer.write("header", schema=SCHEMA)
    session = build_session(config)
    status = train(session, batches(config), JournalRecorder(writer), **more)
    writer.close()
    return status, read_journal(path), session


def test_every_step_is_recorded_with_phases_that_tile_it(tiny_config, random_batches, tmp_path: Path):
    status, journal, _ = run(tiny_config(), random_batches, tmp_path / "j")
    assert status == "complete"
    steps = journal.of("step")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        times = [line["t"], *(t for _, t in line["phases"]), line["t_end"]]
        assert times == sorted(times)
        assert [name for name, _ in line["phases"]] == ["data", "forward", "backward", "optimizer"]
        assert line["tokens"] == 4 * 8
    assert all(a["t_end"] <= b["t"] for a, b in itertools.pairwise(steps))


def test_evaluations_come_at_their_steps_and_at_the_end(tiny_config, random_batches, tmp_path: Path):
    _, journal, session = run(tiny_config(steps=7), random_batches, tmp_path / "j")
    evaluations = journal.of("evaluation")
    assert [line["step"] for line in evaluations] == [3, 6, 7]
    found = evaluate(session, random_batches(session.config).validation())
    assert (evaluations[-1]["loss"], evaluations[-1]["stderr"]) == (found.loss, found.stderr)
    assert len(journal.of("span")) == 3


def test_evaluation_is_the_mean_over_batches_with_its_standard_error(tiny_config, random_batches):
    session = build_session(tiny_config())
    validation = random_batches(session.config).validation()
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                session.model(batch.inputs).double().flatten(0, 1), batch.targets.flatten()
            ).item()
            for batch in validation
        ]
    mean = sum(losses) / 3
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 2 / 3)
    found = evaluate(session, validation)
    assert found.loss == pytest.approx(mean, rel=1e-6)
    assert found.stderr == pytest.approx(spread, rel=1e-4)


def test_the_same_seed_trains_bitwise_the_same(tiny_config, random_batches, tmp_path: Path):
    first = run(tiny_config(), random_batches, tmp_path / "a")[1].of("step")
    second = run(tiny_config(), random_batches, tmp_path / "b")[1].of("step")
    assert [s["loss"] for s in first] == [s["loss"] for s in second]
    other = run(tiny_config(seed=1), random_batches, tmp_path / "c")[1].of("step")
    assert [s["loss"] for s in first] != [s["loss"] for s in other]


def test_rare_logging_loses_no_step(tiny_config, random_batches, tmp_path: Path):
    often = run(tiny_config(log_every=1), random_batches, tmp_path / "a")[1].of("step")
    rarely = run(tiny_config(log_every=4), random_batches, tmp_path / "b")[1].of("step")
    assert [s["loss"] for s in often] == [s["loss"] for s in rarely]
    assert [s["learning_rate"] for s in often] == [s["learning_rate"] for s in rarely]


def test_a_loss_that_is_not_finite_ends_the_run(tiny_config, random_batches, tmp_path: Path):
    config = tiny_config(steps=50, optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=None))
    status, journal, _ = run(config, random_batches, tmp_path / "j")
    assert status == "diverged"
    assert journal.of("step")[-1]["loss"] is None
    assert len(journal.of("step")) < 50


def test_stopping_is_asked_before_each_step(tiny_config, random_batches, tmp_path: Path):
    answers = iter([False, False, True])
    status, journal, _ = run(tiny_config(), random_batches, tmp_path / "j", should_stop=lambda: next(answers))
    assert status == "interrupted"
    assert len(journal.of("step")) == 2


def test_an_intervention_acts_after_its_step(tiny_config, random_batches, tmp_path: Path):
    seen: list[int] = []

    def act(session) -> None:
        seen.append(int(next(iter(session.optimizer.state.values()))["step"]))

    run(tiny_config(), random_batches, tmp_path / "j", interventions={4: act})
    assert seen == [4]


def test_it_learns_what_can_be_learnt(tiny_config):
    class Counting:
        def __init__(self, config) -> None:
            self.config = config

        def train(self, step: int) -> Batch:
            start = torch.arange(self.config.batch_size)[:, None] + step
            return next_token_batch((start + torch.arange(self.config.model.seq_len + 1)) % 32)

        def validation(self) -> list[Batch]:
            return [self.train(0)]

    config = tiny_config(steps=150, optimizer=OptimizerConfig(learning_rate=1e-2))
    session = build_session(config)
    train(session, Counting(config), NullRecorder())
    loss = evaluate(session, Counting(config).validation()).loss
    assert loss < 0.5, "the next number is certain; ln 32 = 3.47 is where it starts"


def test_a_training_that_diverged_before_it_was_interrupted_leaves_no_checkpoint(tiny_config, random_batches, tmp_path):
    saved: list[int] = []

    class Keeping:
        def due(self, step: int) -> bool:
            return False

        def save(self, session: Session, step: int, horizon: object) -> None:
            saved.append(step)

        def close(self) -> None:
            pass

    asked = itertools.count()

    def stop() -> bool:
        return next(asked) == 4

    class Breaking(random_batches):
        def train(self, step: int) -> Batch:
            if step == 2:
                with torch.no_grad():
                    next(session.model.parameters()).fill_(math.nan)
            return super().train(step)

    config = tiny_config(steps=20, log_every=10, eval_every=20)
    session = build_session(config)
    status = train(session, Breaking(config), NullRecorder(), should_stop=stop, checkpoints=Keeping())
    assert (status, saved) == ("diverged", [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_training_matches_eager(tiny_config, random_batches, tmp_path: Path):
    base = tiny_config(steps=2)
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, num_layers=1))
    eager = run(base, random_batches, tmp_path / "a")[1].of("step")
    compiled = run(dataclasses.replace(base, compile=True), random_batches, tmp_path / "b")[1].of("step")
    for a, b in zip(eager, compiled, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_the_efftrain_optimizer_trains_as_torchs(tiny_config, random_batches, tmp_path: Path):
    theirs = run(tiny_config(), random_batches, tmp_path / "a")[1].of("step")
    config = dataclasses.replace(tiny_config(), optimizer=OptimizerConfig(name="efftrain"))
    ours = run(config, random_batches, tmp_path / "b")[1].of("step")
    assert [s["loss"] for s in theirs] == [s["loss"] for s in ours]
