import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from solo.config import ConfigError
from solo.data.text import Tokenizer, extend_tokenizer, open_tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from tests.data.vocabularies import TEXTS, byte_level_json

NAMES = (None, "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return HuggingFaceTokenizer(byte_level_json(), *NAMES)


def test_ids_equal_those_of_the_library(tokenizer):
    library = tokenizers.Tokenizer.from_str(byte_level_json())
    for text in (*TEXTS[:5], "naïve 漢字 😀", "", " a  b\n"):
        assert tokenizer.encode(text) == library.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(max_size=40))
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens(tokenizer):
    assert tokenizer.vocab_size == 404
    special = tokenizer.special
    assert (special.bos, special.eos, special.pad) == (None, 402, 400)
    assert tokenizer.special_ids == {400, 401, 402}
    assert HuggingFaceTokenizer(byte_level_json(), None, "<|im_end|>", None).special.pad == 402
    assert tokenizer.decode([400, *tokenizer.encode("a b"), 402]) == "a b"
    with pytest.raises(IndexError, match="id 404 is outside the vocabulary of 404"):
        tokenizer.decode([404])


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_text_never_becomes_a_special_token(tokenizer, token):
    tree = json.loads(byte_level_json()) | {"added_tokens": []}
    plain = tokenizers.Tokenizer.from_str(json.dumps(tree))
    assert tokenizer.encode(f"if{token} if") == plain.encode(f"if{token} if").ids
    for text in (token, f"a{token}b", f" {token} ", token * 3, f"\n{token}"):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_with_a_special_token_is_tokenised_like_any_other(tokenizer):
    # The text is not merely split inside the token, which would change the tokens around it.
    special = extend_tokenizer(tokenizer, ["of the"])
    assert special.encode("one of the if") == tokenizer.encode("one of the if")
    assert len(tokenizer.encode("of the")) < len("of the")


def test_tokens_that_are_not_special_are_found_in_text(tokenizer):
    assert 403 in tokenizer.encode("a <tool> b")
    with pytest.raises(ConfigError, match=r"sequence\.template needs the token '<tool>', to which text can encode"):
        tokenizer.id("<tool>", "sequence.template")
    made_special = extend_tokenizer(tokenizer, ["<tool>"])
    assert made_special.id("<tool>") == 403
    assert 403 not in made_special.encode("a <tool> b")


def test_text_that_spells_a_special_token_of_a_unigram_vocabulary():
    # Its lattice holds special tokens like any others, and they are likelier than their letters.
    scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "abs</>")]
    library = tokenizers.Tokenizer(models.Unigram(scores, 0))
    library.add_special_tokens(["<s>", "</s>"])
    assert 2 in HuggingFaceTokenizer(library.to_str(), "<s>", "</s>", None)._tokenizer.encode("a</s>").ids
    found = HuggingFaceTokenizer(library.to_str(), "<s>", "</s>", None)
    assert found.special_ids == {0, 1, 2}
    for text in ("a</s>b", "</s>", "<s></s><s>"):
        letters = [found.find(letter) for letter in text]
        assert found.encode(text) == letters


def test_a_special_token_of_one_letter_cannot_be_split():
    library = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("|", 0.0), ("a", -1.0)], 0))
    library.add_special_tokens(["|"])
    with pytest.raises(ValueError, match=r"text encodes to the special token '\|'"):
        HuggingFaceTokenizer(library.to_str(), None, "|", None).encode("a|a")


def _library(model: models.Model, pre_tokenizer=None, normalizer=None, *added: AddedToken) -> HuggingFaceTokenizer:
    library = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        library.normalizer = normalizer
    library.add_special_tokens(["<s>", "</s>"])
    library.add_tokens(list(added))
    return HuggingFaceTokenizer(library.to_str(), "<s>", "</s>", None)


LETTERS = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}


