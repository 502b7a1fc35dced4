import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.tokenizer import END_OF_TEXT, WordEncoder, load_tokenizer, train_tokenizer

TEXTS = ["def area(width, height):\n    return width * height\n" * 20, "naïve café, 東京 2024 — 12345 \t\x00\x7f"]
TOKENIZER = train_tokenizer(TEXTS, 300)

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 1\n\t.é東")


@settings(deadline=None)
@given(TEXT)
def test_decoding_gives_the_text_back(text):
    ids = WordEncoder(TOKENIZER).encode_document(text).tolist()
    assert ids[-1] == TOKENIZER.token_to_id(END_OF_TEXT)
    assert TOKENIZER.decode(ids[:-1], skip_special_tokens=False) == text


@settings(deadline=None)
@given(TEXT)
def test_word_by_word_is_the_tokenizers_own_encoding(text):
    assert WordEncoder(TOKENIZER).encode_document(text)[:-1].tolist() == TOKENIZER.encode(text).ids


def test_remembered_words_do_not_change_the_result():
    encoder = WordEncoder(TOKENIZER)
    first = [encoder.encode_document(text).tolist() for text in TEXTS]
    assert [encoder.encode_document(text).tolist() for text in TEXTS] == first


def test_long_runs_are_cut():
    assert WordEncoder(TOKENIZER).encode_document("東" * 1000)[:-1].tolist() == TOKENIZER.encode("東" * 1000).ids


def test_repeated_text_is_compressed():
    plain = TEXTS[0]
    assert len(WordEncoder(TOKENIZER).encode_document(plain)) < len(plain) / 2


def test_text_never_becomes_the_end_of_a_document():
    end = TOKENIZER.token_to_id(END_OF_TEXT)
    assert end == 0
    ids = WordEncoder(TOKENIZER).encode_document(f"a{END_OF_TEXT}b").tolist()
    assert ids.index(end) == len(ids) - 1


def test_the_vocabulary_is_at_most_what_was_asked_for():
    assert TOKENIZER.get_vocab_size() == 300
    assert train_tokenizer(["ab"], 300).get_vocab_size() < 300
    assert train_tokenizer(TEXTS, 257).get_vocab_size() == 257
    with pytest.raises(ValueError, match=r"vocab_size 256: .* at least 257"):
        train_tokenizer(TEXTS, 256)


def test_every_byte_has_an_entry():
    tokenizer = train_tokenizer(["a"], 257)
    text = "".join(chr(code) for code in range(0x800)) + "\U0010ffff"
    assert tokenizer.decode(WordEncoder(tokenizer).encode_document(text)[:-1].tolist()) == text


def test_a_saved_tokenizer_is_the_same(tmp_path):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(str(path))
    text = f"x{END_OF_TEXT}y café"
    loaded = WordEncoder(load_tokenizer(path))
    assert loaded.encode_document(text).tolist() == WordEncoder(TOKENIZER).encode_document(text).tolist()


def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    code = f"""
from efftrain.workload.text.tokenizer import train_tokenizer
print(train_tokenizer({TEXTS!r}, 300).to_str(), end="")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    assert run.stdout == TOKENIZER.to_str()
