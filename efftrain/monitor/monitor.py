"""The measuring side of one run: a journal with its header, the sensors that write into it, and a recorder.

The monitor watches and never interferes. Once the journal is open, whatever fails here costs figures, which are then
missing with their reason, and not the run. How a run ended is for the loop to say: a monitor that is left without an
`end` line does not invent one, because a missing line is how a killed run is told.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from efftrain.monitor.sampler import Sampler, Wait
from efftrain.record.journal import SCHEMA, Clock, JournalWriter
from efftrain.record.recorder import JournalRecorder
from efftrain.sensors.protocol import Discovery


class Monitor:
    """Measures a run from entry to exit.

    Args:
        path: the journal, which must not exist; its folder is made.
        discovery: the sensors to read; they are closed at exit. See `efftrain.monitor.machine.find_sensors`.
        header: the fields of the journal's header that a caller knows: run_id, config, environment, peak and so on.
        clock: monotonic nanoseconds.
        wait: stands in for time in tests, as in `Sampler`.
    """

    def __init__(
        self, path: Path, discovery: Discovery, header: Mapping[str, Any], *, clock: Clock = time.monotonic_ns,
        wait: Wait | None = None,
    ) -> None:  # fmt: skip
        self._path = path
        self._discovery = discovery
        self._header = header
        self._clock = clock
        self._wait = wait
        self._journal: JournalWriter | None = None
        self._sampler: Sampler | None = None

    def __enter__(self) -> Self:
        """Open the journal, write its header, take the first readings and begin to sample.

        Raises:
            FileExistsError: the journal exists.
            OSError: it cannot be created.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = JournalWriter(self._path, clock=self._clock)
        self._journal.write("header", **header_fields(self._header, self._discovery, self._clock))
        self._journal.flush()
        self._sampler = Sampler(self._discovery.sensors, self._journal, wait=self._wait)
        try:
            self._sampler.start()
        except RuntimeError as error:
            for sensor in self._discovery.sensors:
                text = f"sensor {sensor.info.name} is lost: no sampler: {error}"
                self._journal.write("note", text=text, sensor=sensor.info.name, lost=True)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the last readings, then close the sensors and the journal; exceptions pass through."""
        if self._sampler is not None:
            self._sampler.stop()
        for sensor in self._discovery.sensors:
            with contextlib.suppress(Exception):
                sensor.close()
        if self._journal is not None:
            self._journal.close()

    @property
    def recorder(self) -> JournalRecorder:
        """What a training loop writes its marks to.

        Raises:
            RuntimeError: the monitor has not been entered.
        """
        if self._journal is None:
            raise RuntimeError("a monitor records between entry and exit: use it in a with statement")
        return JournalRecorder(self._journal)

    def flush(self) -> None:
        """Bring what was written so far into the journal's file, for whoever reads it meanwhile."""
        if self._journal is not None:
            self._journal.flush()

    @property
    def sampler_cpu_seconds(self) -> float:
        """CPU time in s that sampling has used so far."""
        return 0.0 if self._sampler is None else self._sampler.cpu_seconds


def header_fields(header: Mapping[str, Any], discovery: Discovery, clock: Clock) -> dict[str, Any]:
    """A journal's header: what the caller knows, with schema, sensors, absent components and a wall-clock anchor.

    A component whose own sensor is absent but which another sensor reads in its place is not absent to a reader.
    """
    return {
        "idle": {},
        **header,
        "schema": SCHEMA,
        "sensors": [asdict(sensor.info) for sensor in discovery.sensors],
        "absent": [{"component": a.component, "why": a.why} for a in discovery.absent if not a.stand_in],
        "clock": {"monotonic_ns": clock(), "unix_s": time.time()},
    }
