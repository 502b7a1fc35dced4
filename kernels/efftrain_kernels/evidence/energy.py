"""Joules of a repeated call, from the energy counter of an NVIDIA board, and what the board draws when idle.

The counter moves in ticks of 20 to 100 ms, so two readings at arbitrary moments are off by a tick's energy. Each
reading here is taken at the moment a tick arrives: the load runs until the counter moves, at least so long, and until
it moves again. What is not measured is None with the reason, never 0.
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MIN_SECONDS = 5.0
IDLE_SECONDS = 3.0
TICK_TIMEOUT_S = 2.0
CALLS_AT_A_TIME_S = 0.005
IDLE_POLL_S = 0.001
METHOD = "NVML energy counter between ticks, minus idle"


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy of one call.

    Attributes:
        value: joules a call above idle; None where it was not measured.
        total: joules a call, idle included.
        watts: mean power under the load.
        idle_watts: mean power before it, with the context alive.
        seconds: how long the load ran.
        calls: how often it was called.
        method: how it was measured, or `missing` and why.
    """

    value: float | None
    total: float | None
    watts: float | None
    idle_watts: float | None
    seconds: float | None
    calls: int
    method: str


def missing(why: str) -> Joules:
    """No measurement."""
    return Joules(None, None, None, None, None, 0, f"missing: {why}")


class EnergyCounter:
    """The energy counter of one CUDA device.

    Args:
        read: joules since some moment in the past.
        clock: seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        read: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read, self._clock, self._sleep = read, clock, sleep
        self.idle_watts: float | None = None

    def measure_idle(self, seconds: float = IDLE_SECONDS) -> float:
        """Mean watts while nothing runs; kept for `joules`."""
        spent, elapsed, _ = self._between_ticks(self._rest, seconds)
        self.idle_watts = spent / elapsed
        return self.idle_watts

    def joules(self, call: Callable[[], object], *, seconds: float, min_seconds: float = MIN_SECONDS) -> Joules:
        """Energy of `call`, repeated for at least `min_seconds` and until the counter ticks.

        Args:
            call: enqueues the work on the device; nothing else runs there.
            seconds: about how long one call takes, so that a batch of them is waited for at a time.
            min_seconds: at least this long.

        Raises:
            RuntimeError: the counter does not move.
        """
        idle = self.measure_idle() if self.idle_watts is None else self.idle_watts
        batch = max(1, int(CALLS_AT_A_TIME_S / max(seconds, 1e-6)))

        def work() -> int:
            for _ in range(batch):
                call()
            _synchronize()
            return batch

        spent, elapsed, calls = self._between_ticks(work, min_seconds)
        total = spent / calls
        return Joules(total - idle * elapsed / calls, total, spent / elapsed, idle, elapsed, calls, METHOD)

    def _rest(self) -> int:
        self._sleep(IDLE_POLL_S)
        return 0

    def _between_ticks(self, work: Callable[[], int], seconds: float) -> tuple[float, float, int]:
        """(Joules, seconds, calls) from one tick to the first one that comes at least `seconds` later."""
        self._next_tick(work)
        joules, began, calls = self._read(), self._clock(), 0
        while self._clock() - began < seconds:
            calls += work()
        calls += self._next_tick(work)
        return self._read() - joules, self._clock() - began, calls

    def _next_tick(self, work: Callable[[], int]) -> int:
        """Work until the counter moves; how many calls that took."""
        before, deadline, calls = self._read(), self._clock() + TICK_TIMEOUT_S, 0
        while self._read() == before:
            calls += work()
            if self._clock() > deadline:
                raise RuntimeError(f"the energy counter did not move in {TICK_TIMEOUT_S:.0f} s")
        return calls


def find_counter(device: torch.device) -> tuple[EnergyCounter | None, str]:
    """The counter of a device, or None; and how it is read, or why there is none."""
    if device.type != "cuda":
        return None, "the device has no energy counter"
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None, "pynvml is not installed (nvidia-ml-py)"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return None, f"NVML: {error}"
    return EnergyCounter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3), METHOD


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
