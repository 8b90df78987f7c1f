import json
import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

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
