import subprocess
import sys
from contextlib import ExitStack

import pytest

from efftrain.workload.text.config import DataError, Document
from efftrain.workload.text.encoding.texts import collect, sample


@pytest.fixture
def stored(tmp_path):
    """Makes texts of sources that are lists of strings or of (text, label)."""
    with ExitStack() as stack:

        def store(*sources, **settings):
            documents = [
                (i, Document(*((item,) if isinstance(item, str) else item)))
                for i, items in enumerate(sources)
                for item in items
            ]
            texts = collect(tmp_path, [f"source-{i}" for i in range(len(sources))], documents, **settings)
            stack.enter_context(texts.file)
            return texts

        yield store


def held(texts, source, part):
    return [texts.text(row) for row in texts.rows(source, part)]


def test_documents_are_kept_once_across_sources(stored):
    first, second = [f"a {i}" for i in range(40)], [f"b {i}" for i in range(20)]
    texts = stored([*first, first[3]], [first[5], *second, second[0], first[7]])
    for i, expected in enumerate((first, second)):
        train, validation = held(texts, i, "train"), held(texts, i, "validation")
        assert len(validation) == round(0.05 * len(expected))
        assert train == [text for text in expected if text not in validation]  # in order
    assert (texts.documents, texts.duplicates_removed) == ((40, 20), 4)
    assert int(texts.characters[texts.part >= 0].sum()) == sum(map(len, first + second))


def test_the_file_has_no_name(stored, tmp_path):
    stored(["one", "two"])
    assert list(tmp_path.iterdir()) == []


def test_the_only_document_of_a_source_is_cut_in_two(stored):
    text = "naïve 東京 " * 50
    texts = stored(["x", "y"], [text, text])
    (train,), (validation,) = held(texts, 1, "train"), held(texts, 1, "validation")
    assert train + validation == text
    assert len(validation) == round(0.05 * len(text))
    assert (texts.documents, texts.duplicates_removed) == ((2, 1), 1)


def test_classes_are_sorted_and_stay_with_their_documents(stored):
    texts = stored([(f"text {i}", "sat" if i % 3 else "fun") for i in range(30)], labelled=True)
    assert texts.classes == ("fun", "sat")
    for part in ("train", "validation"):
        for row in texts.rows(0, part):
            assert texts.classes[texts.label[row]] == ("sat" if int(texts.text(row).split()[1]) % 3 else "fun")


def test_sources_that_cannot_be_used(stored):
    with pytest.raises(DataError, match="source-1: is empty; training needs text"):
        stored(["a", "b"], [])
    with pytest.raises(DataError, match="source-1: repeats the sources before it"):
        stored(["a", "b"], ["b"])
    with pytest.raises(DataError, match="source-0: one document; to classify"):
        stored([("a", "x")], labelled=True)
    with pytest.raises(DataError, match="more than 10000 classes"):
        stored([(str(i), str(i)) for i in range(10_001)], labelled=True)


def test_the_tokenizer_learns_from_a_sample_of_the_whole(stored):
    texts = stored([chr(97 + i) * 1000 for i in range(20)])
    found = list(sample(texts, [1.0], 5000))
    assert 5000 * 0.8 <= sum(map(len, found)) <= 5000
    assert {text[0] for text in found[-2:]} & set("pqrst")
    assert list(sample(texts, [1.0], 10**6)) == held(texts, 0, "train")


def test_the_sample_is_weighted_as_the_mixture(stored):
    # Of 100 000 characters in 1000 documents a quarter is wanted, of 2000 in 20 three quarters: those are repeated.
    texts = stored([f"a{i:098d}\n" for i in range(1000)], [f"b{i:098d}\n" for i in range(20)])
    found = list(sample(texts, [1, 3], 20_000))
    counts = {letter: sum(len(text) for text in found if text[0] == letter) for letter in "ab"}
    # Shares are of the whole text, 5 % of which is held out.
    assert counts == {"a": pytest.approx(5000, rel=0.06), "b": pytest.approx(15_000, rel=0.06)}
    assert len({text for text in found if text[0] == "b"}) == 19


@pytest.mark.slow
def test_memory_is_some_bytes_a_document():
    code = """
import resource, tempfile
from pathlib import Path
from efftrain.workload.text.config import Document
from efftrain.workload.text.encoding.texts import collect
collect(Path(tempfile.gettempdir()), ["few"], ((0, Document(f"document {i}")) for i in range(1000)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
collect(Path(tempfile.gettempdir()), ["many"], ((0, Document(f"document {i}")) for i in range(1_000_000)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(run.stdout) < 120
