"""The figures of the progress line, while the run goes on.

Journal lines are fed one by one as they are written. Joules are billed by the same ledger and the same windows as in
the record, so that the line and the report agree; rates are of the last two seconds, so that they follow the run.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from efftrain.meters.carbon.footprint import run_carbon
from efftrain.meters.energy.ledger import Ledger
from efftrain.meters.phases import duration_s
from efftrain.meters.ranks import of_all_ranks
from efftrain.meters.utilization import cost_stages, peak_rate, utilization, work_done
from efftrain.meters.windows import Window, billed
from efftrain.record.journal import Line
from efftrain.record.quantities import Method, Quantity

RECENT_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFigures:
    """What the progress line shows; None where it is not known (yet).

    Attributes:
        step: the last finished step, counted from 1; 0 before.
        steps_total: steps that the configuration asks for.
        loss: last training loss in nat/token.
        validation_loss: last validation loss in nat/token.
        tokens_per_second: over the steps of the last two seconds.
        mfu: over the same steps.
        watts: over the last two seconds, of all sensors that were read in them.
        joules: energy on the bill so far.
        joules_per_token: energy on the bill so far over tokens trained.
        grams_co2e: of that energy, and of the hardware over that time.
        eta_s: time left in s, at the pace of the run so far, evaluations included.
        method: the weakest method among the joules; `missing` where there are none.
        lower_bound: whether a part of the joules is missing.
    """

    step: int
    steps_total: int | None
    loss: float | None
    validation_loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    watts: float | None
    joules: float | None = None
    joules_per_token: float | None
    grams_co2e: float | None
    eta_s: float | None
    method: Method
    lower_bound: bool


class LiveMeter:
    """Takes journal lines as they are written, and tells the figures so far.

    Args:
        header: the journal's header line.
    """

    def __init__(self, header: Line) -> None:
        self._header = header
        self.ledger = Ledger(header, live=True)
        """What the sensors have read so far."""
        self._peak = peak_rate(header)
        self._spans: list[Line] = []
        self._costs: list[Line] = []
        self._recent: deque[Line] = deque()
        self._start: int | None = None
        self._end = 0
        self._now = 0
        self._tokens = 0
        self._made = 0  # a run that was resumed begins at a later step
        self._last: Line | None = None
        self._validation_loss: float | None = None

    def feed(self, line: Line) -> None:
        """Take one journal line; kinds that the progress line does not need are passed over."""
        self._now = max(self._now, line["t"])
        line = of_all_ranks(line, int(self._header.get("ranks", 1)))
        match line["kind"]:
            case "tick":
                self.ledger.feed(line)
            case "step":
                self._step(line)
            case "span":
                self._spans.append(line)
            case "cost":
                self._costs.append(line)
            case "evaluation":
                self._validation_loss = line["loss"]
            case _:
                pass

    def windows(self, until: int | None = None) -> list[Window]:
        """The billed stretches so far; before the first step, those before it.

        Args:
            until: while steps go on, the moment up to which they do, ns; the end of the last one if not given.
        """
        start, end = (self._now, self._now) if self._start is None else (self._start, max(self._end, until or 0))
        return billed(self._spans, start=start, end=end)

    def spans(self, name: str) -> list[Window]:
        """The spans of one name so far."""
        return [(span["t"], span["t_end"]) for span in self._spans if span["name"] == name]

    def grams_co2e(self, energy: Quantity, windows: Sequence[Window]) -> float | None:
        """CO2e in g of an energy used in `windows`, and of the hardware over that time."""
        totals = self.ledger.total
        return run_carbon(self._header, energy, windows, totals, tokens=self._tokens, model_flops=None).total.value

    def watts(self) -> float | None:
        """Power in W over the last two seconds, of all sensors that were read in them."""
        powers = [series.watts(self._now - RECENT_NS, self._now) for series in self.ledger.series.values()]
        present = [power for power in powers if power is not None]
        return sum(present) if present else None

    def figures(self) -> LiveFigures:
        """The figures at the last line."""
        windows = [] if self._start is None else self.windows()
        energy = self.ledger.total(windows)
        per_token = energy.value / self._tokens if energy.value is not None and self._tokens else None
        return LiveFigures(
            step=self._last["step"] if self._last else 0,
            steps_total=self._header["config"].get("steps"),
            loss=self._last["loss"] if self._last else None,
            validation_loss=self._validation_loss,
            tokens_per_second=self._tokens_per_second(),
            mfu=self._mfu(),
            watts=self.watts(),
            joules=energy.value,
            joules_per_token=per_token,
            grams_co2e=self.grams_co2e(energy, windows),
            eta_s=self._eta_s(),
            method=energy.method,
            lower_bound=energy.lower_bound,
        )

    def _step(self, line: Line) -> None:
        self._start = line["t"] if self._start is None else self._start
        self._end = max(self._end, line["t_end"])
        self._now = max(self._now, line["t_end"])
        self._tokens += line["tokens"]
        self._made += 1
        self._last = line
        self._recent.append(line)
        while len(self._recent) > 1 and self._recent[0]["t_end"] < line["t_end"] - RECENT_NS:
            self._recent.popleft()

    def _tokens_per_second(self) -> float | None:
        length = sum(duration_s(step) for step in self._recent)
        return sum(step["tokens"] for step in self._recent) / length if length else None

    def _mfu(self) -> float | None:
        work = work_done(cost_stages(self._costs), self._recent)
        return utilization(work, "model", self._recent, self._peak).value

    def _eta_s(self) -> float | None:
        total = self._header["config"].get("steps")
        if total is None or self._last is None or self._start is None:
            return None
        done = self._last["step"]
        return (self._end - self._start) / 1e9 / self._made * max(0, total - done)
