"""What one training holds while it runs, and the one step that it repeats.

The step is a function apart from the loop, because the same step is also run on fake tensors to count its FLOPs, and
under torch's profiler to measure its memory: what is counted is what is trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from efftrain.record.recorder import Phase
from efftrain.training.batch import Batch
from efftrain.training.config import RunConfig
from efftrain.training.lora import apply_lora
from efftrain.training.objectives import Forward, Objective, data_objective
from efftrain.training.optimizer import build_optimizer
from efftrain.training.precision.autocast import autocast, loss_scaler, prepare_precision
from efftrain.training.ranks import Alone, Ranks
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.build import Model, build_model

Mark = Callable[[Phase], None]
"""Called where a phase of a step begins."""


@dataclass
class Session:
    """A model in training. `model` and `optimizer` may be replaced on the way: pruning does."""

    config: RunConfig
    model: Model
    optimizer: torch.optim.Optimizer
    objective: Objective = data_objective
    scaler: torch.amp.GradScaler | None = None
    ranks: Ranks = field(default_factory=Alone)
    forward: Forward = field(init=False)
    synchronise: Callable[[bool], object] = lambda _: None
    """Told before each micro-batch whether gradients of all ranks are to be brought together after it."""

    def __post_init__(self) -> None:
        self.use_model(self.model, self.optimizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def use_model(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
        """Train `model` with `optimizer` from here on, compiled if the configuration says so."""
        self.model, self.optimizer = model, optimizer
        apply_recompute(model, self.config.recompute)
        self.forward = torch.compile(model) if self.config.compile else model


def build_session(
    config: RunConfig, *, objective: Objective = data_objective, start: Callable[[Model], None] | None = None
) -> Session:
    """A fresh model from the configuration's seed, on its device, with its adapters and its optimizer.

    Args:
        config: of the run.
        objective: what it minimises.
        start: fills the model with the weights that it begins with; None: those of its seed.
    """
    device = torch.device(config.device)
    model = build_model(config.model, device, seed=config.seed)
    if start:
        start(model)
    if config.lora:
        apply_lora(model, config.lora, config.seed)
    prepare_precision(model, config.precision)
    return Session(
        config=config,
        model=model,
        optimizer=build_optimizer(model, config.optimizer, config.precision),
        objective=objective,
        scaler=loss_scaler(config.precision, device),
    )


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step's mean data loss in nat a prediction, and its gradient's norm before clipping; still on the device.

    The loss is this rank's share of it: the sum over ranks is the mean over all predictions. `scaled` says that the
    loss was scaled, so that a step whose gradients overflow is skipped.
    """

    loss: Tensor
    grad_norm: Tensor | None
    scaled: bool


def train_step(session: Session, fetch: Callable[[], Batch], mark: Mark) -> StepResult:
    """One optimizer step over all micro-batches; nothing in it waits for the device, except fp16's loss scaler.

    Args:
        session: the model in training.
        fetch: yields the step's sequences, those of all micro-batches, on the session's device.
        mark: told where phases begin.

    Returns:
        The loss, normalised by the predictions of the whole step so that micro-batches add up to one batch.
    """
    config = session.config
    mark("data")
    batch = fetch()
    count, device = batch.predictions * session.ranks.size, batch.inputs.device
    data_loss = torch.zeros((), device=device)
    micros = batch.chunk(config.grad_accumulation)
    for number, micro in enumerate(micros, start=1):
        session.synchronise(number == len(micros))
        mark("forward")
        with autocast(config.precision, device):
            losses = session.objective(session.forward, micro)
        mark("backward")
        loss = losses.objective / batch.predictions  # gradients are averaged over ranks
        (session.scaler.scale(loss) if session.scaler else loss).backward()
        data_loss = data_loss + losses.data
    mark("optimizer")
    grad_norm = _update(session)
    return StepResult(loss=data_loss / count, grad_norm=grad_norm, scaled=session.scaler is not None)


def _update(session: Session) -> Tensor | None:
    limit, scaler, grad_norm = session.config.optimizer.max_grad_norm, session.scaler, None
    if limit is not None:
        if scaler:
            scaler.unscale_(session.optimizer)
        grad_norm = session.ranks.whole(torch.nn.utils.clip_grad_norm_(session.model.parameters(), limit))
    if scaler:
        scaler.step(session.optimizer)
        scaler.update()
    else:
        session.optimizer.step()
    session.optimizer.zero_grad(set_to_none=True)
    return grad_norm


@contextmanager
def preserved(session: Session) -> Iterator[None]:
    """Weights, optimizer, loss scale and random state are afterwards what they were before: for warming up.

    The session must not have trained yet: the optimizer's state is emptied.
    """
    # Kept in host memory: a second set of weights on the device would raise the peak that is measured meanwhile.
    weights = {name: value.to("cpu", copy=True) for name, value in session.model.state_dict().items()}
    scale = session.scaler.state_dict() if session.scaler else None
    cuda = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield
    session.model.load_state_dict(weights)
    session.optimizer.zero_grad(set_to_none=True)
    session.optimizer.state.clear()
    if session.scaler and scale:
        session.scaler.load_state_dict(scale)
