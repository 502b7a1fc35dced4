"""Measures a Lightning `Trainer`.

```python
callback = EfftrainCallback("my-model", country="FRA")
Trainer(callbacks=[callback]).fit(model, loader)
print(callback.run)
```

Lightning tells all boundaries of a step. Its gradients are set to zero at the end of `forward`; clipping belongs to
`optimizer`. A step is an optimizer step, of several batches where gradients are accumulated. Under a strategy that
starts processes by itself, the first one measures the machine, and tokens are its own; `torchrun` gives those of all.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from efftrain.adapters.measure import OTHER, ending
from efftrain.adapters.trainers import TrainerMeasurement, first_ids, harmless, quietly
from efftrain.monitor.launch import this_rank


class EfftrainCallback(TrainerMeasurement, Callback):
    """A callback for `Trainer(callbacks=[...])`.

    Args:
        name: of the measurement; the module's class if not given.
        tokens: how many tokens a batch has; the size of its `input_ids`, or of its first tensor of whole numbers with
            two dimensions, if not given.
        validation_loss: name under which the module logs its validation loss.
        **options: as in `efftrain.measure`.
    """

    def __init__(
        self, name: str | None = None, *, tokens: Callable[[Any], int] = first_ids, validation_loss: str = "val_loss",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(name, **options)
        self._count, self._validation_loss = tokens, validation_loss
        self._steps = 0
        self._loss: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        if trainer.local_rank != 0 and this_rank().ranks < 2:
            return
        self._steps, self._loss = trainer.global_step, None
        with quietly("the measurement could not begin"):
            parameters = sum(p.numel() for p in pl_module.parameters())
            self.begin(type(pl_module).__name__, parameters=parameters, config=dict(pl_module.hparams))

    @harmless
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch has been fetched."""
        self._of_run.mark("data", from_the_start=True)
        self._of_run.mark("forward")
        self._tokens += self._count(batch)

    @harmless
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """The loss is there."""
        self._of_run.mark("backward")

    @harmless
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients are there."""
        self._of_run.mark(OTHER)

    @harmless
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """They are about to be used."""
        self._of_run.mark("optimizer")

    @harmless
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done; a step too, where the optimizer was called. Its loss is the sum of its batches' shares."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step == self._steps:
            return
        self._of_run.step(tokens=self._tokens, loss=self._loss)
        self._steps, self._tokens, self._loss = trainer.global_step, 0, None
        self.leave()

    @harmless
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        self.leave()

    @harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is over."""
        self.past("evaluate")
        loss = trainer.callback_metrics.get(self._validation_loss)
        if loss is not None:
            self._of_run.evaluation(loss=float(loss))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write record and report."""
        early = trainer.should_stop and 0 < trainer.global_step < trainer.max_steps
        self.end("early-stopped" if early else "complete")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how it ended, and write record and report."""
        self.end(*ending(exception))
