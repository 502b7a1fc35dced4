"""Blocks of training steps that are timed in alternation: what both benchmarks of the loop have in common.

Two ways of training the same model on the same tokens take turns, the order within each pair is drawn at random, and
what is reported is the geometric mean of the paired ratios with its interval: a machine whose speed drifts slows both.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch

from efftrain.comparison.statistics import Estimate, paired_ratio
from efftrain.record.recorder import NullRecorder, Recorder
from efftrain.study.planning.base import STUDY_PRESETS, base
from efftrain.study.planning.request import Request
from efftrain.study.running.batches import corpus_batches
from efftrain.training.batch import Batches
from efftrain.training.loop import train
from efftrain.training.session import Session, build_session
from efftrain.workload.text.config import TextConfig
from efftrain.workload.text.corpus import prepare

Block = Callable[[], float]
"""Trains some steps and returns the seconds of one."""


def workload(model: str, steps: int) -> tuple[Session, Batches]:
    """A warm session of the baseline on the default text, `steps` steps a block."""
    config = base(Request(model=model, steps=steps), STUDY_PRESETS["quick"]).config
    config = dataclasses.replace(config, eval_every=steps, eval_batches=1)
    torch.set_num_threads(config.threads)
    session = build_session(config)
    batches = corpus_batches(prepare(TextConfig(), config.model.vocab_size), config)
    train_block(session, batches, NullRecorder())
    return session, batches


def train_block(session: Session, batches: Batches, recorder: Recorder) -> float:
    """Train one block in efftrain's loop; seconds a step, from the first step's start to the last one's end."""
    watched = _Bounds(recorder)
    train(session, batches, watched)
    return (watched.last_ns - watched.first_ns) / session.config.steps / 1e9


def compare(ours: Block, theirs: Block, pairs: int) -> tuple[Estimate, list[float], list[float]]:
    """Ratio of seconds a step, ours to theirs, over `pairs` pairs in random order; and the seconds themselves."""
    order = random.Random(0)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(pairs):
        for mine in order.sample([True, False], 2):
            seconds[mine].append((ours if mine else theirs)())
    return paired_ratio(seconds[True], seconds[False]), seconds[True], seconds[False]


class _Bounds(NullRecorder):
    """Passes steps on and keeps when the first one began and the last one ended."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self.first_ns, self.last_ns = recorder, 0, 0

    def step(self, **fields: Any) -> None:
        self.first_ns = self.first_ns or fields["t"]
        self.last_ns = fields["t_end"]
        self._recorder.step(**fields)
