"""When a training ends before its last step: a loss that stands still, one that is low enough, a spent budget."""

from collections.abc import Callable
from dataclasses import dataclass

from efftrain.record.recorder import Status
from efftrain.training.config import HorizonConfig

Spent = Callable[[], bool]
"""Whether a budget leaves no room for another step; asked where the loop waits for the device anyway."""


def never_spent() -> bool:
    """No budget."""
    return False


@dataclass
class Horizon:
    """Watches validation losses and a budget.

    Attributes:
        config: the limits.
        spent: the budget.
        best: lowest validation loss so far, nat a prediction.
        waited: evaluations since then.
    """

    config: HorizonConfig
    spent: Spent = never_spent
    best: float | None = None
    waited: int = 0

    def after_evaluation(self, loss: float) -> Status | None:
        """How training ends after an evaluation with this loss; None where it goes on."""
        target, patience = self.config.target_loss, self.config.patience
        if target is not None and loss <= target:
            return "target-reached"
        if self.best is None or loss < self.best - self.config.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return "early-stopped" if patience is not None and self.waited >= patience else None
