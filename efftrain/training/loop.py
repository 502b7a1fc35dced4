"""The training loop: steps, evaluations, and what it tells the Recorder about them.

The loop never waits for the device inside a step. Losses and gradient norms stay on the device until a step that logs,
where they are read together with the phase times of all steps since the last one. There, too, ranks agree on whether to
go on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from efftrain.record.recorder import Recorder, Status
from efftrain.training.batch import Batch, Batches
from efftrain.training.clock import StepClock, step_clock
from efftrain.training.config import learning_rate
from efftrain.training.evaluation import evaluate
from efftrain.training.horizon import Horizon
from efftrain.training.optimizer import set_learning_rate
from efftrain.training.precision.autocast import set_matmul_precision
from efftrain.training.ranks import Ranks
from efftrain.training.session import Session, StepResult, train_step

Intervention = Callable[[Session], None]
"""Changes a session between two steps: pruning, say."""


class Checkpoints(Protocol):
    """Where a training is kept, so that it can be resumed."""

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be kept."""
        ...

    def save(self, session: Session, step: int, horizon: Horizon) -> None:
        """Keep the state after `step`; what cannot be written is a note, and training goes on."""
        ...

    def close(self) -> None:
        """Wait for what is still being written."""
        ...


class NoCheckpoints:
    """For a training that nobody resumes."""

    def due(self, step: int) -> bool:
        """See `Checkpoints.due`."""
        return False

    def save(self, session: Session, step: int, horizon: Horizon) -> None:
        """See `Checkpoints.save`."""

    def close(self) -> None:
        """See `Checkpoints.close`."""


@dataclass
class _Log:
    """Steps whose losses are still on the device."""

    recorder: Recorder
    clock: StepClock
    tokens_per_step: int
    ranks: Ranks
    pending: list[tuple[int, float, StepResult]] = field(default_factory=list)

    def write(self) -> bool:
        """Read losses and times of the pending steps, record them, and say whether all losses are finite."""
        if not self.pending:
            return True
        times = self.clock.resolve()
        losses = self.ranks.total(torch.stack([result.loss.float() for _, _, result in self.pending])).tolist()
        norms = [None if result.grad_norm is None else result.grad_norm.item() for _, _, result in self.pending]
        for (step, rate, result), when, loss, norm in zip(self.pending, times, losses, norms, strict=True):
            if result.scaled and norm is not None and not math.isfinite(norm):
                self.recorder.note(f"step {step} was skipped: its scaled gradients overflowed")
            self.recorder.step(
                step=step, tokens=self.tokens_per_step, t=when.start, t_end=when.end, phases=when.phases,
                loss=loss if math.isfinite(loss) else None, learning_rate=rate,
                grad_norm=norm if norm is None or math.isfinite(norm) else None,
            )  # fmt: skip
        bad = [step for (step, _, _), loss in zip(self.pending, losses, strict=True) if not math.isfinite(loss)]
        if bad:
            self.recorder.note(f"the training loss is not finite in step {bad[0]}")
        self.pending.clear()
        return not bad


def train(
    session: Session,
    batches: Batches,
    recorder: Recorder,
    *,
    interventions: Mapping[int, Intervention] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    horizon: Horizon | None = None,
    checkpoints: Checkpoints | None = None,
    first_step: int = 1,
) -> Status:
    """Train up to step `session.config.steps` and evaluate on the way and at the end.

    Args:
        session: the model; trained in place.
        batches: its sequences.
        recorder: told of every step and evaluation.
        interventions: by the number of the step after which they act.
        should_stop: asked before each step, or where ranks agree.
        horizon: what may end the training before its last step; the configuration's by default.
        checkpoints: where the state is kept on the way.
        first_step: of a training that is resumed.

    Returns:
        `complete`, what `horizon` says, `diverged` (a loss was not finite) or `interrupted` (`should_stop` said so).
    """
    loop = _Loop(
        session, batches, recorder, interventions=interventions or {}, horizon=horizon,
        checkpoints=checkpoints or NoCheckpoints(),
    )  # fmt: skip
    session.model.train()
    set_matmul_precision(session.config.precision)
    try:
        for step in range(first_step, session.config.steps + 1):
            if loop.agrees(step) and session.ranks.any(should_stop()):
                return loop.interrupt(step - 1)
            ended = loop.step(step)
            if ended:
                return ended
    finally:
        loop.checkpoints.close()
    return "complete"


class _Loop:
    def __init__(
        self, session: Session, batches: Batches, recorder: Recorder, *, interventions: Mapping[int, Intervention],
        horizon: Horizon | None, checkpoints: Checkpoints,
    ) -> None:  # fmt: skip
        self.session, self.batches, self.recorder, self.interventions = session, batches, recorder, interventions
        self.horizon, self.checkpoints = horizon or Horizon(session.config.horizon), checkpoints
        self.validation = batches.validation()
        self.clock = step_clock(session.device)
        self.log = _Log(recorder, self.clock, session.config.rank_tokens_per_step, session.ranks)

    def agrees(self, step: int) -> bool:
        """Whether ranks ask each other before this step; a process alone asks itself before each."""
        return self.session.ranks.size == 1 or (step - 1) % self.session.config.log_every == 0

    def interrupt(self, done: int) -> Status:
        if not self.log.write():
            return "diverged"  # and what is lost is not to be resumed
        if done and not isinstance(self.checkpoints, NoCheckpoints):
            self.checkpoints.save(self.session, done, self.horizon)
        return "interrupted"

    def step(self, step: int) -> Status | None:
        """One step and what follows it; how training ends there, or None."""
        session, config = self.session, self.session.config
        self.clock.begin()
        rate = learning_rate(step, config.steps, config.optimizer)
        set_learning_rate(session.optimizer, rate)
        result = train_step(session, lambda: self.batches.train(step), self.clock.mark)
        self.clock.end()
        self.log.pending.append((step, rate, result))
        last, evaluating = step == config.steps, step % config.eval_every == 0
        intervention, keeping = self.interventions.get(step), self.checkpoints.due(step)
        if not (last or evaluating or intervention or keeping or step % config.log_every == 0):
            return None
        if not self.log.write():
            return "diverged"
        spent = session.ranks.any(self.horizon.spent())
        return self._after(step, intervention, evaluating=last or evaluating or spent, keeping=keeping, spent=spent)

    def _after(
        self, step: int, intervention: Intervention | None, *, evaluating: bool, keeping: bool, spent: bool
    ) -> Status | None:
        ended: Status | None = None
        if evaluating:
            loss = _record_evaluation(self.session, self.validation, self.recorder, step)
            if loss is None:
                return "diverged"
            ended = self.horizon.after_evaluation(loss)
        if intervention:
            intervention(self.session)
        ended = ended or ("budget-spent" if spent and step < self.session.config.steps else None)
        if keeping or (ended and not isinstance(self.checkpoints, NoCheckpoints)):
            self.checkpoints.save(self.session, step, self.horizon)
        return ended


def _record_evaluation(session: Session, validation: list[Batch], recorder: Recorder, step: int) -> float | None:
    """Evaluate and record it; the loss, or None where it is not finite."""
    with recorder.span("evaluate"):
        found = evaluate(session, validation)
    if not math.isfinite(found.loss):
        recorder.note(f"the validation loss is not finite after step {step}")
        return None
    recorder.evaluation(
        step=step, tokens=step * session.config.rank_tokens_per_step, loss=found.loss, stderr=found.stderr,
        batches=found.batches, confusion=found.confusion,
    )  # fmt: skip
    return found.loss
