"""What measuring costs: training with the sampler and the journal, against training without, in alternation.

Run with `python benchmarks/overhead.py`. It prints the paired ratio of step times with its 95 % interval, and the CPU
time of the sampler's thread as a share of one core.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from blocks import compare, train_block, workload

from efftrain.monitor.machine import environment, find_sensors
from efftrain.monitor.monitor import Monitor
from efftrain.record.recorder import NullRecorder


def main() -> None:
    """Measure, and print one line for a reader and one in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=8, help="steps in a block")
    parser.add_argument("--pairs", type=int, default=80, help="pairs of blocks")
    arguments = parser.parse_args()
    session, batches = workload(arguments.model, arguments.steps)
    device = session.config.device
    sampler, watched = 0.0, 0.0

    with tempfile.TemporaryDirectory() as folder:
        journals = iter(range(arguments.pairs))

        def measured() -> float:
            nonlocal sampler, watched
            path = Path(folder) / f"{next(journals)}.jsonl"
            header = {"run_id": "overhead", "config": session.config.as_dict(), "environment": environment(device)}
            began = time.perf_counter()
            with Monitor(path, find_sensors(device), header) as monitor:
                seconds = train_block(session, batches, monitor.recorder)
            watched += time.perf_counter() - began
            sampler += monitor.sampler_cpu_seconds
            return seconds

        ratio, ours, theirs = compare(measured, lambda: train_block(session, batches, NullRecorder()), arguments.pairs)
    print(
        f"step time with the profiler over without: {ratio.ratio:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"
        f" ({ratio.pairs} pairs of {arguments.steps} steps); sampler {sampler / watched:.2%} of one core"
    )
    print(
        json.dumps(
            {
                "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "pairs": ratio.pairs,
                "step_s_with": ours, "step_s_without": theirs, "sampler_core_share": sampler / watched,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
