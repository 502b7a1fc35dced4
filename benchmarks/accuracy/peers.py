"""Other tools at work, each as its makers document it: `python peers.py TOOL OUT`, in their own environment.

Each is asked for the energy of all GPUs over a window, in J, without its allowance for a data centre.
"""

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from schedule import serve

Tool = tuple[Callable[[], Any], Callable[[], float | None]]
J_PER_KWH = 3.6e6


def codecarbon() -> Tool:
    """Tasks, one after the other; every setting is given, so that no file of the user's has a say."""
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", output_methods=[], tracking_mode="machine", force_cpu_power=50, force_ram_power=10,
        pue=1.0, allow_multiple_runs=True, log_level="error",
    )  # fmt: skip
    names = count()

    def end() -> float | None:
        data = tracker.stop_task()
        return None if data is None else data.gpu_energy * J_PER_KWH

    return lambda: tracker.start_task(f"window-{next(names)}"), end


def zeus() -> Tool:
    """Windows of the GPUs alone; nothing runs on a CUDA device here, so there is nothing to wait for."""
    from zeus.monitor import ZeusMonitor  # pyright: ignore[reportMissingImports]

    monitor = ZeusMonitor(cpu_indices=[])
    names = count()
    current = ""

    def begin() -> None:
        nonlocal current
        current = f"window-{next(names)}"
        monitor.begin_window(current, sync_execution=False)

    return begin, lambda: monitor.end_window(current, sync_execution=False).total_energy


def carbontracker() -> Tool:
    """Epochs, polled once a second as by default; the energy of each is known when it has ended."""
    from carbontracker import constants  # pyright: ignore[reportMissingImports]
    from carbontracker.tracker import CarbonTracker  # pyright: ignore[reportMissingImports]

    tracker = CarbonTracker(
        epochs=10**6, epochs_before_pred=0, components="gpu", ignore_errors=True, verbose=0, update_interval=1
    )

    def end() -> float:
        tracker.epoch_end()
        return float(tracker.tracker.total_energy_per_epoch()[-1]) / constants.PUE_2023 * J_PER_KWH

    return tracker.epoch_start, end


TOOLS = {tool.__name__: tool for tool in (codecarbon, zeus, carbontracker)}

if __name__ == "__main__":
    serve(TOOLS[sys.argv[1]], Path(sys.argv[2]))
