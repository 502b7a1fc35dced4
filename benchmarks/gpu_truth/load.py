"""A load that can be switched on and off to the millisecond: matrix products in bf16 in bursts of known length.

The host enqueues as many products as a burst is long, by the time that the last bursts took, and waits for them. On a
CPU, where only the script is tried, a burst is a loop of small products.
"""

import time
from dataclasses import dataclass

import torch

from benchmarks.gpu_truth.sensors import Activity

SIZE = 4096
CPU_SIZE = 64
GAIN = 0.1
"""Weight of the last burst in the length of one product: clocks change slowly."""


@dataclass(frozen=True, slots=True)
class Wave:
    """What was done of a square wave.

    Attributes:
        start: moment in ns of its first burst.
        end: moment in ns at which its last period ended.
        duty: share of that time in which the load ran, as the host saw it.
        late_s: standard deviation of the bursts' length in s: how exact the wave was.
    """

    start: int
    end: int
    duty: float
    late_s: float


class Load:
    """Matrix products on a device.

    Args:
        device: a CUDA device, or the CPU.
        activity: is told of each burst, for a simulated board.
    """

    def __init__(self, device: torch.device, activity: Activity) -> None:
        self._cuda, self._activity = device.type == "cuda", activity
        size = SIZE if self._cuda else CPU_SIZE
        self._a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        self._out = torch.empty_like(self._a)
        self._unit_s = 0.0
        self._calibrate()

    def burst(self, seconds: float) -> tuple[int, int]:
        """Run for about so long; from when to when, in ns."""
        start = self._activity.begin()
        if self._cuda:
            products = max(1, round(seconds / self._unit_s))
            self._multiply(products)
            self._unit_s += GAIN * ((time.monotonic_ns() - start) / 1e9 / products - self._unit_s)
        else:
            while time.monotonic_ns() - start < seconds * 1e9:
                self._multiply(1)
        return start, self._activity.end()

    def full(self, seconds: float) -> tuple[int, int]:
        """Run without a pause for so long; from when to when, in ns."""
        start = time.monotonic_ns()
        while (left := seconds - (time.monotonic_ns() - start) / 1e9) > 0:
            self.burst(min(0.1, left))
        return start, time.monotonic_ns()

    def square(self, period_s: float, seconds: float, *, duty: float = 0.5, delay_s: float = 0.0) -> Wave:
        """Run for a share of each period; each period begins where it is due, however late the last one was."""
        begin = time.monotonic_ns() + round(delay_s * 1e9)
        count = max(1, round(seconds / period_s))
        bursts: list[tuple[int, int]] = []
        for k in range(count):
            _sleep_until(begin + round(k * period_s * 1e9))
            bursts.append(self.burst(duty * period_s))
        end = begin + round(count * period_s * 1e9)
        _sleep_until(end)
        lengths = torch.tensor([(b - a) / 1e9 for a, b in bursts], dtype=torch.float64)
        share = float(lengths.sum()) / (end - begin) * 1e9
        return Wave(begin, end, share, float(lengths.std(correction=0)))

    def _multiply(self, products: int) -> None:
        for _ in range(products):
            torch.mm(self._a, self._a, out=self._out)
        if self._cuda:
            torch.cuda.synchronize()

    def _calibrate(self) -> None:
        """Warm up, until one product takes what it will take; half a second on a GPU."""
        self._multiply(2)
        for _ in range(10 if self._cuda else 1):
            start = time.monotonic_ns()
            products = max(1, round(0.05 / self._unit_s)) if self._unit_s and self._cuda else 1
            self._multiply(products)
            self._unit_s = (time.monotonic_ns() - start) / 1e9 / products


def _sleep_until(t_ns: int) -> None:
    if (left := t_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)