@pytest.mark.parametrize("special", [True, False])
def test_unknown_characters_become_the_unknown_token(special):
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.0)]
    words = {"<unk>": 0, "a": 1, "##b": 2, "ab": 3}
    made = [
        (models.BPE(LETTERS, [("a", "b")], unk_token="<unk>"), "abжa", [3, 0, 1]),
        (models.Unigram(pieces, 0), "abжa", [3, 0, 1]),
        (models.WordPiece(words, unk_token="<unk>"), "ab abжa ab", [3, 0, 3]),
        (models.WordLevel({"<unk>": 0, "ab": 1}, unk_token="<unk>"), "ab ж ab", [1, 0, 1]),
    ]
    for model, text, ids in made:
        library = tokenizers.Tokenizer(model)
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        library.add_special_tokens(["</s>", *(["<unk>"] if special else [])])
        found = HuggingFaceTokenizer(library.to_str(), None, "</s>", "<unk>")
        assert found.encode(text) == ids
        assert found.encode_batch([text, "ab"]) == [ids, found.encode("ab")]
        assert found.unknown == 0
        assert 0 in found.special_ids


def test_text_that_spells_the_unknown_token_is_not_unknown():
    scores = [("<unk>", 0.0), *((letter, -2.0) for letter in "abkn<>u")]
    found = _library(models.Unigram(scores, 0))
    assert found.encode("a<unk>b") == [found.find(letter) for letter in "a<unk>b"]
    assert found.encode("ж<unk>") == [0, *(found.find(letter) for letter in "<unk>")]


@pytest.mark.parametrize("unk_token", [None, "[UNK]", "</s>"])
def test_without_an_unknown_token_the_characters_are_named(unk_token):
    # `tokenizers` leaves them out and says nothing, or fails without naming them; CLIP's unknown token ends a text.
    vocabulary = {"a": 0, "b": 1, "ab": 2, **({"</s>": 3} if unk_token == "</s>" else {})}
    found = _library(models.BPE(vocabulary, [("a", "b")], unk_token=unk_token))
    assert found.unknown is None
    assert found.encode("abba") == [2, 1, 0]
    first, second, third = found.encode_batch(["ab", "aжb😀ж", "ba"])
    assert (first, third) == ([2], [1, 0])
    assert str(second) == (
        "the vocabulary has no token for 'ж' (U+0436), '😀' (U+1F600), and none for unknown characters"
    )
    assert found.vocab_size == (4 if unk_token == "</s>" else 5) + (unk_token == "</s>")
    assert found.find("</s>") == (3 if unk_token == "</s>" else 4)


def test_bytes_that_a_byte_level_vocabulary_lacks_are_named():
    # A vocabulary trained without the alphabet of bytes has only those that it saw.
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.train_from_iterator(["plain words", "are plain"], trainers.BpeTrainer(vocab_size=40))
    library.add_special_tokens(["</s>"])
    library.add_tokens(["<tool>"])
    found = HuggingFaceTokenizer(library.to_str(), None, "</s>", None)
    assert found.encode("plain <tool>words") == library.encode("plain <tool>words").ids
    with pytest.raises(ValueError, match=r"no token for 'é' \(U\+00E9\), and none for unknown characters"):
        found.encode("plain é")


def test_bytes_may_be_among_the_special_tokens():
    # As people train such vocabularies: the alphabet of bytes cannot be given to the trainer in another way.
    pieces = {"a": 0, "<": 1, "0": 2, "x": 3, "4": 4, "1": 5, ">": 6}
    pieces |= {f"<0x{byte:02X}>": 7 + byte for byte in range(256)}
    library = tokenizers.Tokenizer(models.BPE(pieces, [], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens([*(f"<0x{byte:02X}>" for byte in range(256)), "</s>"])
    found = HuggingFaceTokenizer(library.to_str(), None, "</s>", None)
    assert found.special_ids == {found.find("</s>")}
    assert found.encode("aж") == [0, 7 + 0xD0, 7 + 0xB6]
    assert found.decode(found.encode("aж<0x41>")) == "aж<0x41>"
    assert found.encode("<0x41>") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.WordPiece({"a": 0, "##b": 1}, unk_token="[UNK]"), "the tokenizer cannot encode the text"),
        (models.WordLevel({"a": 0}, unk_token="[UNK]"), "the tokenizer cannot encode the text"),
        (models.Unigram([("a", -1.0), ("b", -1.0)], None), "the vocabulary has no token for 'ж' (U+0436), and none"),
    ],
)
def test_errors_of_the_library_are_those_of_one_text(model, message):
    found = _library(model)
    good, bad = found.encode_batch(["a", "ж"])
    assert good == [0] or "unk" in str(good)
    assert isinstance(bad, ValueError)
    assert str(bad).startswith(message)


