"""What the training loop costs: tokens per second of efftrain's loop against a bare loop of the same model.

Run with `python benchmarks/throughput.py`. Both train the same session in the same process, in alternation; efftrain's
loop writes its journal, the bare loop does nothing but train. Ratios of tokens per second with a 95 % interval.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from blocks import compare, train_block, workload

from efftrain.record.journal import SCHEMA, JournalWriter
from efftrain.record.recorder import JournalRecorder
from efftrain.training.batch import Batches
from efftrain.training.session import Session


def bare_loop(session: Session, batches: Batches) -> float:
    """The shortest loop that trains this model: batch, forward, backward, clip, update; seconds a step."""
    model, optimizer, config = session.model, session.optimizer, session.config
    began = time.perf_counter()
    for step in range(1, config.steps + 1):
        batch = batches.train(step)
        F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / config.steps


def main() -> None:
    """Measure, and print one line for a reader and one in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=8, help="steps in a block")
    parser.add_argument("--pairs", type=int, default=80, help="pairs of blocks")
    arguments = parser.parse_args()
    session, batches = workload(arguments.model, arguments.steps)
    tokens = session.config.tokens_per_step
    with tempfile.TemporaryDirectory() as folder:
        journal = JournalWriter(Path(folder) / "journal.jsonl")
        journal.write("header", schema=SCHEMA)
        recorder = JournalRecorder(journal)
        # Seconds a step of the bare loop over efftrain's are tokens per second of efftrain's over the bare loop's.
        ratio, bare, ours = compare(
            lambda: bare_loop(session, batches), lambda: train_block(session, batches, recorder), arguments.pairs
        )
        journal.close()
    print(
        f"tokens per second of efftrain's loop over a bare loop: {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
        f" ({ratio.pairs} pairs of {arguments.steps} steps);"
        f" medians {tokens / sorted(ours)[len(ours) // 2]:,.0f} and {tokens / sorted(bare)[len(bare) // 2]:,.0f}"
    )
    print(
        json.dumps(
            {
                "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "pairs": ratio.pairs,
                "step_s_efftrain": ours, "step_s_bare": bare,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
