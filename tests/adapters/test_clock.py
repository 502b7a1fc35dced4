"""Marks on a simulated device that runs behind the host, with a clock of its own that drifts."""

from dataclasses import dataclass, field

import pytest

from efftrain.adapters.clock import Mark, MarkClock, later


@dataclass
class Device:
    """A queue of work: an event is reached once all work queued before it is done. Times in ns."""

    now: int = 1_000_000_000
    free: int = 0  # host time at which the queue is empty
    drift: float = 0.0  # the device's clock runs faster by this share
    events: list["Event"] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def launch(self, ns: int) -> None:
        self.free = max(self.free, self.now) + ns

    def record(self) -> "Event":
        event = Event(self, max(self.free, self.now))
        self.events.append(event)
        return event

    def wait(self) -> None:
        self.now = max(self.now, self.free)


@dataclass(eq=False)
class Event:
    device: Device
    true: int

    def query(self) -> bool:
        return self.device.now >= self.true

    def elapsed_time(self, end_event: "Event") -> float:
        return (end_event.true - self.true) * (1 + self.device.drift) / 1e6


def test_a_mark_falls_where_the_device_comes_to_it_not_where_the_host_sets_it():
    device = Device()
    clock = MarkClock(device.record, device.clock)
    begin = clock.mark()
    device.launch(50_000_000)
    device.now += 1_000_000
    end = clock.mark()
    assert clock.reached(begin)
    assert not clock.reached(end)
    device.now += 100_000_000
    assert clock.reached(end)
    assert clock.place(begin) == 1_000_000_000
    assert clock.place(end) == 1_050_000_000


@pytest.mark.parametrize("drift", [0.0, 40e-6, -40e-6])
def test_an_hour_of_steps_stays_on_the_hosts_clock(drift: float):
    """40 ppm would be 144 ms in an hour; a loop that reads its loss each step keeps within what it cannot know."""
    device = Device(drift=drift)
    clock, worst = MarkClock(device.record, device.clock), 0
    for _ in range(18_000):
        begin = clock.mark()
        device.launch(199_000_000)
        end = clock.mark()
        device.wait()
        device.now += 1_000_000
        for mark, event in ((begin, device.events[-2]), (end, device.events[-1])):
            worst = max(worst, abs(clock.place(mark) - event.true))
        device.events.clear()
    assert worst <= 1_100_000  # the host's millisecond between two steps, and one step's drift


def test_marks_never_go_back():
    device = Device(drift=1e-3)
    clock, placed = MarkClock(device.record, device.clock), []
    for _ in range(200):
        marks = [clock.mark()]
        device.launch(10_000_000)
        marks.append(clock.mark())
        device.wait()
        placed += [clock.place(mark) for mark in marks]
    assert placed == sorted(placed)


def test_a_device_in_error_leaves_the_hosts_time():
    class Broken:
        def query(self) -> bool:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        def elapsed_time(self, end_event: object) -> float:
            raise RuntimeError("CUDA error")

    clock = MarkClock(lambda: None)
    mark = Mark(123, Broken())
    assert clock.reached(mark)
    assert clock.place(mark) == 123
    assert clock.place(Mark(456, Broken())) == 456


def test_numbers_come_from_tensors_and_floats():
    import torch

    assert later(None)() is None
    assert later(2)() == 2.0
    assert later(torch.tensor(1.5, requires_grad=True))() == 1.5
    with pytest.raises(ValueError, match="could not convert"):
        later("a loss")
