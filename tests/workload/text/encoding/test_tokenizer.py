import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efftrain.workload.text.config import DataError
from efftrain.workload.text.encoding import tokenizer as module
from efftrain.workload.text.encoding.tokenizer import (
    END_OF_TEXT,
    MASK,
    LibraryEncoder,
    WordEncoder,
    encoder,
    load_tokenizer,
    train_tokenizer,
    vocabulary,
)

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
from efftrain.workload.text.encoding.tokenizer import train_tokenizer
print(train_tokenizer({TEXTS!r}, 300).to_str(), end="")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    assert run.stdout == TOKENIZER.to_str()


def test_a_mask_token_where_one_is_needed():
    tokenizer = train_tokenizer(TEXTS, 300, masked=True)
    assert (tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(MASK), tokenizer.get_vocab_size()) == (0, 1, 300)
    assert TOKENIZER.token_to_id(MASK) is None
    found = WordEncoder(tokenizer).encode_document(f"a{MASK}b").tolist()
    assert 1 not in found
    assert tokenizer.decode(found[:-1]) == f"a{MASK}b"
    with pytest.raises(ValueError, match=r"vocab_size 257: .* at least 258"):
        train_tokenizer(TEXTS, 257, masked=True)


@pytest.fixture
def foreign(tmp_path):
    """Tokenizers of other families, padded and truncated as their authors left them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    def save(name, model, trainer, pre_tokenizer, special):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizer
        trainer = trainer(vocab_size=200, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(TEXTS, trainer)
        first, last = special[-2:]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
        )
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=64)
        tokenizer.save(str(tmp_path / name))
        return tmp_path / name

    return {
        "wordpiece": save(
            "wordpiece.json", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer,
            pre_tokenizers.BertPreTokenizer(), ["[UNK]", "[MASK]", "[CLS]", "[SEP]"],
        ),
        "unigram": save(
            "unigram.json", models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), ["<s>", "</s>"]
        ),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "end"), [("wordpiece", "[SEP]"), ("unigram", "</s>")])
def test_a_foreign_tokenizer_encodes_as_its_library_does(foreign, name, end):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(foreign[name]))
    reference.no_truncation()
    reference.no_padding()
    end_id = reference.token_to_id(end)
    expected = [[*reference.encode(text, add_special_tokens=False).ids, end_id] for text in TEXTS]
    encodes = encoder(foreign[name])
    assert isinstance(encodes, LibraryEncoder)
    ids, counts = encodes.encode(TEXTS)
    assert ids.tolist() == [i for document in expected for i in document]
    assert counts.tolist() == [len(document) for document in expected]
    known = vocabulary(encodes.tokenizer, foreign[name])
    assert (known.size, known.end_id) == (max(reference.get_vocab().values()) + 1, end_id)
    assert known.mask_id == reference.token_to_id("[MASK]")


def test_special_tokens_in_text_are_text_to_a_foreign_tokenizer_too(foreign):
    ids, _ = encoder(foreign["wordpiece"]).encode(["a [SEP] b [MASK]"])
    assert not {1, 3} & set(ids[:-1].tolist())
    with pytest.raises(DataError, match=r"unigram\.json: cannot encode this text: .*unknown token"):
        encoder(foreign["unigram"]).encode(["Ω"])


@pytest.mark.parametrize("masked", [False, True])
def test_our_own_tokenizers_are_recognised(tmp_path, masked):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(TEXTS, 300, masked=masked).save(str(path))
    assert isinstance(encoder(path), WordEncoder)


def test_files_that_are_no_tokenizers(tmp_path, foreign):
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        encoder(tmp_path / "none.json")
    damaged = tmp_path / "damaged.json"
    for content in (b"", b"{}", b"[1]", b"\xff\xfe", foreign["wordpiece"].read_bytes()[:-20]):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged\.json: not a tokenizer\.json") as found:
            encoder(damaged)
        assert "\n" not in str(found.value)
    damaged.write_text(foreign["unigram"].read_text().replace("</s>", "</end>"))
    with pytest.raises(DataError, match=r"damaged\.json: no token ends a text; expected one of <\|endoftext\|>"):
        encoder(damaged)


def test_forgotten_words_are_learnt_again(monkeypatch):
    monkeypatch.setattr(module, "_CACHED_WORDS", 5)
    word_encoder = WordEncoder(TOKENIZER)
    for text in [*TEXTS, "one two three four five six", *TEXTS]:
        assert word_encoder.encode_document(text)[:-1].tolist() == TOKENIZER.encode(text).ids
    assert len(word_encoder._numbers) < 50
