"""What the checks found, in words: whether each passed, and, where it did not, what is the case instead.

A check is named after what it expects (`steps_steady`). Beside a complaint that name would say the opposite of what was
found, so a flag that complains is headed by the finding: `warning: steps not steady`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from efftrain.record.schema import Check, Run

LABELS: Final = {
    "failed": "check failed:", "warning": "warning:", "passed": "check passed:", "skipped": "not checked:",
}  # fmt: skip

FINDINGS: Final = {
    "counter_against_power": "counter and power disagree",
    "devices_alone": "devices not alone",
    "energy_above_device_floor": "energy below the device's floor",
    "energy_complete": "energy not complete",
    "energy_measured": "energy not measured",
    "enough_seeds": "too few seeds",
    "hfu_at_least_mfu": "HFU below MFU",
    "idle_steady": "idle power not steady",
    "journal": "journal damaged",
    "loss_below_unigram_entropy": "loss above the unigram entropy",
    "memory_as_predicted": "memory not as predicted",
    "phase_lock": "a counter ticks in step with the training",
    "recompute_costs_energy": "recomputation seems to cost no energy",
    "run_complete": "run not complete",
    "same_corpus": "not the same data",
    "same_devices": "not the same devices",
    "same_tokens": "not the same number of tokens",
    "sensors_kept": "a sensor was lost",
    "steps_steady": "steps not steady",
    "tokens_per_parameter": "few tokens per parameter",
    "utilization_below_peak": "utilization above the peak rate",
}
"""What it means that a check did not pass."""

WEAKER: Final = {"utilization_below_peak": "utilization is an upper bound"}
"""What a warning means where that is something else than a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A check's outcome over the study or over the runs that share it.

    Attributes:
        check: its name in the record.
        status: as in the record.
        where: of which runs.
        detail: what was found, in full.
    """

    check: str
    status: str
    where: str
    detail: str

    @property
    def label(self) -> str:
        """How it came out."""
        return LABELS[self.status]

    @property
    def heading(self) -> str:
        """What is the case; what was expected, where that is so or could not be checked."""
        name = self.check.replace("_", " ")
        if self.status in ("passed", "skipped"):
            return name
        weaker = WEAKER.get(self.check) if self.status == "warning" else None
        return weaker or FINDINGS.get(self.check, f"not so: {name}")


def study_flags(checks: Iterable[Check]) -> list[Flag]:
    """One flag for each check on a study as a whole."""
    return [Flag(check=c.name, status=c.status, where="study", detail=c.detail) for c in checks]


def run_flags(runs: Sequence[Run]) -> list[Flag]:
    """One flag for each check and status: what the first run says, and how many others say the like.

    That a run did not end as planned is left out: `Overview.unfinished` says it of each.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run in runs:
        for check in run.checks:
            if (check.name, check.status) != ("run_complete", "failed"):
                groups.setdefault((check.name, check.status), []).append((run.run_id, check.detail))
    flags = []
    for (name, status), said in groups.items():
        first, detail = said[0]
        alike = all(other == detail for _, other in said)
        where = f"{len(said)} runs" if alike and len(said) > 1 else first
        others = len(said) - 1
        more = "" if alike else f" (and {others} run{'' if others == 1 else 's'} like it)"
        flags.append(Flag(check=name, status=status, where=where, detail=detail + more))
    return flags
