"""Joules or grams that a run may use: whether they leave room for another step.

The run reads its own journal, through the meter of the progress line, whose bill is that of the report. Sensors are
read behind the run, so what they have not told yet is put in at the latest power. What has to be paid before the next
question can be asked is set aside: the steps until then, a checkpoint and an evaluation that are due, and the last
evaluation. A run thus ends at or below its budget, by less than the steps between two questions.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from efftrain.meters.windows import Window, clip, seconds
from efftrain.record.journal import Clock, JournalTail, Line
from efftrain.training.config import HorizonConfig

if TYPE_CHECKING:
    from efftrain.meters.live import LiveMeter

READ_NS: Final = 250_000_000
"""Time between two looks into the journal while the budget is far."""

RECENT_NS: Final = 10_000_000_000
"""Over which the latest power is taken."""

PATIENCE_NS: Final = 5_000_000_000
"""Time in steps after which sensors that have told nothing are taken to be silent."""

FORWARD_SHARE: Final = 1 / 3
"""Of a training step: the backward pass does twice the FLOPs of the forward pass (arXiv:2204.02311, appendix B)."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """One budget: the option that set it, what is left of it in its unit, and J for one of these."""

    option: str
    unit: str
    left: float
    joules_per_unit: float

    @property
    def joules(self) -> float:
        return self.left * self.joules_per_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """What was known at one look: J used until `at` (ns), W since, J that may be used, and s of each kind of work."""

    at: int
    joules: float
    watts: float
    limit: float
    step_s: float
    evaluation_s: float
    checkpoint_s: float

    def exceeded(self, now: int, ahead_s: float) -> bool:
        """Whether `ahead_s` of work more than there was by `now` are more than the limit allows."""
        return self.joules + self.watts * ((now - self.at) / 1e9 + ahead_s) > self.limit


class Budget:
    """Watches a run's bill against `--max-joules` and `--max-gco2e`.

    Args:
        journal: of the run, which is being written.
        config: the limits; without any, nothing is ever read.
        flush: brings what was recorded so far into the file.
        note: told, once each, what a reader must know: that a bill is a lower bound, or that there is none.
        joules_before: J on the bill of the run's earlier attempts.
        grams_before: g of CO2e of these.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, journal: Path, config: HorizonConfig, flush: Callable[[], None], *,
        note: Callable[[str], None] = lambda text: None, joules_before: float = 0.0, grams_before: float = 0.0,
        clock: Clock = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self._tail, self._flush, self._note, self._clock = JournalTail(journal), flush, note, clock
        self._config, self._joules_before, self._grams_before = config, joules_before, grams_before
        self._option = "--max-joules" if config.max_joules is not None else "--max-gco2e"
        self._meter: LiveMeter | None = None
        self._settings: dict[str, Any] = {}
        self._machines = 1
        self._durations: deque[float] = deque(maxlen=64)
        self._ticking: set[str] = set()
        self._late: dict[str, int] = {}
        """ns by which a counter's last update may have been seen late: its joules are of less time than it seems."""
        self._step, self._first_ns = 0, 0
        self._looked: int | None = None
        self._pace: _Pace | None = None
        self._said: set[str] = set()
        self._broken = False

    @property
    def watching(self) -> bool:
        """Whether there is a limit at all."""
        return self._config.max_joules is not None or self._config.max_gco2e is not None

    def spent(self) -> bool:
        """Whether no other step, with the evaluations before and after it, has room in the budget."""
        now = self._clock()
        if self._broken or not self.watching:
            return False
        if self._looked is not None and now - self._looked < READ_NS and not self._is_near(now):
            return False
        try:
            self._look()
        except Exception as error:  # a fault of ours must not end a training
            self._broken = True
            self._say(f"{self._option} cannot be kept: {error or type(error).__name__}; training goes on without it")
            return False
        return self._pace is not None and self._pace.exceeded(self._clock(), self._ahead_s(self._pace))

    def first_step_refusal(self, steps: int = 1) -> str | None:
        """Why the budget does not hold the first step and the evaluation that ends a training, in one line.

        None where it does, or where nothing is known.

        Args:
            steps: that the last `warmup` span in the journal holds.
        """
        if not self.watching:
            return None
        self._look()
        warm = self._meter.spans("warmup")[-1:] if self._meter else []
        watts = self._power(clip(warm, self._until() or 0)) if warm else None
        if self._meter is None or watts is None:
            return None
        step_s, before = seconds(warm) / steps, self._joules(self._meter.windows())
        one = watts * (step_s + self._evaluation_s(self._meter, step_s))
        for limit in self._limits(warm):
            if before + one > limit.joules:
                per, unit = limit.joules_per_unit, limit.unit
                spent = f", and {before / per:.3g} {unit} went before them" if before else ""
                return (
                    f"{limit.option}: one step of this model and an evaluation take about {one / per:.3g} {unit}"
                    f"{spent}; {max(limit.left, 0.0):.3g} {unit} are left of the budget"
                )
        return None

    def _is_near(self, now: int) -> bool:
        """Whether the budget might be spent by what was known at the last look, were everything due."""
        pace = self._pace
        if pace is None:
            return False
        return pace.exceeded(now, self._steps_s(pace) + 2 * pace.evaluation_s + pace.checkpoint_s)

    def _ahead_s(self, pace: _Pace) -> float:
        """Seconds of work that go on the bill, if training goes on, before it can end."""
        every, keep_every = self._settings.get("eval_every"), self._settings.get("checkpoint_every")
        evaluating, keeping = (bool(n) and self._step % n == 0 for n in (every, keep_every))
        return self._steps_s(pace) + (1 + evaluating) * pace.evaluation_s + keeping * pace.checkpoint_s

    def _steps_s(self, pace: _Pace) -> float:
        """Seconds of the steps until the loop asks again."""
        return self._settings.get("log_every", 1) * pace.step_s

    def _look(self) -> None:
        """Read what is new, and take stock."""
        self._flush()
        for line in self._tail.read():
            self._take(line)
        self._looked = now = self._clock()
        if self._meter is not None:
            self._pace = self._take_stock(self._meter, now)
            self._say_if_silent(self._meter, now)

    def _take(self, line: Line) -> None:
        if line["kind"] == "header":
            from efftrain.meters.live import LiveMeter  # needs pydantic, without which runs can be made

            self._meter, self._settings = LiveMeter(line), line["config"]
            # Others change all the time: a reading of theirs is not late.
            self._ticking = {info["name"] for info in line["sensors"] if info.get("tick_s") != 0}
            absent = "; ".join(f"{part['component']}: {part['why']}" for part in line["absent"])
            self._machines = line.get("hosts", 1)
            if self._machines > 1:
                self._say(
                    f"{self._option}: each of the {self._machines} machines is taken to use what the first one does"
                )
            if absent:
                self._say(f"{self._option} counts what can be read; not read here: {absent}")
        elif self._meter is not None:
            self._meter.feed(line)
            if line["kind"] == "tick" and "since" in line and line["sensor"] in self._ticking:
                self._late[line["sensor"]] = line["t"] - line["since"]
            if line["kind"] == "step":
                self._step, self._first_ns = line["step"], self._first_ns or line["t"]
                self._durations.append((line["t_end"] - line["t"]) / 1e9)

    def _take_stock(self, meter: "LiveMeter", now: int) -> _Pace | None:
        until = self._until()
        if not self._durations or until is None:
            return None
        windows = meter.windows(now)
        known = clip(windows, until)
        watts, limits = self._power(known), self._limits(known)
        if watts is None or not limits:
            return None
        step_s, checkpoints = fmean(self._durations), meter.spans("checkpoint")
        unread_s = seconds(windows) - seconds(known) + max(self._late.values(), default=0) / 1e9
        return _Pace(
            at=now, joules=self._joules(known) + watts * unread_s, watts=watts,
            limit=min(limit.joules for limit in limits), step_s=step_s,
            evaluation_s=self._evaluation_s(meter, step_s),
            checkpoint_s=seconds(checkpoints) / len(checkpoints) if checkpoints else 0.0,
        )  # fmt: skip

    def _evaluation_s(self, meter: "LiveMeter", step_s: float) -> float:
        """Seconds of an evaluation: the mean so far, or what the forward passes of a step say before the first one."""
        done = meter.spans("evaluate")
        if done:
            return seconds(done) / len(done)
        micros = self._settings.get("eval_batches", 0) / self._settings.get("grad_accumulation", 1)
        return step_s * micros * FORWARD_SHARE

    def _until(self) -> int | None:
        """The moment, ns, up to which all sensors that tell anything have been read."""
        series = self._meter.ledger.series.values() if self._meter else ()
        return min((t for each in series if (t := each.until) is not None), default=None)

    def _power(self, windows: list[Window]) -> float | None:
        """Latest power in W in windows; where they are too short, that of the last seconds, whatever was done then."""
        assert self._meter is not None
        latest = max((end for _, end in windows), default=0) - RECENT_NS
        recent = [(max(start, latest), end) for start, end in windows if end > latest]
        length, joules = seconds(recent), self._joules(recent)
        if joules and length >= READ_NS / 1e9:
            return joules / length
        watts = self._meter.watts()
        return None if watts is None else watts * self._machines

    def _joules(self, windows: list[Window]) -> float:
        """Energy of all machines in J, each taken to use what the first one does; 0 where nothing is known."""
        assert self._meter is not None
        return (self._meter.ledger.total(windows).value or 0.0) * self._machines

    def _limits(self, windows: list[Window]) -> list[_Limit]:
        """The budgets in J; grams by what the energy of `windows` caused."""
        assert self._meter is not None
        found: list[_Limit] = []
        joules, grams = self._config.max_joules, self._config.max_gco2e
        if joules is not None:
            found.append(_Limit(f"--max-joules {joules:g}", "J", joules - self._joules_before, 1.0))
        if grams is not None:
            energy = self._meter.ledger.total(windows)
            caused = self._meter.grams_co2e(energy, windows)
            if energy.value and caused:
                left = grams - self._grams_before
                found.append(_Limit(f"--max-gco2e {grams:g}", "g", left, energy.value / caused))
        return found

    def _say_if_silent(self, meter: "LiveMeter", now: int) -> None:
        silent = self._pace is None and bool(self._first_ns) and now - self._first_ns > PATIENCE_NS
        if not meter.ledger.series or silent:
            why = "the sensors tell nothing" if meter.ledger.series else "this machine has no energy sensor"
            self._say(f"{self._option} cannot be kept: {why}; training goes on without it")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._note(text)
