"""What it costs to watch eight boards."""

import contextlib
import time
from pathlib import Path

from efftrain.monitor.sampler import Sampler
from efftrain.record.journal import JournalWriter
from efftrain.sensors.nvml import find_gpus
from nvml_driver import Device, World, square

SECONDS = 4.0


def test_eight_boards_cost_at_most_2_percent_of_a_core(tmp_path: Path, monkeypatch):
    """The thread's own CPU time, which other work on the machine does not add to."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    world = World([Device(square(0.4 + 0.03 * i, 100, 600), tick_phase_s=0.01 * i) for i in range(8)])
    with world.installed():
        sensors, absent = find_gpus(None)
        assert not absent
        with contextlib.closing(JournalWriter(tmp_path / "journal.jsonl")) as journal:
            sampler = Sampler(sensors, journal)
            start = time.monotonic()
            sampler.start()
            time.sleep(SECONDS)
            sampler.stop()
            elapsed = time.monotonic() - start
        for sensor in sensors:
            sensor.close()
    print(f"{sampler.cpu_seconds / elapsed:.2%} of a core")
    assert sampler.cpu_seconds > 0
    assert sampler.cpu_seconds <= 0.02 * elapsed
