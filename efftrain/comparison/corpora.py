"""What runs were trained on, and in what it differs.

The files are not all: how they are mixed, cleaned, encoded and cut decides which tokens a model sees, and what the loss
of one of them is. A record of an older version does not tell all of that, and a training that efftrain did not lead
tells nothing; what a record does not tell is held against nobody.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from efftrain.record.schema import Run

_Facts = Mapping[str, Any]
_Read = Callable[[_Facts, _Facts], Any]
_SHORT: Final = 12
_NAMED: Final = 3

# Each fact from `environment.corpus` and the configuration; a KeyError where the record does not tell it.
_CAUSES: Final[dict[str, _Read]] = {
    "text": lambda corpus, _: corpus["sha256"][:_SHORT],
    "shares of the sources": lambda corpus, _: [round(source["weight"], 6) for source in corpus["sources"]],
    "text column": lambda corpus, _: corpus["column"],
    "label column": lambda corpus, _: corpus["label_column"],
    "cleaning": lambda corpus, _: list(corpus["cleaning"]),
    "tokenizer": lambda corpus, _: corpus["tokenizer_sha256"][:_SHORT],
    "vocabulary": lambda corpus, _: corpus["vocab_size"],
    "sequence length": lambda _, config: config["model"]["seq_len"],
    "task": lambda _, config: config["task"],
}
_CONSEQUENCES: Final[dict[str, _Read]] = {
    "training tokens": lambda corpus, _: corpus["train_tokens"],
    "validation tokens": lambda corpus, _: corpus["validation_tokens"],
}
"""Looked at where no cause differs: for what no fact tells, another version of efftrain's encoding, say."""


def corpus_of(run: Run) -> dict[str, Any]:
    """What the record says of the run's text; nothing where it names none."""
    corpus = run.environment.get("corpus")
    return corpus if isinstance(corpus, dict) else {}


def differences(runs: Sequence[Run]) -> list[str]:
    """Each fact in which the data of runs differ, with its values and the variants that have them."""
    return _differing(runs, _CAUSES) or _differing(runs, _CONSEQUENCES)


def _differing(runs: Sequence[Run], facts: Mapping[str, _Read]) -> list[str]:
    found = []
    for fact, read in facts.items():
        variants: dict[str, list[str]] = {}
        for run in runs:
            value = _told(read, run)
            if value is not None and run.variant not in variants.setdefault(value, []):
                variants[value].append(run.variant)
        if len(variants) > 1:
            found.append(f"{fact}: " + " | ".join(f"{value} ({_names(who)})" for value, who in variants.items()))
    return found


def _told(read: _Read, run: Run) -> str | None:
    """A fact in words; None where the record does not tell it."""
    try:
        value = read(corpus_of(run), run.config)
    except (KeyError, TypeError):
        return None
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _names(variants: Sequence[str]) -> str:
    more = len(variants) - _NAMED
    return ", ".join(variants[:_NAMED]) + (f" and {more} more" if more > 0 else "")
