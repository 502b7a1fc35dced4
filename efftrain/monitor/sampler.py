"""One thread that reads all sensors, each in its own rhythm, and writes down what it saw.

A reading is written when it changed, with the time of the reading before, between which and now it did; and at least
once a second, so that a sensor that stands still can be told from one that is gone. Nothing raises out of here: a
sensor that fails is noted as lost, tried less often, and noted again when it is back. The first and the last
readings are taken in the caller's thread, at the very start and the very end.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Sequence

from efftrain.record.journal import JournalWriter
from efftrain.sensors.protocol import Sensor, SensorError

NS_PER_S = 1_000_000_000
REPEAT_NS = NS_PER_S
RETRY_NS = NS_PER_S // 10
RARE_RETRY_NS = NS_PER_S
PATIENT_FAILURES = 100
"""A driver that comes back mostly does so soon; after ten seconds one try a second will do."""
FLUSH_NS = NS_PER_S // 2
FAILURES_UNTIL_LOST = 3
JOIN_TIMEOUT_S = 2.0
LARGEST = 1e15
"""No J, W or s of a machine is larger: a reading beyond is none."""
SETTLE_S = 0.25
SETTLE_POLL_S = 0.005

Wait = Callable[[float], bool]
"""Waits for some seconds, or less where the sampler is asked to stop; whether it was."""


class Sampler:
    """Reads sensors into a journal from `start` to `stop`.

    Args:
        sensors: open sensors; they stay open.
        journal: where ticks and notes go; its clock is the sampler's.
        wait: stands in for time in tests.
    """

    def __init__(self, sensors: Sequence[Sensor], journal: JournalWriter, *, wait: Wait | None = None) -> None:
        self.cpu_seconds = 0.0
        """CPU time in s that the thread has used so far: what sampling costs."""
        self._journal = journal
        self._clock = journal.clock
        self._watched = [_Watched(sensor, journal) for sensor in sensors]
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._thread = threading.Thread(target=self._run, name="efftrain-sampler", daemon=True)

    def start(self) -> None:
        """Read every sensor, then go on reading in a thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        for watched in self._watched:
            watched.read()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, then read every sensor a last time; a second call does nothing.

        A thread that hangs in a driver is left behind, and its sensors are not read again. A counter that ticks is
        waited for, a quarter of a second at most: its next update closes the interval in which the run ends.
        """
        if self._stop.is_set():
            return
        if self._thread.is_alive() and self._wait == self._stop.wait:
            self._settle()
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            self._journal.write("note", text="the sampler did not stop: a sensor hangs")
            return
        for watched in self._watched:
            watched.read(last=True)

    def _settle(self) -> None:
        pending = {watched: watched.updates for watched in self._watched if watched.ticking}
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and any(watched.updates == n for watched, n in pending.items()):
            time.sleep(SETTLE_POLL_S)

    def _run(self) -> None:
        try:
            self._sample()
        except Exception as error:  # a fault of ours; the last readings are still taken at the end
            text = f"sensors are lost from here on, because the sampler failed: {error or type(error).__name__}"
            self._journal.write("note", text=text)

    def _sample(self) -> None:
        now = self._clock()
        due = [(now + watched.pause_ns, i) for i, watched in enumerate(self._watched)]
        flush = len(self._watched)  # lines of other threads reach the disk even where no sensor ticks
        heapq.heapify(due)
        heapq.heappush(due, (now + FLUSH_NS, flush))
        while not self._wait(max(0, due[0][0] - self._clock()) / NS_PER_S):
            while due[0][0] <= self._clock():
                planned, i = due[0]
                if i == flush:
                    self._journal.flush()
                else:
                    self._watched[i].read()
                pause_ns = FLUSH_NS if i == flush else self._watched[i].pause_ns
                heapq.heapreplace(due, (_next(planned, pause_ns, self._clock()), i))
            self.cpu_seconds = time.thread_time()


def _next(planned: int, pause_ns: int, now: int) -> int:
    """Keeps the rhythm, but goes on from now after a stall: missed readings are not made up for."""
    return planned + pause_ns if planned + pause_ns > now else now + pause_ns


class _Watched:
    """One sensor: when it is due, what was last written, how often it has failed."""

    def __init__(self, sensor: Sensor, journal: JournalWriter) -> None:
        self._sensor = sensor
        self._journal = journal
        self._period_ns = round(sensor.info.period_s * NS_PER_S)
        self._written: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self.updates = 0
        self._failures = 0
        self._lost = False

    @property
    def ticking(self) -> bool:
        """Whether the next update of a counter can be expected within moments."""
        info = self._sensor.info
        return info.kind == "energy" and info.tick_s is None and not self._lost and self.updates > 2

    @property
    def pause_ns(self) -> int:
        """Time from one reading to the next."""
        if not self._lost:
            return self._period_ns
        return RETRY_NS if self._failures < PATIENT_FAILURES else RARE_RETRY_NS

    def read(self, *, last: bool = False) -> None:
        """Take a reading and write it if it is new, old enough, or the last one."""
        clock = self._journal.clock
        before = clock()
        try:
            value = self._sensor.read()
            if not math.isfinite(value) or abs(value) > LARGEST:
                raise SensorError(f"{self._sensor.info.name}: read {value}")
        except SensorError as error:
            self._failed(error, limit=FAILURES_UNTIL_LOST)
        except Exception as error:  # whatever a driver comes up with: training goes on
            self._failed(error, limit=1)
        else:
            self._succeeded((before + clock()) // 2, value, last=last)

    def _failed(self, error: Exception, *, limit: int) -> None:
        self._failures += 1
        if self._failures >= limit and not self._lost:
            self._lost = True
            name = self._sensor.info.name
            text = f"sensor {name} is lost: {error or type(error).__name__}"
            self._journal.write("note", text=text, sensor=name, lost=True)

    def _succeeded(self, t: int, value: float, *, last: bool) -> None:
        name = self._sensor.info.name
        if self._lost:
            self._journal.write("note", t=t, text=f"sensor {name} is back", sensor=name, lost=False)
        back, self._lost, self._failures = self._lost, False, 0
        if (
            last or back or self._written is None
            or value != self._written[1] or t - self._written[0] >= REPEAT_NS
        ):  # fmt: skip
            since = {} if self._last is None or self._last[1] == value else {"since": self._last[0]}
            self._journal.write("tick", t=t, sensor=name, value=value, **since)
            self.updates += bool(since)
            self._written = (t, value)
        self._last = (t, value)
