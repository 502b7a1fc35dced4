"""How well joules per step repeat: a steady training, cut into windows of 1, 5 and 30 s at the counter's own ticks."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_truth.counter import Bench
from benchmarks.gpu_truth.sensors import COUNTER, series_of, watched
from benchmarks.gpu_truth.verdicts import joules_per_step, scatter, windows_at_ticks
from efftrain.sensors.nvml import PERIOD_S
from efftrain.study.planning.base import STUDY_PRESETS, base
from efftrain.study.planning.request import Request
from efftrain.training.batch import Batch, next_token_batch
from efftrain.training.session import Session, build_session, train_step
from efftrain_kernels.evidence.stages import Stage

WINDOWS = 20
LENGTHS_S = (1.0, 5.0, 30.0)
DRY_LENGTHS_S = (0.1, 0.2)
DRY_WINDOWS = 4
WARMUP_S = 10.0
PIECE_S = 35.0
"""Windows of one record are cut from it alone, so each record is a little longer than the longest window."""


def run_repeat(stage: Stage) -> None:
    """Records of steady training until there are 20 windows of each length; what an earlier try recorded is kept."""
    bench = Bench(stage)
    lengths, wanted = (DRY_LENGTHS_S, DRY_WINDOWS) if stage.dry else (LENGTHS_S, WINDOWS)
    found: dict[str, list[float]] = stage.before.get("joules_per_step", {str(length): [] for length in lengths})
    session, tokens = _training(stage)
    _train(session, tokens, bench, bench.seconds(WARMUP_S))
    piece_s = 1.2 if stage.dry else PIECE_S
    piece = int(stage.before.get("pieces", 0))
    while min(map(len, found.values())) < wanted and time.monotonic() + piece_s < stage.deadline:
        piece += 1
        label = f"repeat-{piece}"
        with watched(bench.journal(label), bench.sensors, period_s=PERIOD_S if not stage.dry else 0.002):
            ends = _train(session, tokens, bench, piece_s)
        bench.keep(label)
        (bench.kept / f"{label}-steps.json").write_text(json.dumps(ends))
        _add(found, bench.journal(label), ends)
        stage.write(
            complete=min(map(len, found.values())) >= wanted, right=True, pieces=piece, joules_per_step=found,
            scatter={length: scatter(values) for length, values in found.items()},
            config=session.config.as_dict(),
        )  # fmt: skip


def _add(found: dict[str, list[float]], journal: Path, ends: list[int]) -> None:
    track = series_of(journal)[COUNTER].track
    if track is None:
        return
    for length, values in found.items():
        values.extend(joules_per_step(windows_at_ticks(track, float(length), (ends[0], ends[-1])), ends))


def _training(stage: Stage) -> tuple[Session, Batch]:
    """`small` in bf16 on one fixed batch: every step does the same work."""
    model = "nano" if stage.dry else "small"
    config = base(Request(model=model, steps=1000, device=str(stage.device)), STUDY_PRESETS["quick"]).config
    config = dataclasses.replace(config, precision="bf16", **({"threads": 1} if stage.dry else {}))
    torch.manual_seed(config.seed)
    shape = (config.batch_size * config.grad_accumulation, config.model.seq_len + 1)
    tokens = torch.randint(config.model.vocab_size, shape, device=stage.device)
    return build_session(config), next_token_batch(tokens)


def _train(session: Session, batch: Batch, bench: Bench, seconds: float) -> list[int]:
    """Train for so long; when the first step began and each ended, ns."""
    start = bench.activity.begin()
    ends = [start]
    while ends[-1] - start < seconds * 1e9:
        train_step(session, lambda: batch, _unmarked)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.monotonic_ns())
    bench.activity.end()
    return ends


def _unmarked(_: Any) -> None:
    """Phases are of no interest here."""
