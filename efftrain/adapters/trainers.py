"""What the callbacks of trainers have in common: a measurement that lasts from the start of a training to its end.

A trainer tells its callbacks where it is, and not always that it is over: a training that dies of an exception is ended
at the interpreter's exit, with what the interpreter knows of it.
"""

import atexit
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from efftrain.adapters.keeping import LOGGER
from efftrain.adapters.measure import Measurement, ending, measure
from efftrain.record.recorder import Status
from efftrain.record.schema import Run

P = ParamSpec("P")
Self = TypeVar("Self", bound="TrainerMeasurement")


def harmless(method: Callable[Concatenate[Self, P], None]) -> Callable[Concatenate[Self, P], None]:
    """A hook that never raises into the trainer."""

    @functools.wraps(method)
    def guarded(self: Self, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.run is None:
            return
        with self.run.guarded(f"{method.__name__} failed"):
            method(self, *args, **kwargs)

    return guarded


@contextmanager
def quietly(what: str) -> Iterator[None]:
    """Whatever fails in here, where there is no measurement yet, is logged and goes no further."""
    try:
        yield
    except Exception as error:
        LOGGER.warning("efftrain: %s: %s", what, error or type(error).__name__)


class TrainerMeasurement:
    """The measurement of a trainer's current or last training.

    Args:
        name: of the measurement; the trainer's if not given.
        **options: `out`, `device`, `idle_s`, `country` and so on, as in `efftrain.measure`.

    Raises:
        ValueError: one of them cannot be used.
    """

    def __init__(self, name: str | None = None, **options: Any) -> None:
        self._name, self._options = name, options
        self._tokens = 0
        self._left = 0
        self.run: Measurement | None = None
        """What `efftrain.measure` gives; None before the training."""
        measure(name or "trainer", **options)  # a wrong argument is said here, before anything is trained

    @property
    def record(self) -> Run | None:
        """The record, after the training; None before, or where none could be made, which was logged."""
        return None if self.run is None else self.run.record

    def begin(self, name: str, **facts: Any) -> None:
        """A training starts; one that was left open has failed.

        Args:
            name: in case that none was given.
            **facts: `parameters`, `seed` and `config` for the record.
        """
        self.end("failed", "another training was started")
        wish = re.sub(r"[/\0]", "-", self._name or name).strip(". ")[:100] or "trainer"
        self.run = measure(wish, **{**facts, **self._options})
        self.run.start()
        self._tokens = 0
        self.leave()
        atexit.register(self._abandon)

    def end(self, status: Status, detail: str = "") -> None:
        """The training is over."""
        atexit.unregister(self._abandon)
        if self.run is not None:
            self.run.finish(status, detail)

    @property
    def _of_run(self) -> Measurement:
        assert self.run is not None, "looked at by harmless"
        return self.run

    def leave(self) -> None:
        """From here on the trainer does something else than a step, if it does not begin one."""
        self._left = time.monotonic_ns()

    def past(self, span: str) -> None:
        """What the trainer did since it left its step was this."""
        if self.run is not None:
            self.run.past_span(span, self._left, time.monotonic_ns())
        self.leave()

    def _abandon(self) -> None:
        error = getattr(sys, "last_value", None)
        self.end(*(ending(error) if error is not None else ("failed", "the training did not come to its end")))


def first_ids(batch: Any, name: str = "input_ids") -> int:
    """Tokens of a batch: the size of its `input_ids`, or of its first tensor of whole numbers with two dimensions.

    Padding counts. A batch without such a tensor has none.
    """
    if isinstance(batch, Mapping):
        known = batch.get(name)
        return first_ids(known if known is not None else list(batch.values()))
    if isinstance(batch, list | tuple):
        return next(filter(None, map(first_ids, batch)), 0)
    tokens = getattr(batch, "ndim", 0) >= 2 and not (batch.is_floating_point() or batch.is_complex())
    return int(batch.numel()) if tokens else 0
