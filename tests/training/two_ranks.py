"""One of two ranks that train small models together over gloo, and what they train.

Each case is trained by both ranks here and by one process in the test, on the same sequences.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import FileStore, PrefixStore
from torch.distributed.tensor import DTensor

from efftrain.record.recorder import NullRecorder
from efftrain.training.batch import Batch
from efftrain.training.config import LoraConfig, OptimizerConfig, Parallel, RunConfig
from efftrain.training.distributed import Group, joined, share, whole_state
from efftrain.training.evaluation import Evaluation, evaluate
from efftrain.training.loop import train
from efftrain.training.session import build_session, preserved, train_step
from efftrain.workload.models.presets import ModelConfig
from efftrain.workload.text.batches.masking import IGNORED

TINY = ModelConfig(
    d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24, vocab_size=32, seq_len=8,
)  # fmt: skip
CLIPPED = OptimizerConfig(max_grad_norm=0.3)
EXACT: dict[str, RunConfig] = {
    name: RunConfig(model=TINY, steps=4, batch_size=2, optimizer=CLIPPED, **changes)
    for name, changes in {
        "plain": {},
        "accumulated": {"grad_accumulation": 3},
        "recomputed": {"recompute": "full", "grad_accumulation": 2},
    }.items()
}
"""Trained in float64."""
ROUNDED: dict[str, RunConfig] = {
    name: RunConfig(**{"model": TINY, "steps": 4, "batch_size": 4, **changes})  # pyright: ignore[reportArgumentType]
    for name, changes in {
        "efftrain": {"optimizer": OptimizerConfig(name="efftrain", max_grad_norm=0.3)},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "fp16"},
        "lora": {"lora": LoraConfig(rank=2)},
        "tied": {"model": dataclasses.replace(TINY, tied_embeddings=True), "recompute": "selective"},
        "pure-bf16": {"precision": "pure-bf16", "grad_accumulation": 2},
    }.items()
}
"""Trained as the configuration says."""


@dataclass
class Outcome:
    """What a training left: (loss, gradient norm) of each step, weights, and its evaluation."""

    steps: list[tuple[float, float]]
    weights: dict[str, torch.Tensor]
    evaluation: Evaluation


class Slices:
    """A rank's share of random sequences, of which some tokens are to be predicted, alike many in each."""

    def __init__(self, config: RunConfig, rank: int, size: int, predicted: int = 5) -> None:
        self.rows = config.batch_size * config.grad_accumulation
        self.rank, self.size, self.predicted = rank, size, predicted

    def train(self, step: int) -> Batch:
        return self._slice(self._random(step, self.rows * self.size), self.rank * self.rows, self.rows)

    def validation(self) -> list[Batch]:
        return [self._slice(self._random(100 + i, 4), 0, 4 if i < 4 else 3) for i in range(5)]

    def _slice(self, batch: Batch, start: int, rows: int) -> Batch:
        chosen = slice(start, start + rows)
        return dataclasses.replace(batch, inputs=batch.inputs[chosen], targets=batch.targets[chosen])

    def _random(self, seed: int, rows: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(32, (rows, TINY.seq_len), generator=generator)
        order = torch.rand(rows, TINY.seq_len, generator=generator).argsort(dim=1)
        targets = torch.where(order < self.predicted, tokens.roll(1, dims=1), IGNORED)
        return Batch(inputs=tokens, targets=targets, per_sequence=self.predicted)


class Kept(NullRecorder):
    """Keeps what a training tells of its steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def step(self, **fields: Any) -> None:
        self.steps.append((fields["loss"], fields["grad_norm"]))


def trained(config: RunConfig, *, double: bool, ranks: Any = None) -> Outcome:
    session = build_session(config)
    if double:
        session.model.double()
    rank, size = (0, 2) if ranks is None else (ranks.rank, ranks.size)
    if ranks is not None:
        share(session, ranks)
    batches = Slices(config, rank, size)
    with preserved(session):  # as a run warms up
        train_step(session, lambda: batches.train(9), lambda _: None)
    recorder = Kept()
    if ranks is None:  # the sequences of both ranks
        batches.rows, batches.size = batches.rows * 2, 1
    assert train(session, batches, recorder) == "complete"
    return Outcome(recorder.steps, whole_state(session.model, session.ranks), evaluate(session, batches.validation()))


def overflowed(parallel: Parallel, ranks: Group) -> tuple[bool, float]:
    """Whether a step in which a gradient of the second rank is infinite changed a weight, and the scale after it."""
    config = dataclasses.replace(ROUNDED["fp16"], ranks=2, parallel=parallel)
    session, batches = build_session(config), Slices(config, ranks.rank, ranks.size)
    share(session, ranks)
    before = whole_state(session.model, ranks)
    assert session.scaler is not None
    unscale = session.scaler.unscale_

    def poisoned(optimizer: torch.optim.Optimizer) -> None:
        gradient = next(session.model.parameters()).grad
        assert gradient is not None
        if parallel == "ddp" or ranks.rank == 1:  # averaged over ranks, it is infinite on all of them
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).fill_(torch.inf)
        unscale(optimizer)

    session.scaler.unscale_ = poisoned
    train_step(session, lambda: batches.train(1), lambda _: None)
    after = whole_state(session.model, ranks)
    return any(not torch.equal(before[name], after[name]) for name in before), session.scaler.get_scale()


def main() -> None:
    """Be the rank that the command line says: its number, the file of the store, the file for what it found."""
    rank, store, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    shared = FileStore(store, 2)
    with joined(PrefixStore("a", shared), rank=rank, size=2, device=torch.device("cpu"), timeout_s=60) as group:
        for name, config in {**EXACT, **ROUNDED}.items():
            for parallel in ("ddp", "fsdp"):
                several = dataclasses.replace(config, ranks=2, parallel=parallel)
                found[f"{name}-{parallel}"] = trained(several, double=name in EXACT, ranks=group)
        found["overflow"] = [overflowed(parallel, group) for parallel in ("ddp", "fsdp")]
        found["any"] = [group.any(rank == asking) for asking in (0, 1, 2)]
        found["total"] = group.total(torch.tensor([rank + 1.0]))
    with joined(PrefixStore("b", shared), rank=rank, size=2, device=torch.device("cpu"), timeout_s=60) as group:
        found["again"] = group.total(torch.ones(1))  # a second run on the same store
    torch.save(found, out)
