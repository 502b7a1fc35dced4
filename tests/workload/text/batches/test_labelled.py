import json

import numpy as np
import pytest

from efftrain.workload.text.batches.labelled import LabelledTexts, labelled_batch, labelled_validation_batches
from efftrain.workload.text.batches.mixture import deal
from efftrain.workload.text.config import DataError, Source, TextConfig
from efftrain.workload.text.corpus import prepare
from efftrain.workload.text.encoding.tokenizer import END_OF_TEXT, load_tokenizer

DOCUMENTS = [[i + 1] * (i % 7) + [0] for i in range(40)]  # a token says which document it is in; 0 ends it
TEXTS = LabelledTexts(
    np.array([token for document in DOCUMENTS for token in document], dtype=np.uint16),
    np.cumsum([0, *map(len, DOCUMENTS)]),
    np.array([i % 3 for i in range(40)], dtype=np.int32),
)
SETTINGS = {"seed": 4, "seq_len": 5}


def padded(document):
    """In plain lists: padded with 0, or cut with the end of the text kept."""
    return document + [0] * (5 - len(document)) if len(document) <= 5 else [*document[:4], 0]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 6), (2, 3), (3, 2)])
def test_batches_are_the_documents_in_the_order_dealt(ranks, batch_size):
    for step in range(14):
        for rank in range(ranks):
            place = {"step": step, "rank": rank, "world_size": ranks, "batch_size": batch_size}
            tokens, lengths, labels = labelled_batch([TEXTS], **place, **SETTINGS)
            _, order = deal((40,), (1,), seed=4, **place)
            assert tokens.tolist() == [padded(DOCUMENTS[i]) for i in order]
            assert lengths.tolist() == [min(5, len(DOCUMENTS[i])) for i in order]
            assert labels.tolist() == [i % 3 for i in order]
            assert {tokens.dtype, lengths.dtype, labels.dtype} == {np.dtype(np.int64)}


def test_an_epoch_holds_every_document_once():
    labels = [
        labelled_batch([TEXTS], step=step, rank=0, world_size=1, batch_size=8, **SETTINGS)[2] for step in range(5)
    ]
    assert np.bincount(np.concatenate(labels)).tolist() == [14, 13, 13]


def test_a_batch_larger_than_the_text():
    with pytest.raises(DataError, match="too short: 40 documents, and one batch needs 41"):
        labelled_batch([TEXTS], step=0, rank=0, world_size=1, batch_size=41, **SETTINGS)


def test_validation_is_fixed_and_spread():
    found = list(labelled_validation_batches([TEXTS], batches=3, batch_size=4, seq_len=5))
    assert [len(labels) for _, _, labels in found] == [4, 4, 4]
    tokens = np.concatenate([batch[0] for batch in found])
    assert tokens.tolist() == [padded(DOCUMENTS[i * 40 // 12]) for i in range(12)]
    found = list(labelled_validation_batches([TEXTS, TEXTS], weights=(1, 3), batches=1, batch_size=8, seq_len=5))
    assert found[0][0].tolist() == [padded(DOCUMENTS[i]) for i in (0, 0, 6, 13, 20, 20, 26, 33)]


def jsonl(path, records):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in records))
    return TextConfig(sources=(Source(path=str(path)),), label_column="label")


def test_documents_are_found_again_with_their_classes(tmp_path):
    records = [(f"review {i} is about {i * i}", ["bad", "good", "so so"][i % 3]) for i in range(60)]
    made = prepare(jsonl(tmp_path / "reviews.jsonl", records), 300, cache=tmp_path / "cache")
    assert made.classes == ("bad", "good", "so so")
    assert made.as_dict()["classes"] == ["bad", "good", "so so"]
    tokenizer = load_tokenizer(made.tokenizer_path)
    found = []
    for part, tokens in (("train", made.train_tokens), ("validation", made.validation_tokens)):
        (texts,) = made.labelled(part)
        assert texts.offsets[-1] == tokens
        for start, stop, label in zip(texts.offsets, texts.offsets[1:], texts.labels, strict=False):
            assert texts.tokens[stop - 1] == made.end_id
            found.append((tokenizer.decode(texts.tokens[start : stop - 1].tolist()), made.classes[label]))
    assert sorted(found) == sorted(records)
    (made.folder / "validation-labels.bin").write_bytes(b"")
    assert prepare(jsonl(tmp_path / "reviews.jsonl", records), 300, cache=tmp_path / "cache") == made
    assert (made.folder / "validation-labels.bin").stat().st_size == 4 * 3


def test_classes_that_cannot_be_learnt(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl: one class in `label`"):
        prepare(jsonl(tmp_path / "a.jsonl", [("a", "x"), ("b", "x"), ("c", "x")]), 300, cache=tmp_path / "cache")
    common = [(f"text {i}", "x" if i % 2 else "y") for i in range(40)]
    first = prepare(jsonl(tmp_path / "a.jsonl", common), 300, cache=tmp_path / "cache")
    decoded = load_tokenizer(first.tokenizer_path).decode(first.validation.tolist(), skip_special_tokens=False)
    rare = [(text, "rare" if text in decoded.split(END_OF_TEXT) else label) for text, label in common]
    assert sum(label == "rare" for _, label in rare) == 2
    with pytest.raises(DataError, match=r"a\.jsonl: class 'rare' in `label` has 2 documents, all held out"):
        prepare(jsonl(tmp_path / "a.jsonl", rare), 300, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="read without a label column"):
        prepare(TextConfig(sources=(Source(path=str(tmp_path / "a.jsonl")),)), 300, cache=tmp_path / "c").labelled(
            "train"
        )
