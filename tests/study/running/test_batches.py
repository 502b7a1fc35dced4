"""What a run says where its validation cannot be as large as it was asked to be."""

import dataclasses
import json
from pathlib import Path

import pytest

from efftrain.study.running.batches import corpus_batches, validation_shortage
from efftrain.training.config import RunConfig, Task
from efftrain.workload.text.config import Source, TextConfig
from efftrain.workload.text.corpus import Corpus, prepare
from tests.training.conftest import TINY


def _corpus(folder: Path, task: Task, weights: tuple[float, float]) -> Corpus:
    """2000 short documents and 60; about every twentieth is held out."""
    paths = [folder / "many.jsonl", folder / "few.jsonl"]
    for path, count in zip(paths, (2000, 60), strict=True):
        lines = [{"text": f"{path.stem} {i} of the texts, {i * i}", "label": "ab"[i % 2]} for i in range(count)]
        path.write_text("\n".join(map(json.dumps, lines)))
    sources = tuple(Source(path=str(path), weight=weight) for path, weight in zip(paths, weights, strict=True))
    text = TextConfig(sources=sources, label_column="label" if task == "classification" else None)
    return prepare(text, 300, masked=task == "masked", cache=folder / "cache", workers=1)


def _config(task: Task) -> RunConfig:
    classes = 2 if task == "classification" else None
    model = dataclasses.replace(TINY, vocab_size=300, causal=task == "causal", num_classes=classes)
    return RunConfig(model=model, task=task, steps=6, batch_size=4, eval_batches=16)


@pytest.mark.parametrize("task", ["causal", "masked", "classification"])
def test_a_small_source_with_a_large_share_is_said(task: Task, tmp_path: Path) -> None:
    corpus, config = _corpus(tmp_path, task, (1, 3)), _config(task)
    rows = sum(len(batch.inputs) for batch in corpus_batches(corpus, config).validation())
    assert rows < 16 * 4
    said = validation_shortage(corpus, config)
    assert said is not None
    kind = "documents" if task == "classification" else "sequences"
    assert said.startswith(f"validation reads {rows} {kind} instead of 64, each once: few.jsonl holds out ")
    assert "a share of 75.00%" in said


@pytest.mark.parametrize("task", ["causal", "classification"])
def test_enough_of_each_source_is_nothing_to_be_said(task: Task, tmp_path: Path) -> None:
    corpus, config = _corpus(tmp_path, task, (2000, 60)), _config(task)
    assert sum(len(batch.inputs) for batch in corpus_batches(corpus, config).validation()) == 64
    assert validation_shortage(corpus, config) is None
