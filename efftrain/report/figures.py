"""Which figures of a run are shown and exported, and under which names.

The keys are the column names of `runs.csv`; scripts rely on them, so a key is never changed, only joined by others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from efftrain.record.quantities import Quantity
from efftrain.record.schema import Run
from efftrain.report.format import figure, percent


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a run.

    Attributes:
        label: its name in reports.
        take: how to take it from a record.
        suffix: unit at the end of its column's name in `runs.csv`; empty where the key says it.
        share: whether it is written as a percentage.
        digits: significant digits.
    """

    label: str
    take: Callable[[Run], Quantity]
    suffix: str = ""
    share: bool = False
    digits: int = 3

    def text(self, quantity: Quantity, *, interval: bool = True) -> str:
        """The figure as reports write it."""
        if self.share:
            return percent(quantity, interval=interval)
        return figure(quantity, interval=interval, digits=self.digits)


FIGURES: dict[str, Figure] = {
    "energy_per_token": Figure("energy per token", lambda r: r.energy.per_token, "j"),
    "energy_total": Figure("energy", lambda r: r.energy.total, "j"),
    "energy_idle": Figure("idle energy in it", lambda r: r.energy.idle, "j"),
    "energy_above_idle": Figure("energy above idle", lambda r: r.energy.above_idle, "j"),
    "final_validation": Figure("final validation loss", lambda r: r.loss.final_validation, "nat", digits=4),
    "perplexity": Figure("validation perplexity", lambda r: r.loss.perplexity),
    "tokens_per_second": Figure("tokens per second", lambda r: r.time.tokens_per_second),
    "time_step": Figure("time of a step", lambda r: r.time.step, "s"),
    "time_total": Figure("time", lambda r: r.time.total, "s"),
    "peak_memory": Figure("peak memory", lambda r: r.memory.peak, "bytes"),
    "predicted_peak_memory": Figure("predicted peak memory", lambda r: r.memory.predicted_peak, "bytes"),
    "process_peak_memory": Figure("peak memory of the process", lambda r: r.memory.process_peak, "bytes"),
    "mfu": Figure("MFU", lambda r: r.flops.mfu, share=True),
    "hfu": Figure("HFU", lambda r: r.flops.hfu, share=True),
    "model_flops_per_step": Figure("model FLOPs of a step", lambda r: r.flops.model_per_step),
    "hardware_flops_per_step": Figure("hardware FLOPs of a step", lambda r: r.flops.hardware_per_step),
    "carbon_operational": Figure("CO₂e of the energy", lambda r: r.carbon.operational, "g"),
    "carbon_embodied": Figure("CO₂e embodied", lambda r: r.carbon.embodied, "g"),
    "carbon_total": Figure("CO₂e", lambda r: r.carbon.total, "g"),
    "carbon_per_token": Figure("CO₂e per token", lambda r: r.carbon.per_token, "g"),
}
