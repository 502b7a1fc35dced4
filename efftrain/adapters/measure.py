"""Measures a plain training loop from inside of it.

```python
with efftrain.measure("my-model", country="FRA") as run:
    for batch in loader:
        with run.phase("forward"):
            loss = model(batch)
        with run.phase("backward"):
            loss.backward()
        with run.phase("optimizer"):
            optimizer.step()
        run.step(tokens=batch.numel(), loss=loss)
print(run)
```

Phases and steps are optional: without steps, the whole block is on the bill. A step lasts from the end of the step
before, or from the end of a span in between, to `step()`; the first one begins with its first phase, or with the block.
Time in a step that lies in no phase is called `other`. Nothing in here waits for a device, and whatever fails in here
is logged and costs figures, not the training.
"""

import functools
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self

from efftrain.adapters.clock import Mark, MarkClock, cuda_event, later, wait_for_cuda
from efftrain.adapters.keeping import Keeping, Wish
from efftrain.adapters.records import Made
from efftrain.adapters.words import paragraph
from efftrain.meters.carbon.footprint import resolve
from efftrain.monitor.launch import this_rank
from efftrain.record.recorder import JournalRecorder, Status
from efftrain.record.schema import Run

OTHER: Final = "other"
"""The time of a step that lies in no phase."""

SHORT: Final = 0.01
"""A gap between two phases that is less than this share of the step belongs to the phase before it."""

_going: set[int] = set()
"""Measurements of this process that have begun and not ended."""

P = ParamSpec("P")


def measure(
    name: str,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    idle_s: float = 0.0,
    node_overhead_w: float | None = None,
    seed: int = 0,
    parameters: int = 0,
    config: Mapping[str, Any] | None = None,
    **carbon: Any,
) -> "Measurement":
    """Measure the block of a `with` statement; see `Measurement` for what can be marked in it.

    Args:
        name: of the training; names the folder too.
        out: folder that gets a folder NAME with record and report; `efftrain-runs/NAME-TIME` if not given. What is
            there is never overwritten.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: whose energy counts besides the host's. `auto`: the GPUs that torch
            sees where it uses CUDA already, else all that NVML shows and CUDA_VISIBLE_DEVICES leaves.
        idle_s: how long idle power is read beforehand, in s; 0: not at all, and energy above idle is then missing.
        node_overhead_w: W of the parts of the machine that no sensor reads, where you know them.
        seed: of the training, for the record.
        parameters: of the model, for the record.
        config: of the training, for the record; plain data.
        **carbon: `country`, `region`, `intensity`, `pue` and the further arguments of
            `efftrain.meters.carbon.footprint.resolve`.

    Raises:
        ValueError: an argument cannot be used. Nothing raises later.
    """
    if not re.fullmatch(r"[^/\0.][^/\0]{0,99}", name):
        raise ValueError(f"name {name!r}: expected 1 to 100 characters, no slash, no dot at the beginning")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if node_overhead_w is not None and not 0 <= node_overhead_w < math.inf:
        raise ValueError(f"node_overhead_w {node_overhead_w:g}: expected W of at least 0, for example 84")
    return Measurement(
        Wish(
            name=name, command=" ".join(sys.argv), rank=this_rank(), carbon=resolve(**carbon),
            out=None if out is None else Path(out), device=device, node_overhead_w=node_overhead_w, idle_s=idle_s,
            seed=seed, parameters=parameters, config=config or {},
        )
    )  # fmt: skip


def _harmless(method: Callable[Concatenate["Measurement", P], None]) -> Callable[Concatenate["Measurement", P], None]:
    """A method that does its part under the lock while the measurement is open, and never raises."""

    @functools.wraps(method)
    def harmless(self: "Measurement", *args: P.args, **kwargs: P.kwargs) -> None:
        if self._process != os.getpid():  # a forked child, a data loader's worker say
            return
        with self._keeping.guarded(f"{method.__name__} failed"), self._lock:
            if self._recorder is not None:
                method(self, *args, **kwargs)
            elif not self._silent:
                self._keeping.say(f"{method.__name__}: nothing is recorded outside of the with block")

    return harmless