def test_a_panic_of_the_library_is_the_error_of_one_text(tokenizer, monkeypatch):
    class PanicException(BaseException):
        pass

    class Panicking:
        def encode(self, text: str, **_: bool) -> None:
            raise PanicException("index out of bounds")

        def encode_batch_fast(self, texts: list[str], **_: bool) -> None:
            raise PanicException("index out of bounds")

    found = HuggingFaceTokenizer(byte_level_json(), *NAMES)
    monkeypatch.setattr(found, "_tokenizer", Panicking())
    (error,) = found.encode_batch(["a"])
    assert str(error) == "the tokenizer cannot encode the text: index out of bounds"


def test_normalisers_and_added_tokens_make_no_special_token():
    scores = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0), *((letter, -2.0) for letter in "abs</>▁")]
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tool = AddedToken("<a>", lstrip=True, rstrip=True, normalized=True, special=False)
    found = _library(models.Unigram(scores, 0), pre_tokenizers.Metaspace(), normalizer, tool)
    for text in ("a</S>b", "＜/s＞", "<S></S>", " </s> ", "＜ｓ＞"):
        assert found.special_ids.isdisjoint(found.encode(text)), text
    space, letter = found.find("▁"), found.find("b")
    assert found.encode("b <A> b") == [space, letter, found.find("<a>"), space, letter], (
        "the spaces belong to the token"
    )


def test_merges_are_not_random():
    found = _library(models.BPE(LETTERS, [("a", "b")], unk_token="<unk>", dropout=0.9))
    assert found.encode("ab" * 50) == [3] * 50
    assert found.encode_batch(["ab" * 50]) == [[3] * 50]


@given(texts=st.lists(st.text(max_size=20), max_size=6))
@settings(deadline=None)
def test_a_batch_equals_its_texts_one_by_one(tokenizer, texts):
    def alone(text: str) -> object:
        try:
            return tokenizer.encode(text)
        except ValueError as error:
            return str(error)

    batch = [str(ids) if isinstance(ids, ValueError) else ids for ids in tokenizer.encode_batch(texts)]
    assert batch == [alone(text) for text in texts]


def test_extending_appends_and_keeps_ids(tokenizer):
    extended = extend_tokenizer(tokenizer, ["<img>", "<|im_end|>", "</img>"])
    assert [extended.id("<img>"), extended.id("</img>"), extended.id("<|im_end|>")] == [404, 405, 402]
    assert extended.vocab_size == 406
    assert extended.special == tokenizer.special
    assert all(extended.encode(text) == tokenizer.encode(text) for text in TEXTS[:5])
    assert 404 not in extended.encode("<img>")
    assert extend_tokenizer(extended, ["<img>"]) is extended


def test_lone_surrogates_are_value_errors(tokenizer):
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud83d")


def test_pickling_and_files_keep_it(tokenizer, tmp_path):
    extended = extend_tokenizer(tokenizer, ["<img>"])
    extended.save(tmp_path)
    opened = [open_tokenizer(tmp_path), open_tokenizer(tmp_path / "tokenizer.json")]
    for other in (*opened, pickle.loads(pickle.dumps(extended))):
        assert other.fingerprint == extended.fingerprint
        assert other.special == extended.special
        assert other.encode("a <img>") == extended.encode("a <img>")
    others = [tokenizer, HuggingFaceTokenizer(byte_level_json(), None, "<|im_end|>", None)]
    assert len({extended.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_padding_and_truncation_of_the_file_are_ignored():
    library = tokenizers.Tokenizer.from_str(byte_level_json())
    library.enable_truncation(2)
    library.enable_padding(length=50)
    found = HuggingFaceTokenizer(library.to_str(), *NAMES)
    assert found.encode(TEXTS[0]) == HuggingFaceTokenizer(byte_level_json(), *NAMES).encode(TEXTS[0])


def test_errors_name_the_fault():
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        HuggingFaceTokenizer("{}", *NAMES)
    with pytest.raises(ValueError, match=r"tokens <s> that tokenizer_config\.json names"):
        HuggingFaceTokenizer(byte_level_json(), "<s>", "<|im_end|>", None)
    assert json.loads(byte_level_json())["model"]["type"] == "BPE"
