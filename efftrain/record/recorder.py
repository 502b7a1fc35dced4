"""What a training loop tells about itself.

A loop sees a `Recorder` and nothing else of efftrain's measuring side: it marks steps, phases and spans, and never
reads a sensor. All times are monotonic nanoseconds.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Literal, Protocol

from efftrain.record.journal import JournalWriter

Phase = Literal["data", "forward", "backward", "optimizer"]
"""A part of a training step. `forward` holds the loss; `backward` holds recomputation."""

SpanName = Literal[
    "warmup", "idle", "compile", "calibrate", "teacher", "evaluate", "checkpoint", "prepare", "load", "whole"
]
"""A stretch outside of training steps. `prepare` makes tokens from text, `load` finds them made; `whole` is all of what
was measured, where no steps are known."""

Status = Literal[
    "complete", "early-stopped", "target-reached", "budget-spent", "oom", "diverged", "refused", "failed",
    "interrupted", "killed",
]  # fmt: skip
"""How a run ended. `refused`: it cannot be made as it was asked for, which was found before its first step; `killed` is
never written: it is what a journal without an end line means."""

ENDED_WELL: Final = frozenset({"complete", "early-stopped", "target-reached", "budget-spent"})
"""Ends that were wished for."""

PhaseStarts = Sequence[tuple[Phase, int]]
"""Each phase of one step with the time at which it began, in order; a phase ends where the next begins."""


class Recorder(Protocol):
    """The facts that a training loop hands out."""

    def step(
        self,
        *,
        step: int,
        tokens: int,
        t: int,
        t_end: int,
        phases: PhaseStarts,
        loss: float | None,
        learning_rate: float,
        grad_norm: float | None,
    ) -> None:
        """One optimizer step, counted from 1.

        Args:
            step: number of this step.
            tokens: tokens trained in this step.
            t: start of the step.
            t_end: its end.
            phases: where each phase began; with gradient accumulation a phase stands there more than once.
            loss: mean training loss in nat/token, or None where it was not finite.
            learning_rate: of this step.
            grad_norm: global L2 norm before clipping, or None where it was not taken.
        """
        ...

    def span(self, name: SpanName) -> AbstractContextManager[None]:
        """Bracket a stretch outside of steps."""
        ...

    def evaluation(
        self,
        *,
        step: int,
        tokens: int,
        loss: float,
        stderr: float | None,
        batches: int | None = None,
        confusion: list[list[int]] | None = None,
    ) -> None:
        """Validation loss in nat a prediction after `step` steps and `tokens` tokens.

        Args:
            step: steps so far.
            tokens: tokens so far.
            loss: mean over the predictions.
            stderr: its standard error, if known.
            batches: how many means it was found from, if it was from their spread.
            confusion: [true class][predicted class] -> documents, where documents are classified.
        """
        ...

    def block(self, *, name: str, repetitions: int, t: int, t_end: int) -> None:
        """A part of the step, repeated on its own after the run, `t` to `t_end` ns; see efftrain.training.blocks."""
        ...

    def cost(self, **fields: Any) -> None:
        """FLOPs and bytes of one (phase, module, op) of a step, or the predicted memory; see efftrain.counting."""
        ...

    def memory(self, **fields: Any) -> None:
        """Measured memory peaks."""
        ...

    def note(self, text: str, **fields: Any) -> None:
        """Whatever a reader must know."""
        ...

    def end(self, status: Status, **fields: Any) -> None:
        """How the run ended; nothing is recorded after it."""
        ...


class JournalRecorder:
    """The recorder that writes into a journal."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal

    def step(self, *, t: int, phases: PhaseStarts, **fields: Any) -> None:
        """See `Recorder.step`."""
        self._journal.write("step", t=t, phases=[list(p) for p in phases], **fields)

    @contextmanager
    def span(self, name: SpanName) -> Iterator[None]:
        """See `Recorder.span`; a span that ends in an exception is written too."""
        start = self._journal.clock()
        try:
            yield
        finally:
            self._journal.write("span", t=start, t_end=self._journal.clock(), name=name)

    def past_span(self, name: str, *, t: int, t_end: int) -> None:
        """A stretch that is over, for whoever cannot bracket it; ns."""
        self._journal.write("span", t=t, t_end=t_end, name=name)

    def evaluation(self, **fields: Any) -> None:
        """See `Recorder.evaluation`."""
        self._journal.write("evaluation", **fields)

    def block(self, *, t: int, **fields: Any) -> None:
        """See `Recorder.block`."""
        self._journal.write("block", t=t, **fields)

    def cost(self, **fields: Any) -> None:
        """See `Recorder.cost`."""
        self._journal.write("cost", **fields)

    def memory(self, **fields: Any) -> None:
        """See `Recorder.memory`."""
        self._journal.write("memory", **fields)

    def note(self, text: str, **fields: Any) -> None:
        """See `Recorder.note`."""
        self._journal.write("note", text=text, **fields)

    def end(self, status: Status, **fields: Any) -> None:
        """See `Recorder.end`."""
        self._journal.write("end", status=status, **fields)
        self.flush()

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._journal.flush()


class NullRecorder:
    """The recorder that keeps nothing: for tests, and for measuring what recording costs."""

    def step(self, **fields: Any) -> None:
        """See `Recorder.step`."""

    def span(self, name: SpanName) -> AbstractContextManager[None]:
        """See `Recorder.span`."""
        return nullcontext()

    def evaluation(self, **fields: Any) -> None:
        """See `Recorder.evaluation`."""

    def block(self, **fields: Any) -> None:
        """See `Recorder.block`."""

    def cost(self, **fields: Any) -> None:
        """See `Recorder.cost`."""

    def memory(self, **fields: Any) -> None:
        """See `Recorder.memory`."""

    def note(self, text: str, **fields: Any) -> None:
        """See `Recorder.note`."""

    def end(self, status: Status, **fields: Any) -> None:
        """See `Recorder.end`."""
