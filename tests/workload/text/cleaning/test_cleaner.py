"""Steps in order, in a stream, each with an account that adds up."""

import json
import sys
import unicodedata
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.cleaning.cleaner import Cleaner, normalise_control
from efftrain.workload.text.config import DataError, Document

LONG = " ".join(f"word{i}" for i in range(200))
DOCUMENTS = [
    Document(f"<p>{LONG}</p>", "a"),
    Document("write to ada@example.org\r\nor call +44 20 7946 0958", "b"),
    Document("<script>only()</script>", "c"),
    Document("\x00\x07"),
    Document(LONG.replace("word199", "last"), "d"),
    Document("plain", "e"),
]
STEPS = ("html", "control", "contacts", "near-duplicates")


def test_all_steps():
    cleaner = Cleaner(STEPS)
    assert list(cleaner.clean(DOCUMENTS)) == [
        (LONG, "a"), ("write to <EMAIL>\nor call <PHONE>", "b"), ("plain", "e"),
    ]  # fmt: skip
    length = [len(document.text) for document in DOCUMENTS]
    assert cleaner.report() == {
        "html": {"documents": 6, "changed": 1, "removed": 1, "characters": sum(length),
                 "characters_removed": 7 + length[2]},
        "control": {"documents": 5, "changed": 1, "removed": 1, "characters": sum(length) - 7 - length[2],
                    "characters_removed": 1 + 2},
        "contacts": {"documents": 4, "changed": 1, "removed": 0,
                     "characters": len(LONG) + length[1] - 1 + length[4] + 5, "characters_removed": 15 + 16 - 7 - 7,
                     "emails_masked": 1, "phones_masked": 1},
        "near-duplicates": {"documents": 4, "changed": 0, "removed": 1,
                            "characters": len(LONG) + length[1] - 1 - 17 + length[4] + 5,
                            "characters_removed": length[4]},
    }  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab<p>/&;\x00\r\n 1-@.c", max_size=40)), st.permutations(STEPS[:3]))
def test_accounts_add_up(texts, steps):
    cleaner = Cleaner(steps)
    given_documents = [Document(text) for text in texts if text.strip()]
    left = list(cleaner.clean(given_documents))
    accounts = list(cleaner.report().values())
    assert json.loads(json.dumps(accounts)) == accounts
    flow = [(len(given_documents), sum(len(text) for text, _ in given_documents))]
    for account in accounts:
        assert (account["documents"], account["characters"]) == flow[-1]
        flow.append((flow[-1][0] - account["removed"], flow[-1][1] - account["characters_removed"]))
    assert flow[-1] == (len(left), sum(len(text) for text, _ in left))


@settings(deadline=None)
@given(st.text())
def test_control_characters(text):
    cleaned = normalise_control(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in cleaned)
    assert [c for c in cleaned if c != "\n"] == [c for c in text if unicodedata.category(c) != "Cc" or c == "\t"]


def test_line_ends():
    assert normalise_control("a\r\nb\rc\n\nd\fe\vf\x85g\th\x1b[0m\x7f") == "a\nb\nc\n\nd\ne\nf\ng\th[0m"


def test_without_steps_nothing_changes():
    cleaner = Cleaner(())
    assert list(cleaner.clean(DOCUMENTS[:2])) == DOCUMENTS[:2]
    assert cleaner.report() == {}


def test_every_pass_begins_anew():
    cleaner = Cleaner(STEPS)
    first = list(cleaner.clean(DOCUMENTS)), cleaner.report()
    assert (list(cleaner.clean(DOCUMENTS)), cleaner.report()) == first


def test_documents_are_read_one_at_a_time():
    endless = (Document(f"number {i} " * i) for i in count(1))
    cleaner = Cleaner(STEPS[:3])
    assert len(list(islice(cleaner.clean(endless), 3))) == 3
    assert cleaner.report()["html"]["documents"] == 3


@pytest.mark.parametrize(("steps", "message"), [
    (("spelling",), "cleaning: no step 'spelling'; there are html, control, contacts, near-duplicates"),
    (("html", "html"), "cleaning: the step html stands twice"),
])  # fmt: skip
def test_bad_steps(steps, message):
    with pytest.raises(DataError, match=message):
        Cleaner(steps)


def test_a_missing_library_is_known_before_any_text_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"install efftrain\[data\]"):
        Cleaner(("near-duplicates",))
