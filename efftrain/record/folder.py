"""Where a study keeps what: one folder, readable by anybody, complete at every moment."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Paths inside a study's folder."""

    root: Path

    @property
    def study(self) -> Path:
        """The study's record."""
        return self.root / "study.json"

    def run(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.root / "runs" / run_id

    def journal(self, run_id: str) -> Path:
        """Journal of one run."""
        return self.run(run_id) / "journal.jsonl"

    def record(self, run_id: str) -> Path:
        """Record of one run."""
        return self.run(run_id) / "run.json"

    def ranks(self, run_id: str) -> list[Path]:
        """Journals of the other ranks of a run on the same machine, which hold their steps alone."""
        return sorted(self.run(run_id).glob("rank-*.jsonl"))

    def attempts_folder(self, run_id: str) -> Path:
        """Where the journals of a run's earlier attempts are."""
        return self.run(run_id) / "attempts"

    def attempt(self, run_id: str, number: int, *, rank: str | None = None) -> Path:
        """Journal of an earlier attempt, counted from 1, or of one of its other ranks, by the rank's file stem."""
        return self.attempts_folder(run_id) / (f"{number}.jsonl" if rank is None else f"{number}-{rank}.jsonl")

    def attempts(self, run_id: str) -> list[Path]:
        """Journals of a run's earlier attempts, in order."""
        found = [path for path in self.attempts_folder(run_id).glob("*.jsonl") if path.stem.isdecimal()]
        return sorted(found, key=lambda path: int(path.stem))

    def attempt_ranks(self, attempt: Path) -> list[Path]:
        """Journals of the other ranks of an earlier attempt."""
        return sorted(attempt.parent.glob(f"{attempt.stem}-rank-*.jsonl"))

    def checkpoints(self, run_id: str) -> Path:
        """Where a run's checkpoints are."""
        return self.run(run_id) / "checkpoints"

    def log(self, run_id: str) -> Path:
        """What the run's process printed."""
        return self.run(run_id) / "log.txt"

    def weights(self, run_id: str) -> Path:
        """What a teacher leaves for its student."""
        return self.run(run_id) / "weights.pt"

    def run_ids(self) -> list[str]:
        """Runs that left a journal, in alphabetical order."""
        runs = self.root / "runs"
        begun = {path.parent.name for path in runs.glob("*/journal.jsonl")}
        return sorted(begun | {path.parent.parent.name for path in runs.glob("*/attempts/*.jsonl")})

    def holds_study(self) -> bool:
        """Whether there is a study here, whole or cut off."""
        return self.study.exists() or bool(self.run_ids())


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
