"""The callback in a real `transformers.Trainer` on a tiny model with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from efftrain.adapters.huggingface import EfftrainCallback

pytestmark = [
    pytest.mark.usefixtures("meters", "no_report"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LENGTH = 16


def train(folder: Path, callbacks: list[Any] | None = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=LENGTH, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    texts = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (32, LENGTH))]
    settings: dict[str, Any] = {
        "output_dir": str(folder / "tiny"), "per_device_train_batch_size": 4, "max_steps": 6, "logging_steps": 1,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 11,
    }  # fmt: skip
    trainer = Trainer(
        model=model, args=TrainingArguments(**{**settings, **arguments}), train_dataset=texts,
        eval_dataset=texts[:8], callbacks=callbacks,
    )  # fmt: skip
    trainer.train()
    return trainer


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_steps_tokens_and_losses_are_the_trainers_own(tmp_path: Path):
    callback = EfftrainCallback(out=tmp_path, device="cpu", country="FRA")
    trainer = train(tmp_path, [callback], eval_strategy="steps", eval_steps=3, include_num_input_tokens_seen="all")
    record = callback.record
    assert record is not None
    assert (record.run_id, record.status, record.seed) == ("tiny", "complete", 11)
    assert record.steps == trainer.state.global_step == 6
    assert record.tokens == trainer.state.num_input_tokens_seen == 6 * 4 * LENGTH
    assert record.loss.train == logged(trainer, "loss")
    assert [v.loss for v in record.loss.validation] == logged(trainer, "eval_loss")
    assert [(v.step, v.tokens) for v in record.loss.validation] == [(3, 192), (6, 384)]
    assert record.parameters == sum(p.numel() for p in trainer.model.parameters())
    assert record.config["per_device_train_batch_size"] == 4
    assert list(record.time.phases)[:4] == ["data", "forward", "backward", "optimizer"]
    assert all(q.value > 0 for q in record.time.phases.values())
    assert record.time.spans["evaluate"].value > 0
    assert callback.run.problems == []


def test_training_is_bitwise_the_same(tmp_path: Path):
    arguments = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    callback = EfftrainCallback(out=tmp_path, device="cpu")
    with_it, without = train(tmp_path, [callback], **arguments), train(tmp_path, **arguments)
    assert logged(with_it, "loss") == logged(without, "loss")
    for mine, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not with_it.model._forward_hooks
    assert not with_it.model._forward_pre_hooks
    assert callback.record.tokens == 6 * 2 * 4 * LENGTH
    assert callback.record.steps == 6


def test_losses_of_steps_that_were_not_logged_are_unknown(tmp_path: Path):
    callback = EfftrainCallback("named", out=tmp_path, device="cpu")
    trainer = train(tmp_path, [callback], logging_steps=3, save_strategy="steps", save_steps=4)
    losses = logged(trainer, "loss")
    assert callback.record.run_id == "named"
    assert callback.record.loss.train == [None, None, losses[0], None, None, losses[1]]
    assert callback.record.time.spans["checkpoint"].value > 0


def test_a_training_that_raises_is_reported_when_the_next_begins(tmp_path: Path):
    class Fatal(EfftrainCallback):
        def on_step_end(self, args: Any, state: Any, *rest: Any, **more: Any) -> None:
            super().on_step_end(args, state, *rest, **more)
            if state.global_step == 3:
                raise ValueError("a bug of the user's")

    callback = Fatal("fatal", out=tmp_path, device="cpu")
    with pytest.raises(ValueError, match="bug of the user"):
        train(tmp_path, [callback])
    callback._abandon()  # as the interpreter's exit does
    assert (callback.record.status, callback.record.steps) == ("failed", 3)


def test_what_fails_in_a_hook_fails_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from efftrain.adapters import huggingface

    def broken(*_: Any) -> int:
        raise RuntimeError("no tokens today")

    callback = EfftrainCallback(out=tmp_path, device="cpu")
    monkeypatch.setattr(huggingface, "first_ids", broken)
    trainer = train(tmp_path, [callback])
    assert trainer.state.global_step == 6
    assert callback.record.loss.train == logged(trainer, "loss")
    assert callback.run.problems == ["a hook on the model failed: no tokens today"]


def test_a_wrong_argument_is_said_before_the_training():
    with pytest.raises(ValueError, match="FRX"):
        EfftrainCallback(country="FRX")
