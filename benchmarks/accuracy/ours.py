"""efftrain at work: `python ours.py OUT JOURNAL` samples all GPUs into a journal while the windows go by.

A window is two times and no call into a device: its energy is taken from the journal when the run is over, as
`efftrain.measure` and every report do.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from schedule import serve

from efftrain.monitor.monitor import Monitor
from efftrain.sensors.nvml import find_gpus
from efftrain.sensors.protocol import Discovery


def main() -> None:
    """Measure until all windows are over; the share of a core that sampling took goes beside the journal."""
    out, journal = map(Path, sys.argv[1:])
    began = time.monotonic()
    with ExitStack() as stack:
        monitor = None

        def open_tool() -> tuple[Callable[[], None], Callable[[], None]]:
            nonlocal monitor
            sensors, absent = find_gpus(None)
            discovery = Discovery(sensors=list(sensors), absent=absent)
            header = {"run_id": "accuracy", "config": {}, "environment": {}}
            monitor = stack.enter_context(Monitor(journal, discovery, header))
            return lambda: None, lambda: None

        serve(open_tool, out)
        if monitor is not None:
            share = monitor.sampler_cpu_seconds / (time.monotonic() - began)
            journal.with_suffix(".cpu").write_text(str(share))


if __name__ == "__main__":
    main()
