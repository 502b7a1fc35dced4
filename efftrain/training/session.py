"""What one training holds while it runs, and the one step that it repeats.

The step is a function apart from the loop, because the same step is also run on fake tensors to count its FLOPs, and
under torch's profiler to measure its memory: what is counted is what is trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.record.recorder import Phase
from efftrain.training.config import RunConfig
from efftrain.training.optimizer import build_optimizer
from efftrain.training.precision import autocast, loss_scaler
from efftrain.training.recompute import apply_recompute
from efftrain.workload.models.transformer import Transformer, initialise

Forward = Callable[[Tensor], Tensor]
"""Token ids [B, T] -> logits [B, T, V]."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over the tokens of one micro-batch, in nat: what is minimised, and the data's cross-entropy in it."""

    objective: Tensor
    data: Tensor


Objective = Callable[[Forward, Tensor, Tensor], Losses]
"""(forward, inputs [B, T], targets [B, T]) -> losses."""

Mark = Callable[[Phase], None]
"""Called where a phase of a step begins."""


def cross_entropy_sum(logits_btv: Tensor, targets_bt: Tensor) -> Tensor:
    """Cross-entropy in nat, summed over tokens, in float32 or wider."""
    logits = logits_btv.flatten(0, 1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets_bt.flatten(), reduction="sum")


def next_token_objective(forward: Forward, inputs_bt: Tensor, targets_bt: Tensor) -> Losses:
    """Causal language modelling: the cross-entropy of the next token."""
    loss = cross_entropy_sum(forward(inputs_bt), targets_bt)
    return Losses(objective=loss, data=loss.detach())


@dataclass
class Session:
    """A model in training. `model` and `optimizer` may be replaced on the way: pruning does."""

    config: RunConfig
    model: Transformer
    optimizer: torch.optim.Optimizer
    objective: Objective = next_token_objective
    scaler: torch.amp.GradScaler | None = None
    forward: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.use_model(self.model, self.optimizer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def use_model(self, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
        """Train `model` with `optimizer` from here on, compiled if the configuration says so."""
        self.model, self.optimizer = model, optimizer
        apply_recompute(model, self.config.recompute)
        self.forward = torch.compile(model) if self.config.compile else model


def build_session(config: RunConfig, *, objective: Objective = next_token_objective) -> Session:
    """A fresh model from the configuration's seed, on its device, with its optimizer."""
    device = torch.device(config.device)
    with device:
        model = Transformer(config.model)
    initialise(model, config.seed)
    return Session(
        config=config,
        model=model,
        optimizer=build_optimizer(model, config.optimizer),
        objective=objective,
        scaler=loss_scaler(config.precision, device),
    )


@dataclass(frozen=True, slots=True)
class StepResult:
    """Mean data loss of a step in nat/token and the gradient's norm before clipping; still on the device.

    `scaled` says that the loss was scaled, so that a step whose gradients overflow is skipped.
    """

    loss: Tensor
    grad_norm: Tensor | None
    scaled: bool


def train_step(session: Session, fetch: Callable[[], Tensor], mark: Mark) -> StepResult:
    """One optimizer step over all micro-batches; nothing in it waits for the device, except fp16's loss scaler.

    Args:
        session: the model in training.
        fetch: yields the step's token ids [B · micro-batches, T + 1] on the session's device.
        mark: told where phases begin.

    Returns:
        The loss, normalised by the tokens of the whole step so that micro-batches add up to one batch.
    """
    config = session.config
    mark("data")
    tokens = fetch()
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    data_loss = torch.zeros((), device=tokens.device)
    for micro in tokens.chunk(config.grad_accumulation):
        mark("forward")
        with autocast(config.precision, tokens.device):
            losses = session.objective(session.forward, micro[:, :-1], micro[:, 1:])
        mark("backward")
        loss = losses.objective / count
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
        grad_norm = torch.nn.utils.clip_grad_norm_(session.model.parameters(), limit)
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
