import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from solo.config import ConfigError, TokenizerConfig
from solo.data.text import SPECIAL_TOKENS, Tokenizer, extend_tokenizer, open_tokenizer, train_tokenizer
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from tests.data.vocabularies import TEXTS, foreign_model

CONFIG = TokenizerConfig(vocab_size=500)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, CONFIG)


def extended_foreign() -> Tokenizer:
    return extend_tokenizer(SentencePieceTokenizer(foreign_model()), SPECIAL_TOKENS.values())


@pytest.mark.parametrize(
    "text",
    ["seven", " lead", "two  spaces", "trail ", "\n\na\n b\t\r\n", "", " ", "naïve 漢字 😀 \u3000", "a\0b", "ﬁ ½ Å"],
)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40))
def test_round_trip_of_anything_but_the_space_sign(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_space_is_added_in_front(tokenizer):
    # A continuation is encoded by itself and must join what stands before it.
    assert tokenizer.decode(tokenizer.encode("sev") + tokenizer.encode("en")) == "seven"


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS.values(), "<s>", "</s>", "<unk>", "<0x0A>", "\u2581<s>"])
def test_text_never_becomes_a_special_token(tokenizer, token):
    for found in (tokenizer, extended_foreign()):
        for text in (token, f"a{token}b", f" {token} ", token * 3, f"\n{token}"):
            assert found.special_ids.isdisjoint(found.encode(text))
            assert found.decode(found.encode(text)) == text.replace("\u2581", " ")


def test_decode_leaves_special_tokens_out(tokenizer):
    special = [tokenizer.id(token) for token in ("<s>", "<unk>", "<|user|>")]
    ids = [*special, *tokenizer.encode("a b"), tokenizer.special.pad, tokenizer.id("</vision>"), tokenizer.special.eos]
    assert tokenizer.decode(ids) == "a b"


def test_an_id_outside_the_vocabulary_is_an_error(tokenizer):
    with pytest.raises(IndexError):
        tokenizer.decode([500])


def test_lone_surrogates_are_value_errors(tokenizer):
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud83d")


def test_pickling_and_files_keep_the_model(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    opened = [open_tokenizer(tmp_path), open_tokenizer(tmp_path / "tokenizer.model")]
    for other in (*opened, pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.special == tokenizer.special
        assert other.special_ids == tokenizer.special_ids
    assert len(tokenizer.fingerprint) == 16
    assert extended_foreign().fingerprint != tokenizer.fingerprint


def test_special_tokens_are_looked_up_by_name(tokenizer):
    assert tokenizer.id("<vision>") == tokenizer.find("<vision>") == 4
    assert tokenizer.special.pad == tokenizer.id("<pad>")
    assert tokenizer.find("<nothing>") is None
    with pytest.raises(ConfigError, match=r"image\.row_token needs the token '<row>', which the tokenizer does not"):
        tokenizer.id("<row>", "image.row_token")
    word = next(token for token in ("the", "he", "e") if tokenizer.find(token) is not None)
    with pytest.raises(ConfigError, match=rf"image\.row_token needs the token '{word}', to which text can encode"):
        tokenizer.id(word, "image.row_token")


def test_a_vocabulary_without_padding_pads_with_its_end():
    # SOLO does so with Mistral's vocabulary.
    found = SentencePieceTokenizer(foreign_model())
    assert found.special.pad == found.special.eos == 2
    assert extended_foreign().special.pad == 493


def test_extending_appends_and_keeps_ids():
    foreign = SentencePieceTokenizer(foreign_model())
    extended = extend_tokenizer(foreign, ["<a>", "<b>", "<a>"])
    assert (foreign.vocab_size, extended.vocab_size) == (493, 495)
    assert [extended.id("<a>"), extended.id("<b>")] == [493, 494]
    old, new = (
        sentencepiece_model_pb2.ModelProto.FromString(model._model).pieces  # type: ignore[attr-defined]
        for model in (foreign, extended)
    )
    assert list(new[:493]) == list(old)
    assert all(extended.encode(text) == foreign.encode(text) for text in TEXTS[:5])
    assert extend_tokenizer(extended, ["<b>", "</s>"]) is extended


def test_extending_makes_existing_tokens_special():
    # SOLO's own tokenizer has them as NORMAL tokens, which text can match.
    proto = sentencepiece_model_pb2.ModelProto.FromString(foreign_model())  # type: ignore[attr-defined]
    proto.pieces.extend(type(proto).SentencePiece(piece=token, score=0.0) for token in SPECIAL_TOKENS.values())
    plain = SentencePieceTokenizer(proto.SerializeToString())
    assert 494 in plain.encode("a <vision>")
    extended = extend_tokenizer(plain, SPECIAL_TOKENS.values())
    assert extended.vocab_size == 500
    assert extended.id("<vision>") == 494
    assert 494 not in extended.encode("a <vision>")


def test_a_file_that_is_not_a_model(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.model: not a SentencePiece model"):
        open_tokenizer(tmp_path / "bad.model")
