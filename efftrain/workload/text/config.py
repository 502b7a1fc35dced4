"""Which text a run reads and what is done to it before it becomes tokens, as typed data without torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

CleaningStep = Literal["html", "control", "contacts", "near-duplicates"]
"""`html`: markup stripped; `control`: control characters; `contacts`: e-mail addresses and phone numbers masked;
`near-duplicates`: documents that all but repeat an earlier one are left out."""


class DataError(ValueError):
    """Text that cannot be trained on; the message is one line that names the file and what it needs."""


class Document(NamedTuple):
    """A piece of text that stands for itself, and its class where the source tells one."""

    text: str
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file or folder, and how often it is drawn from.

    Attributes:
        path: a .txt, .jsonl or .parquet, a Hugging Face dataset folder, or a folder of the first three.
        weight: share of the sequences that come from it, relative to the other sources' weights.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise DataError(f"{self.path}: a source's weight must be above 0, not {self.weight:g}")

    @property
    def file(self) -> Path:
        """`path` as a Path."""
        return Path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text of a run.

    Attributes:
        sources: where it comes from; none is the standard library of the running Python.
        column: field of a .jsonl, or column of a table, that holds the text.
        label_column: the one that holds the class of each document, where documents are to be classified.
        cleaning: what is done to each document, in this order.
        tokenizer: a tokenizer.json to encode with; None: one is trained on the text.
    """

    sources: tuple[Source, ...] = ()
    column: str = "text"
    label_column: str | None = None
    cleaning: tuple[CleaningStep, ...] = ()
    tokenizer: str | None = None
