"""When each phase of a step began, on the host's monotonic clock.

On a CPU the host's own clock is right. A CUDA device runs behind the host, so there a phase begins where the device
reaches it: events are queued beside the work and read when the loop logs, where it waits for the device anyway.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import torch

from efftrain.record.recorder import Phase


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step in monotonic nanoseconds: its start, where each phase began, and its end."""

    start: int
    phases: list[tuple[Phase, int]]
    end: int


class StepClock(Protocol):
    """Notes the boundaries of steps; `resolve` hands out those that are finished."""

    def begin(self) -> None:
        """A step starts."""
        ...

    def mark(self, phase: Phase) -> None:
        """A phase starts, and the one before it ends."""
        ...

    def end(self) -> None:
        """The step ends."""
        ...

    def resolve(self) -> list[StepTimes]:
        """Times of all steps since the last call, in order; waits for a device that is behind."""
        ...


class HostClock:
    """For devices that are done when the call returns."""

    def __init__(self) -> None:
        self._done: list[StepTimes] = []
        self._start = 0
        self._phases: list[tuple[Phase, int]] = []

    def begin(self) -> None:
        """See `StepClock.begin`."""
        self._start, self._phases = time.monotonic_ns(), []

    def mark(self, phase: Phase) -> None:
        """See `StepClock.mark`."""
        self._phases.append((phase, time.monotonic_ns()))

    def end(self) -> None:
        """See `StepClock.end`."""
        self._done.append(StepTimes(self._start, self._phases, time.monotonic_ns()))

    def resolve(self) -> list[StepTimes]:
        """See `StepClock.resolve`."""
        done, self._done = self._done, []
        return done


class CudaClock:
    """For a CUDA device: events in the stream, tied to the host's clock wherever the device is waited for.

    The tie is made anew at each `resolve`, because an event's time is a float32 of milliseconds, which is too coarse
    after some minutes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[tuple[torch.cuda.Event, list[tuple[Phase, torch.cuda.Event]], torch.cuda.Event]] = []
        self._start: torch.cuda.Event | None = None
        self._phases: list[tuple[Phase, torch.cuda.Event]] = []
        self._tie()

    def begin(self) -> None:
        """See `StepClock.begin`."""
        self._start, self._phases = self._event(), []

    def mark(self, phase: Phase) -> None:
        """See `StepClock.mark`."""
        self._phases.append((phase, self._event()))

    def end(self) -> None:
        """See `StepClock.end`."""
        assert self._start is not None, "end() without begin()"
        self._steps.append((self._start, self._phases, self._event()))

    def resolve(self) -> list[StepTimes]:
        """See `StepClock.resolve`."""
        torch.cuda.synchronize(self._device)
        done = [
            StepTimes(self._host(start), [(phase, self._host(event)) for phase, event in phases], self._host(end))
            for start, phases, end in self._steps
        ]
        self._steps = []
        self._tie()
        return done

    def _tie(self) -> None:
        torch.cuda.synchronize(self._device)
        self._anchor = self._event()
        self._anchor.synchronize()
        self._anchor_ns = time.monotonic_ns()

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _host(self, event: torch.cuda.Event) -> int:
        return self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6)


def step_clock(device: torch.device) -> StepClock:
    """The clock that is right for `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
