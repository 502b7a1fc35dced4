"""How a study shows that it is alive: one live line on a terminal, plain lines elsewhere.

The figures come from the run's own journal, through the same meters as the report's.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from efftrain.meters.live import LiveFigures, LiveMeter

if TYPE_CHECKING:
    from efftrain.record.journal import Line
    from efftrain.study.planning.plan import RunPlan
    from efftrain.study.process import Observer

REFRESH_PER_SECOND = 4
PLAIN_INTERVAL_S = 10.0


@cache
def console() -> Console:
    """Where all output goes; 120 columns where it is not a terminal, so that tables keep their shape in a file."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=120)


@contextmanager
def progress() -> "Iterator[Observer]":
    """The display that suits the console."""
    if not console().is_terminal:
        yield _Plain()
        return
    with Live(console=console(), refresh_per_second=REFRESH_PER_SECOND, transient=True) as live:
        yield _OnTerminal(live)


class _Display(ABC):
    """Follows one run after the other, and shows its figures every `interval_s` seconds."""

    interval_s: float

    def __init__(self) -> None:
        self._title = ""
        self._meter: LiveMeter | None = None
        self._began = self._next = 0.0

    def message(self, text: str) -> None:
        console().print(text, highlight=False)

    def run_started(self, run: "RunPlan", index: int, total: int) -> None:
        self._title, self._meter, self._began = f"[{index}/{total}] {run.run_id}", None, time.monotonic()
        self._next = self._began + self.interval_s

    def line(self, line: "Line") -> None:
        if line["kind"] == "header":
            self._meter = LiveMeter(line)
        elif line["kind"] == "block":  # after the training, seconds apart
            self.show(f"{self._title}  joules by phase: a block of {line['name']} is done")
        elif self._meter:
            self._meter.feed(line)
            if line["kind"] == "step" and time.monotonic() >= self._next:
                self._next = time.monotonic() + self.interval_s
                self.show(f"{self._title}  {describe(self._meter.figures())}")

    @abstractmethod
    def show(self, text: str) -> None:
        """Put the figures of the current run before the user."""

    def run_ended(self, run: "RunPlan", status: str, detail: str) -> None:
        seconds = time.monotonic() - self._began
        figures = f"  {describe(self._meter.figures())}" if self._meter else ""
        console().print(f"{self._title}: {status} in {seconds:.0f} s{figures}", highlight=False, markup=False)
        if detail:
            console().print(f"    {detail.splitlines()[-1]}", highlight=False, markup=False)


class _Plain(_Display):
    """A line every ten seconds, and one at a run's end."""

    interval_s = PLAIN_INTERVAL_S

    def show(self, text: str) -> None:
        console().print(text, highlight=False, markup=False)


class _OnTerminal(_Display):
    """One line that is drawn again and again."""

    interval_s = 1 / REFRESH_PER_SECOND

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    def run_started(self, run: "RunPlan", index: int, total: int) -> None:
        super().run_started(run, index, total)
        self.show(f"{self._title}  starting")

    def show(self, text: str) -> None:
        self._live.update(Text(text))


def describe(figures: LiveFigures) -> str:
    """One line of what is known so far; what is not known is left out, never 0."""
    at_least = "≥ " if figures.lower_bound else ""
    parts = [
        f"step {figures.step}/{figures.steps_total}" if figures.steps_total else f"step {figures.step}",
        _part("loss {:.3f}", figures.loss),
        _part("{:,.0f} tok/s", figures.tokens_per_second),
        _part("MFU {:.1%}", figures.mfu),
        _part("{:.1f} W", figures.watts),
        _part(at_least + "{:.3g} mJ/token", figures.joules_per_token, 1e3),
        _part(at_least + "{:.3g} mgCO2e", figures.grams_co2e, 1e3),
        f"joules {figures.method}",
        _part("ETA {:.0f} s", figures.eta_s) if figures.eta_s else "",
    ]
    return "  ".join(part for part in parts if part)


def _part(form: str, value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)
