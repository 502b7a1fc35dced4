"""The parts of a step on their own, each repeated for seconds: for steps too short for an energy sensor.

After the training has ended, its data loading, forward pass, forward with backward pass, and optimizer are repeated in
blocks, in random order, so that what drifts favours none. The weights stand still meanwhile (a learning rate of 0 costs
the same arithmetic), and weights, optimizer, loss scale, gradients and random state are afterwards what they were, bit
for bit. What the blocks did is told to the Recorder and is on no bill.
"""

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from efftrain.record.recorder import Recorder
from efftrain.training.batch import Batch, Batches
from efftrain.training.optimizer import set_learning_rate
from efftrain.training.precision.autocast import autocast
from efftrain.training.session import Session

BLOCK_S: Final = 5.0
"""Length of a block: fifty updates of a usual counter."""

ROUNDS: Final = 3
"""Blocks of each part: their scatter says how sure the figures are."""

SETTLE_S: Final = 0.5
"""The same work before a block begins, for the device's power and for a sensor that is late."""

JITTER_S: Final = 0.1
"""A block begins anywhere within this time, a usual counter's update period: where a sensor that looks only a part of
the time keeps one beat with the work, it meets another moment of it in each block, and the scatter tells."""

Part = Callable[[], None]


def measure_blocks(
    session: Session, batches: Batches, recorder: Recorder, *, should_stop: Callable[[], bool] = lambda: False,
    seconds: float = BLOCK_S, rounds: int = ROUNDS,
) -> None:  # fmt: skip
    """Repeat each part of the step in `rounds` blocks and record them.

    Args:
        session: a trained session; unchanged afterwards.
        batches: its tokens; those of the last step are used.
        recorder: told of each block.
        should_stop: asked before each block.
        seconds: length of a block at least.
        rounds: blocks of each part.
    """
    with restored(session):
        set_learning_rate(session.optimizer, 0.0)
        parts = _parts(session, batches)
        generator = random.Random(session.config.seed)
        for name in _order(list(parts), rounds, generator):
            if should_stop():
                return
            time.sleep(generator.uniform(0, JITTER_S))
            _block(name, parts[name], session.device, recorder, seconds)


@contextmanager
def restored(session: Session) -> Iterator[None]:
    """Weights, gradients, optimizer, loss scale and random state are afterwards what they were before, bit for bit."""
    tensors = [t for t in (*session.model.parameters(), *session.model.buffers())]
    kept = [tensor.detach().clone() for tensor in tensors]
    gradients = {p: p.grad for p in session.model.parameters()}
    state = {p: _copied(values) for p, values in session.optimizer.state.items()}
    groups = [{k: copy.copy(v) for k, v in group.items() if k != "params"} for group in session.optimizer.param_groups]
    scale = copy.deepcopy(session.scaler.state_dict()) if session.scaler else None
    cuda = [session.device] if session.device.type == "cuda" else []
    for parameter in gradients:
        parameter.grad = None
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)
                for parameter, values in state.items():
                    _put_back(session.optimizer.state[parameter], values)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            for group, values in zip(session.optimizer.param_groups, groups, strict=True):
                group.update(values)
            if session.scaler and scale:
                session.scaler.load_state_dict(scale)


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, Tensor) else copy.copy(v) for name, v in values.items()}


def _put_back(state: dict[str, Any], values: dict[str, Any]) -> None:
    """In place, because an optimizer may keep lists of its state's tensors."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            state[name].copy_(value)
        else:
            state[name] = value


def _parts(session: Session, batches: Batches) -> dict[str, Part]:
    """What each block repeats: one step's worth of it."""
    config = session.config
    batch = batches.train(config.steps)
    micros = batch.chunk(config.grad_accumulation)

    def objective(micro: Batch) -> Tensor:
        with autocast(config.precision, session.device):
            return session.objective(session.forward, micro).objective / batch.predictions

    def forward() -> None:
        for micro in micros:
            objective(micro)

    def forward_backward() -> None:
        for parameter in session.model.parameters():
            parameter.grad = None
        for micro in micros:
            loss = objective(micro)
            (session.scaler.scale(loss) if session.scaler else loss).backward()

    def optimizer() -> None:
        if config.optimizer.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(session.model.parameters(), config.optimizer.max_grad_norm)
        session.optimizer.step()

    session.model.train()
    forward_backward()  # gradients for the optimizer's blocks
    return {
        "data": lambda: _fetch(batches, config.steps),
        "forward": forward,
        "forward+backward": forward_backward,
        "optimizer": optimizer,
    }


def _fetch(batches: Batches, step: int) -> None:
    batches.train(step)


def _order(names: list[str], rounds: int, generator: random.Random) -> list[str]:
    """Every name once a round, each round in an order of its own."""
    return [name for _ in range(rounds) for name in generator.sample(names, len(names))]


def _block(name: str, part: Part, device: torch.device, recorder: Recorder, seconds: float) -> None:
    """One block; it waits for the device once a second at most, so that the device is as busy as in training."""
    once = _settle(part, device, min(SETTLE_S, seconds))
    start, repetitions = time.monotonic_ns(), 0
    while (left := seconds - (time.monotonic_ns() - start) / 1e9) > 0:
        chunk = max(1, round(min(left, 1.0) / once))
        for _ in range(chunk):
            part()
        _wait(device)
        repetitions += chunk
    recorder.block(name=name, repetitions=repetitions, t=start, t_end=time.monotonic_ns())


def _settle(part: Part, device: torch.device, seconds: float) -> float:
    """Do the work for a while; s that it takes once."""
    part()
    _wait(device)
    start, done = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < seconds or not done:
        part()
        _wait(device)
        done += 1
    return max(elapsed, 1e-6) / done


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
