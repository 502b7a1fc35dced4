"""Text prepared twice with one thing changed: the check has to name that thing, and nothing else."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efftrain.comparison.checks import study_checks
from efftrain.record.schema import Check, Run
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import Corpus, prepare

Make = Callable[..., Run]
VOCAB = 300


def _file(path: Path, word: str) -> Path:
    lines = [{"text": f"<p>{word} {i} of {i * i}</p>", "body": f"{word}, {i}", "kind": "ab"[i % 2]} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def text(tmp_path: Path) -> TextConfig:
    paths = [_file(tmp_path / f"{word}.jsonl", word) for word in ("apples", "pears")]
    return TextConfig(sources=tuple(Source(path=str(path)) for path in paths))


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Corpus]:
    def make(text: TextConfig, **choices: Any) -> Corpus:
        return prepare(text, choices.pop("vocab", VOCAB), cache=tmp_path / "cache", workers=1, **choices)

    return make


def _check(make: Make, *corpora: Corpus, config: dict[str, Any] | None = None) -> Check:
    """Of a study whose baseline has the first corpus and whose other variant the last; `config` is the other's."""
    runs = []
    for variant, corpus in (("baseline", corpora[0]), ("other", corpora[-1])):
        run = make(variant=variant)
        facts = {**run.environment, "corpus": json.loads(json.dumps(corpus.as_dict()))}
        known = {**run.config, "task": "causal", "model": {"seq_len": 64}}
        known |= (config or {}) if variant == "other" else {}
        runs.append(run.model_copy(update={"environment": facts, "config": known}))
    return next(check for check in study_checks(runs, []) if check.name == "same_corpus")


def _reweighted(text: TextConfig) -> TextConfig:
    first, second = text.sources
    return dataclasses.replace(text, sources=(dataclasses.replace(first, weight=3.0), second))


def test_the_same_text_prepared_alike_passes(run_record: Make, text: TextConfig, prepared: Any, tmp_path: Path) -> None:
    corpus = prepared(text)
    elsewhere = prepare(text, VOCAB, cache=tmp_path / "another", workers=2)
    assert _check(run_record, corpus, elsewhere).status == "passed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_reweighted, ["shares of the sources: 0.5, 0.5 (baseline) | 0.75, 0.25 (other)"]),
        (lambda text: dataclasses.replace(text, cleaning=("html",)), ["cleaning: none (baseline) | html (other)"]),
        (lambda text: dataclasses.replace(text, column="body"), ["text column: text (baseline) | body (other)"]),
        (lambda text: dataclasses.replace(text, label_column="kind"), ["label column: none (baseline) | kind (other)"]),
    ],
)
def test_what_was_made_of_the_same_files_is_looked_at(
    run_record: Make, text: TextConfig, prepared: Any, change: Callable[[TextConfig], TextConfig], said: list[str]
) -> None:
    tokenizer = str(prepared(text).tokenizer_path)  # one for both, so that it is not another thing that differs
    given = dataclasses.replace(text, tokenizer=tokenizer)
    first, second = prepared(given), prepared(change(given))
    assert first.sha256 == second.sha256
    found = _check(run_record, first, second)
    assert found.status == "failed"
    assert found.detail.removeprefix("runs were trained on different data: ").split("; ")[:-1] == said


def test_another_tokenizer_is_other_data(run_record: Make, text: TextConfig, prepared: Any) -> None:
    found = _check(run_record, prepared(text), prepared(text, vocab=VOCAB - 20))
    assert found.status == "failed"
    assert "tokenizer: " in found.detail
    assert f"vocabulary: {VOCAB} (baseline) | {VOCAB - 20} (other)" in found.detail


def test_other_files_are_other_data(run_record: Make, text: TextConfig, prepared: Any, tmp_path: Path) -> None:
    first = prepared(text)
    _file(tmp_path / "pears.jsonl", "quinces")
    found = _check(run_record, first, prepared(text))
    assert found.status == "failed"
    assert "data: text: " in found.detail


@pytest.mark.parametrize(
    ("config", "said"),
    [({"model": {"seq_len": 32}}, "sequence length: 64 (baseline) | 32 (other)"),
     ({"task": "masked"}, "task: causal (baseline) | masked (other)")],
)  # fmt: skip
def test_how_the_tokens_are_used_is_looked_at(
    run_record: Make, text: TextConfig, prepared: Any, config: dict[str, Any], said: str
) -> None:
    found = _check(run_record, prepared(text), config=config)
    assert (found.status, said in found.detail) == ("failed", True)


def test_what_no_fact_explains_shows_in_the_number_of_tokens(run_record: Make, text: TextConfig, prepared: Any) -> None:
    corpus = prepared(text)
    found = _check(run_record, corpus, dataclasses.replace(corpus, train_tokens=corpus.train_tokens - 1))
    assert found.status == "failed"
    assert f"training tokens: {corpus.train_tokens} (baseline)" in found.detail


def test_what_an_older_record_does_not_tell_is_not_held_against_it(run_record: Make) -> None:
    runs = [run_record(), run_record(variant="other")]
    corpus = {**runs[1].environment["corpus"], "column": "text", "sources": [{"weight": 1.0}], "cleaning": {}}
    runs[1] = runs[1].model_copy(update={"environment": {**runs[1].environment, "corpus": corpus}})
    assert next(check for check in study_checks(runs, []) if check.name == "same_corpus").status == "passed"
