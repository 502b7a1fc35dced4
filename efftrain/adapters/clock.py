"""When the marks of a foreign loop fell, on the host's monotonic clock, without ever waiting for a device.

A CUDA device runs behind the host, so there an event is queued with each mark, and looked at when later marks come. An
event tells device time; what ties it to the host's clock are its own limits: the device cannot have reached it before
the host had queued it, nor after the host has seen it done. A loop that ever waits for its device, to read a loss say,
makes the first of these limits tight.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from efftrain.record.journal import Clock


class Event(Protocol):
    """What is used of a `torch.cuda.Event` that has been recorded."""

    def query(self) -> bool:
        """Whether the device has reached it."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to a later one."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: when the host passed it, in ns, and the event that tells when the device did."""

    t: int
    event: Event | None = None


class MarkClock:
    """Makes marks, and tells later when they fell.

    Args:
        new_event: records an event on the device in use, or says that none is; `cuda_event` outside of tests.
        clock: monotonic nanoseconds.
    """

    def __init__(self, new_event: Callable[[], Event | None], clock: Clock = time.monotonic_ns) -> None:
        self._new_event = new_event
        self._clock = clock
        self._origin: Event | None = None  # the last event that was placed, and its device time in ns
        self._device_ns = 0.0
        self._offset = 0.0  # host time − device time
        self._last = 0

    def mark(self) -> Mark:
        """This moment."""
        t = self._clock()
        return Mark(t, self._new_event())

    def reached(self, mark: Mark) -> bool:
        """Whether the device has come to a mark, so that it can be placed."""
        try:
            return mark.event is None or mark.event.query()
        except RuntimeError:  # the device is in error and will never come to it
            return True

    def place(self, mark: Mark) -> int:
        """When a mark that was reached fell, in ns. Marks are placed in their order."""
        t = mark.t
        if mark.event is not None:
            with contextlib.suppress(RuntimeError):  # a device in error, or another one: the host's time is left
                t = self._placed(mark.event, mark.t, self._clock())
        self._last = max(self._last, t)
        return self._last

    def _placed(self, event: Event, queued: int, seen: int) -> int:
        """Host time of an event that is done.

        From event to event, because a `float` of milliseconds since long ago is too coarse.
        """
        if self._origin is None:
            self._offset = float(queued)
        else:
            self._device_ns += self._origin.elapsed_time(event) * 1e6
        self._origin = event
        self._offset = min(max(self._offset, queued - self._device_ns), seen - self._device_ns)
        return round(self._device_ns + self._offset)


def cuda_event() -> Event | None:
    """An event on torch's current stream; None where torch uses no CUDA, or is capturing a graph."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def wait_for_cuda() -> None:
    """Wait for all that is queued on torch's current device: for after the loop, not in it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def later(value: Any) -> Callable[[], float | None]:
    """A number that may still be on the device: copied beside the work, read once an event after it is done."""
    if value is None:
        return lambda: None
    if not getattr(value, "is_cuda", False):
        number = float(value.detach() if hasattr(value, "detach") else value)
        return lambda: number
    import torch

    host = torch.empty_like(value, device="cpu", pin_memory=True)
    host.copy_(value.detach(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()  # at once, where a mark that was set after it has been reached
        return float(host)

    return read
