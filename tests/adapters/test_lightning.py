"""The callback in a real Lightning `Trainer` on a tiny model with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from efftrain.adapters.lightning import EfftrainCallback

pytestmark = [
    pytest.mark.usefixtures("meters", "no_report"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LENGTH = 16


class Tiny(LightningModule):
    """Predicts the next of 64 tokens; keeps its losses, to be compared with the record's."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(64, 16), torch.nn.Linear(16, 64)
        self.losses: list[float] = []
        self.validated: list[float] = []
        self.fails_at, self.error = fails_at, error

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.embedding(batch[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.error is not None and len(self.losses) == self.fails_at:
            raise self.error
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(float(self.trainer.callback_metrics["val_loss"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(folder: Path, callbacks: list[Any], module: Tiny | None = None, **arguments: Any) -> tuple[Tiny, Trainer]:
    seed_everything(5, verbose=False)
    module = module or Tiny()
    data = DataLoader(list(torch.randint(0, 64, (32, LENGTH))), batch_size=4, shuffle=True)
    trainer = Trainer(
        callbacks=callbacks, max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **arguments,
    )  # fmt: skip
    trainer.fit(module, data, DataLoader(list(torch.randint(0, 64, (8, LENGTH))), batch_size=4))
    return module, trainer


def test_steps_tokens_and_losses_are_the_trainers_own(tmp_path: Path):
    callback = EfftrainCallback(out=tmp_path, device="cpu", seed=5)
    module, trainer = fit(tmp_path, [callback], val_check_interval=3)
    record = callback.record
    assert record is not None
    assert (record.run_id, record.status, record.seed) == ("Tiny", "complete", 5)
    assert record.steps == trainer.global_step == 6
    assert record.tokens == 6 * 4 * LENGTH
    assert record.loss.train == pytest.approx(module.losses, abs=0)
    assert [v.loss for v in record.loss.validation] == pytest.approx(module.validated, abs=0)
    assert [v.step for v in record.loss.validation] == [3, 6]
    assert record.parameters == 64 * 16 + 16 * 64 + 64
    assert {"data", "forward", "backward", "optimizer"} <= set(record.time.phases)
    assert record.time.spans["evaluate"].value > 0
    assert callback.run.problems == []


def test_training_is_bitwise_the_same(tmp_path: Path):
    arguments = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    callback = EfftrainCallback(out=tmp_path, device="cpu")
    (with_it, _), (without, _) = fit(tmp_path, [callback], **arguments), fit(tmp_path, [], **arguments)
    assert with_it.losses == without.losses
    for mine, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    means = [sum(with_it.losses[i : i + 2]) / 2 for i in range(0, 12, 2)]
    assert callback.record.steps == 6
    assert callback.record.tokens == 6 * 2 * 4 * LENGTH
    assert callback.record.loss.train == pytest.approx(means, rel=1e-6)  # summed in float32


@pytest.mark.parametrize(("error", "status"), [(ValueError("a bug"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_training_that_ends_early_is_reported(tmp_path: Path, error: BaseException, status: str):
    callback = EfftrainCallback("dies", out=tmp_path, device="cpu")
    with pytest.raises((ValueError, KeyboardInterrupt, SystemExit)):
        fit(tmp_path, [callback], Tiny(fails_at=2, error=error))
    assert (callback.record.status, callback.record.steps) == (status, 2)


def test_what_fails_in_the_callback_fails_no_training(tmp_path: Path):
    def broken(batch: Any) -> int:
        raise RuntimeError("no tokens today")

    callback = EfftrainCallback(out=tmp_path, device="cpu", tokens=broken)
    module, trainer = fit(tmp_path, [callback])
    assert trainer.global_step == 6
    assert callback.record.loss.train == pytest.approx(module.losses, abs=0)
    assert callback.run.problems == ["on_train_batch_start failed: no tokens today"]
