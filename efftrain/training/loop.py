"""The training loop: steps, evaluations, and what it tells the Recorder about them.

The loop never waits for the device inside a step. Losses and gradient norms stay on the device until a step that logs,
where they are read together with the phase times of all steps since the last one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from efftrain.record.recorder import Recorder, Status
from efftrain.training.batch import Batch, Batches
from efftrain.training.clock import StepClock, step_clock
from efftrain.training.config import learning_rate
from efftrain.training.evaluation import evaluate
from efftrain.training.optimizer import set_learning_rate
from efftrain.training.precision import set_matmul_precision
from efftrain.training.session import Session, StepResult, train_step

Intervention = Callable[[Session], None]
"""Changes a session between two steps: pruning, say."""


@dataclass
class _Log:
    """Steps whose losses are still on the device."""

    recorder: Recorder
    clock: StepClock
    tokens_per_step: int
    pending: list[tuple[int, float, StepResult]] = field(default_factory=list)

    def write(self) -> bool:
        """Read losses and times of the pending steps, record them, and say whether all losses are finite."""
        if not self.pending:
            return True
        times = self.clock.resolve()
        losses = torch.stack([result.loss.float() for _, _, result in self.pending]).tolist()
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
) -> Status:
    """Train for `session.config.steps` steps and evaluate on the way and at the end.

    Args:
        session: the model; trained in place.
        batches: its tokens.
        recorder: told of every step and evaluation.
        interventions: by the number of the step after which they act.
        should_stop: asked before each step.

    Returns:
        `complete`, `diverged` (a loss was not finite) or `interrupted` (`should_stop` said so).
    """
    config = session.config
    set_matmul_precision(config.precision)
    clock = step_clock(session.device)
    log = _Log(recorder, clock, config.rank_tokens_per_step)
    validation = batches.validation()
    session.model.train()
    for step in range(1, config.steps + 1):
        if should_stop():
            log.write()
            return "interrupted"
        clock.begin()
        rate = learning_rate(step, config.steps, config.optimizer)
        set_learning_rate(session.optimizer, rate)
        result = train_step(session, lambda step=step: batches.train(step), clock.mark)
        clock.end()
        log.pending.append((step, rate, result))
        last, evaluating = step == config.steps, step % config.eval_every == 0
        intervention = (interventions or {}).get(step)
        if (last or evaluating or intervention or step % config.log_every == 0) and not log.write():
            return "diverged"
        if (last or evaluating) and not _record_evaluation(session, validation, recorder, step):
            return "diverged"
        if intervention:
            intervention(session)
    return "complete"


def _record_evaluation(session: Session, validation: list[Batch], recorder: Recorder, step: int) -> bool:
    with recorder.span("evaluate"):
        found = evaluate(session, validation)
    if not math.isfinite(found.loss):
        recorder.note(f"the validation loss is not finite after step {step}")
        return False
    recorder.evaluation(
        step=step, tokens=step * session.config.rank_tokens_per_step, loss=found.loss, stderr=found.stderr,
        confusion=found.confusion,
    )  # fmt: skip
    return True
