import pickle
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from solo.config import TokenizerConfig
from solo.data.tokenizer import PIECES, SpecialTokens, Tokenizer, extend, train_tokenizer

TEXTS = [topics[name] for name in sorted(topics)[:30]]
CONFIG = TokenizerConfig(vocab_size=500)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, CONFIG)


@pytest.fixture
def foreign(tokenizer, tmp_path) -> bytes:
    """A model without our pieces, as somebody else's would be."""
    tokenizer.save(tmp_path / "model")
    proto = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / "model").read_bytes())
    kept = [piece for piece in proto.pieces if piece.piece not in PIECES.values()]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    return proto.SerializeToString()


def test_vocabulary_counts_the_special_tokens(tokenizer):
    assert tokenizer.vocab_size == 500
    ids = [getattr(tokenizer.special, name) for name in SpecialTokens.__slots__]
    assert len(set(ids)) == 10
    assert max(ids) < 500


def test_roles(tokenizer):
    special = tokenizer.special
    assert [special.role(role) for role in ("system", "user", "assistant")] == [
        special.system,
        special.user,
        special.assistant,
    ]
    with pytest.raises(ValueError, match="'text'"):
        special.role("text")


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
    # A continuation is encoded by itself, and has to join what stands before it.
    assert tokenizer.decode(tokenizer.encode("sev") + tokenizer.encode("en")) == "seven"


def specials_in(tokenizer: Tokenizer, text: str) -> set[int]:
    special = tokenizer.special
    return set(tokenizer.encode(text)) & {getattr(special, name) for name in SpecialTokens.__slots__}


@pytest.mark.parametrize("piece", [*PIECES.values(), "<s>", "</s>", "<unk>", "<0x0A>", "\u2581<s>"])
def test_text_never_becomes_a_special_token(tokenizer, foreign, piece):
    for found in (tokenizer, Tokenizer(extend(foreign))):
        for text in (piece, f"a{piece}b", f" {piece} ", piece * 3, f"\n{piece}"):
            assert not specials_in(found, text)
            assert found.decode(found.encode(text)) == text.replace("\u2581", " ")


def test_decode_leaves_special_tokens_out(tokenizer):
    special = tokenizer.special
    ids = [
        special.bos,
        special.unk,
        special.user,
        *tokenizer.encode("a b"),
        special.pad,
        special.vision_end,
        special.eos,
    ]
    assert tokenizer.decode(ids) == "a b"


def test_an_id_outside_the_vocabulary_is_an_error(tokenizer):
    with pytest.raises(IndexError):
        tokenizer.decode([500])


def test_lone_surrogates_are_value_errors(tokenizer):
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud83d")


def test_training_is_deterministic_and_pickling_and_files_keep_the_model(tokenizer, tmp_path):
    again = train_tokenizer(TEXTS, CONFIG)
    tokenizer.save(tmp_path / "tokenizer.model")
    for other in (again, pickle.loads(pickle.dumps(tokenizer)), Tokenizer.load(tmp_path / "tokenizer.model")):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.special == tokenizer.special
    assert len(tokenizer.fingerprint) == 16
    assert train_tokenizer(TEXTS, TokenizerConfig(vocab_size=501)).fingerprint != tokenizer.fingerprint


def test_bpe(tokenizer):
    bpe = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=500, model_type="bpe"))
    assert bpe.vocab_size == 500
    assert bpe.fingerprint != tokenizer.fingerprint
    assert bpe.decode(bpe.encode("  two\n</s>")) == "  two\n</s>"
    assert not specials_in(bpe, "</s>")


def test_long_texts_are_learned_from():
    # SentencePiece passes over sentences above its limit in silence, and takes minutes over long repetitive ones.
    learned = train_tokenizer(["😀 漢字 zebra " * 20_000], TokenizerConfig(vocab_size=285))
    assert len(learned.encode("zebra zebra ")) < 6


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["abc abd"], 1024, r"vocabulary of 1024: it supports at most \d+"),
        (["abc abd"], 64, r"vocabulary of 64 is too small: .* take \d+"),
        ([], 1024, "no text"),
    ],
)
def test_impossible_vocabularies(texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, TokenizerConfig(vocab_size=size))


def test_extend_appends_and_keeps_ids(foreign):
    with pytest.raises(ValueError, match=r"<vision>.*extend"):
        Tokenizer(foreign)
    extended = Tokenizer(extend(foreign))
    assert extended.vocab_size == 500
    assert extended.special.pad == 493
    old = sentencepiece_model_pb2.ModelProto.FromString(foreign).pieces
    new = sentencepiece_model_pb2.ModelProto.FromString(extend(foreign)).pieces
    assert [piece.piece for piece in new[:493]] == [piece.piece for piece in old]
    assert extend(extend(foreign)) == extend(foreign)


def test_extend_makes_existing_pieces_control(foreign):
    # SOLO's own tokenizer has them as NORMAL pieces, which text can match.
    proto = sentencepiece_model_pb2.ModelProto.FromString(foreign)
    proto.pieces.extend(type(proto).SentencePiece(piece=piece, score=0.0) for piece in PIECES.values())
    with pytest.raises(ValueError, match=r"text could become .*<vision>"):
        Tokenizer(proto.SerializeToString())
    extended = Tokenizer(extend(proto.SerializeToString()))
    assert extended.vocab_size == 500
    assert extended.special.vision == 494
    assert not specials_in(extended, "<vision>")


def test_not_a_model(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path / "bad.model")