@dataclass(slots=True)
class _Going:
    """The step that goes on: where it began, the phases so far, and those that are open."""

    begin: Mark
    phases: list[tuple[str, Mark]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    first: bool = False


@dataclass(slots=True)
class _Step:
    """A step that has ended for the host; its marks and numbers may still be on the device."""

    number: int
    going: _Going
    end: Mark
    tokens: int
    loss: Callable[[], float | None]
    grad_norm: Callable[[], float | None]
    learning_rate: float | None


class Bracket:
    """A context manager of two deeds; exceptions pass through."""

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._enter, self._leave = enter, leave

    def __enter__(self) -> None:
        self._enter()

    def __exit__(self, *exc: object) -> None:
        self._leave()


class Measurement:
    """What `measure` gives: marks to set while it goes on, figures afterwards. Safe to use from several threads."""

    def __init__(self, wish: Wish) -> None:
        self._keeping = Keeping(wish)
        self._clock = MarkClock((lambda: None) if wish.device == "cpu" else cuda_event)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._recorder: JournalRecorder | None = None
        self._silent = False  # nothing can be recorded, and that was said
        self._entries = self._depth = 0
        self._pending: deque[_Step] = deque()
        self._steps = self._tokens = 0
        self._made: Made | None = None

    def __enter__(self) -> Self:
        """Open the sensors and the journal."""
        self._entries, self._depth = self._entries + 1, self._depth + 1
        if self._entries > 1:
            self._keeping.say("a measurement is used once: what comes after its first block is not measured")
            self._silent = True
        else:
            self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the last readings, write record and report; exceptions pass through."""
        self._depth -= 1
        if not self._depth:
            self.finish(*ending(exc))

    def start(self) -> None:
        """Begin where no `with` block does; `finish` ends it."""
        with self._keeping.guarded("the measurement could not begin"):
            self._recorder = self._keeping.open()
        self._silent = self._recorder is None
        self._begin()
        if self._recorder is None:
            return
        if _going:
            self.note("another measurement of this process goes on at the same time: their joules overlap")
        _going.add(id(self))

    def finish(self, status: Status, detail: str = "") -> None:
        """End the measurement where no `with` block does; a second call does nothing."""
        if self._recorder is None or self._process != os.getpid():
            return
        self._end(status, detail)
        self._recorder = None
        _going.discard(id(self))
        with self._keeping.guarded("the measurement could not be ended"):
            self._made = self._keeping.close(status)

    def phase(self, name: str) -> Bracket:
        """Bracket a part of a step: `data`, `forward`, `backward`, `optimizer`, or a name of your own."""
        return Bracket(lambda: self.mark(name), self._leave)

    def span(self, name: str) -> Bracket:
        """Bracket a stretch between steps: `evaluate` or `checkpoint`; `warmup` and `idle` are not on the bill."""
        began: list[int] = []
        return Bracket(
            lambda: began.append(time.monotonic_ns()), lambda: self.past_span(name, began[-1], time.monotonic_ns())
        )

    @_harmless
    def step(
        self, *, tokens: int = 0, loss: Any = None, learning_rate: float | None = None, grad_norm: Any = None
    ) -> None:
        """The step ends here.

        Args:
            tokens: trained in it, by this process.
            loss: mean training loss in nat/token; a tensor is copied without waiting for it.
            learning_rate: of the step.
            grad_norm: global L2 norm of the gradient; may be a tensor too.
        """
        # Copies are queued before the event that tells that they are done.
        values = self._later("loss", loss), self._later("grad_norm", grad_norm)
        end, trained = self._clock.mark(), int(tokens)
        self._steps += 1
        self._pending.append(_Step(self._steps, self._now, end, max(0, trained), *values, learning_rate))
        self._now = _Going(end)
        self._tokens += max(0, trained)
        if trained < 0:
            self._keeping.say(f"step {self._steps}: tokens {trained}: expected a count; taken as 0")
        self._write()

    @_harmless
    def late(self, *, loss: Any = None, learning_rate: float | None = None, grad_norm: Any = None) -> None:
        """What is known of the last step only after its end; see `step`."""
        if not self._pending:
            return
        step = self._pending[-1]
        step.loss = step.loss if loss is None else self._later("loss", loss)
        step.grad_norm = step.grad_norm if grad_norm is None else self._later("grad_norm", grad_norm)
        step.learning_rate = step.learning_rate if learning_rate is None else float(learning_rate)

    @_harmless
    def evaluation(self, *, loss: float, stderr: float | None = None) -> None:
        """Validation loss in nat/token after the steps so far, with its standard error if known."""
        found = None if stderr is None else float(stderr)
        self._journal.evaluation(step=self._steps, tokens=self._tokens, loss=float(loss), stderr=found)

    @_harmless
    def note(self, text: str) -> None:
        """Whatever a reader of the record should know."""
        self._journal.note(str(text))

    @_harmless
    def mark(self, phase: str, *, from_the_start: bool = False) -> None:
        """A phase begins where no `with` block says so; it ends with the next, or with the step.

        Args:
            phase: its name.
            from_the_start: it has been going on since the step began, if none was marked before.
        """
        self._write(settled=True)
        fresh = not self._now.phases
        mark = self._now.begin if fresh and from_the_start else self._clock.mark()
        if self._now.first and fresh:
            self._now.begin = mark
        self._now.open.append(phase)
        self._now.phases.append((phase, mark))

    @_harmless
    def past_span(self, name: str, start_ns: int, end_ns: int) -> None:
        """A span that is over, in monotonic ns; a step that has no phase yet begins after it."""
        self._write(settled=True)
        self._journal.past_span(name, t=start_ns, t_end=end_ns)
        if not self._now.phases:
            self._now.begin = self._clock.mark()

    @property
    def record(self) -> Run | None:
        """The record, after the block; None before, or where none could be made, which was logged."""
        return None if self._made is None else self._made.run

    @property
    def folder(self) -> Path | None:
        """Where journal, record and report are; None where nothing could be written."""
        return None if self._keeping.folder is None else self._keeping.folder.root

    @property
    def problems(self) -> list[str]:
        """What went wrong with measuring, each in one line."""
        return list(self._keeping.problems)

    def summary(self) -> str:
        """What it cost, in a paragraph."""
        return paragraph(self.record, self.folder, self.problems)

    def __str__(self) -> str:
        return self.summary()

    def guarded(self, what: str) -> AbstractContextManager[None]:
        """Whatever fails in here is logged once as a problem, and goes no further."""
        return self._keeping.guarded(what)

    @property
    def _journal(self) -> JournalRecorder:
        assert self._recorder is not None, "looked at by _harmless"
        return self._recorder

    @_harmless
    def _begin(self) -> None:
        self._entered = self._clock.mark()
        self._now = _Going(self._entered, first=True)
        self._journal.past_span("whole", t=self._entered.t, t_end=self._entered.t)

    @_harmless
    def _leave(self) -> None:
        stack = self._now.open
        if stack:  # else the step ended inside of the phase
            stack.pop()
            self._now.phases.append((stack[-1] if stack else OTHER, self._clock.mark()))

    @_harmless
    def _end(self, status: Status, detail: str) -> None:
        with self._keeping.guarded("the device could not be waited for"):
            wait_for_cuda()
        with self._keeping.guarded("the last steps could not be written"):
            self._write(settled=True)
        if not self._steps:
            self._journal.past_span("whole", t=self._entered.t, t_end=self._clock.mark().t)
        self._journal.end(status, **({"detail": detail} if detail else {}))

    def _later(self, what: str, value: Any) -> Callable[[], float | None]:
        with self._keeping.guarded(f"{what} is no number"):
            return later(value)
        return lambda: None

    def _write(self, *, settled: bool = False) -> None:
        """Write down the steps that the device has done; the newest, whose loss may still come, only if settled."""
        keep = 0 if settled else 1
        while len(self._pending) > keep and self._clock.reached(self._pending[0].end):
            self._journal.step(**_fields(self._pending.popleft(), self._clock))


def _fields(step: _Step, clock: MarkClock) -> dict[str, Any]:
    """A step as the journal has it."""
    begin = clock.place(step.going.begin)
    placed = [(name, clock.place(mark)) for name, mark in step.going.phases]
    end = clock.place(step.end)
    return {
        "step": step.number, "tokens": step.tokens, "t": begin, "t_end": end, "phases": _phases(placed, begin, end),
        "loss": step.loss(), "learning_rate": step.learning_rate, "grad_norm": step.grad_norm(),
    }  # fmt: skip


def _phases(placed: list[tuple[str, int]], begin: int, end: int) -> list[tuple[str, int]]:
    """Phases without gaps: a long one is called `other`, a short one belongs to the phase before it or after it."""
    if not placed:
        return []
    short = SHORT * (end - begin)
    if placed[0][1] - begin > short:
        placed = [(OTHER, begin), *placed]
    ends = [t for _, t in placed[1:]] + [end]
    kept = [(name, t) for (name, t), until in zip(placed, ends, strict=True) if name != OTHER or until - t > short]
    return [(kept[0][0], begin), *kept[1:]] if kept else []


def ending(exc: BaseException | None) -> tuple[Status, str]:
    """How a block ended, from the exception that leaves it."""
    if exc is None or (isinstance(exc, SystemExit) and not exc.code):
        return "complete", ""
    what = f"{type(exc).__name__}: {next(iter(str(exc).splitlines()), '')}".rstrip(": ")
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted", ""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return "oom", what
    return "failed", what
