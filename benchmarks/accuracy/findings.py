"""All that came out, as a page for readers and as files for machines."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from accuracy.rows import Row
from accuracy.scenarios import SCENARIOS
from accuracy.table import Target, lines, markdown, targets

LIMITS = {scenario.name: scenario.limit for scenario in SCENARIOS if scenario.limit}

_INTRODUCTION = """\
Simulated boards of known power, read by unmodified tools through the real nvidia-ml-py: {versions}.
Made with `{command}`; each window of each tool stands in accuracy.csv.

Errors are medians of |value/truth − 1| in %, over n windows of a length within 10 % of the one named, at random
times; a tool that raised or gave nothing is 100 % off. The truth is that of the tool's own window, to the
microsecond. Counters tick every 100 ms, power readings are means over 1 s (`nvmlDeviceGetPowerUsage`) and 25 ms (the
field POWER_INSTANT), as on an H100; ticks of a square wave's period are those of the counter. codecarbon finds a stub
of nvidia-smi on PATH, without which it reads no GPU. carbontracker polls once a second, so its short windows may hold
no reading of their own.
"""
_LIMITS = """\
A counter that looks at its board for a part of the time only, always at the same moment of a load that repeats, cannot
tell what it did not see, and nothing in its readings shows that. No part of the targets:"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured, and with what.

    Attributes:
        rows: every window of every tool.
        sampler_core_share: CPU time of sampling eight boards, as a share of one core.
        versions: of all that took part.
        command: what made them.
    """

    rows: Sequence[Row]
    sampler_core_share: float
    versions: dict[str, str]
    command: str

    @property
    def targets(self) -> list[Target]:
        """Promises and outcomes, over the scenarios that count."""
        return targets([row for row in self.rows if row.scenario not in LIMITS])

    def text(self) -> str:
        """The page, in Markdown."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        table = lines(self.rows)
        sections = [
            "# How exact is a joule?", "", _INTRODUCTION.format(versions=versions, command=self.command),
            *markdown([line for line in table if line.scenario not in LIMITS]), "",
            *(f"- {'met' if t.met else '**missed**'}: {t.promise}: {t.outcome}" for t in self.targets),
            f"- sampling eight boards took {self.sampler_core_share:.2%} of one core", "",
            "## Where no reader can know better", "", _LIMITS,
            *(f"{name}: {why}." for name, why in LIMITS.items()), "",
            *markdown([line for line in table if line.scenario in LIMITS]),
        ]  # fmt: skip
        return "\n".join(sections)

    def write(self, folder: Path) -> None:
        """Write accuracy.md, accuracy.csv and accuracy.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "accuracy.md").write_text(self.text() + "\n")
        self._write_csv(folder / "accuracy.csv")
        facts = {
            "command": self.command, "versions": self.versions, "sampler_core_share": self.sampler_core_share,
            "targets": [asdict(target) for target in self.targets],
            "lines": [asdict(line) for line in lines(self.rows)],
        }  # fmt: skip
        (folder / "accuracy.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*(f.name for f in fields(Row)), "error"], lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                known = {**asdict(row), "error": row.error}
                writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in known.items()})
