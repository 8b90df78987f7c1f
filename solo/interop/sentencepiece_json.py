"""Converts a SentencePiece model to a `tokenizer.json`, which AutoTokenizer opens without the SentencePiece package.

Token ids equal SentencePiece's for every text without special tokens. Our own tokenizers never recognise special tokens
in text; Hugging Face's do unless `split_special_tokens=True`.

The converters of transformers are not used because exporting must not need transformers, and because they choose their
steps by the class of the tokenizer instead of the settings stored in the SentencePiece model.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

_UNIGRAM, _BPE = 1, 2
_TEXTS = 600  # that are compared
_SPACE = "▁"


def tokenizer_json(model: bytes, add_bos: bool, *, checked: bool = True) -> str:
    """Returns the content of `tokenizer.json`.

    Args:
        model: a SentencePiece model, Unigram or BPE.
        add_bos: whether encoding with special tokens prepends the BOS token.
        checked: compare the ids of random texts with SentencePiece's.

    Raises:
        ValueError: the model is neither Unigram nor BPE, or random texts have other ids, because the format cannot
            express the model's settings (USER_DEFINED pieces with a dummy prefix, treat_whitespace_as_suffix).
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise ValueError(f"a SentencePiece model of type {kind} is neither Unigram nor BPE")
    tokenizer = Tokenizer(_unigram(proto) if kind == _UNIGRAM else _bpe(proto))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(proto)))
    tokenizer.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
    for token, piece in enumerate(proto.pieces):
        # The unknown token is left out: the text "<unk>" is not an unknown character.
        if piece.type in (piece.CONTROL, piece.USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type == piece.CONTROL)])
            assert tokenizer.token_to_id(piece.piece) == token
    if checked:
        _check_ids(model, proto, tokenizer)
    if add_bos:
        name = proto.trainer_spec.bos_piece
        ids = [(name, tokenizer.token_to_id(name))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=ids
        )
    return str(tokenizer.to_str())


def _check_ids(model: bytes, proto: Any, tokenizer: Tokenizer) -> None:
    """Raises ValueError if random texts have other ids than in SentencePiece."""
    theirs = SentencePieceProcessor()
    theirs.LoadFromSerializedProto(model)
    texts = list(_texts(proto))
    # Names of special tokens are left out: Hugging Face finds them in text, and we never do.
    special = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    texts = [text for text in texts if not any(name in text for name in special)]
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    wrong = [text for text, ids in zip(texts, found, strict=True) if ids != list(theirs.EncodeAsIds(text))]
    if wrong:
        raise ValueError(
            f"this SentencePiece model cannot be written as tokenizer.json: {len(wrong)} of {len(texts)} random texts"
            f" have other token ids there, such as {min(wrong, key=len)!r}. Its settings:"
            f" add_dummy_prefix {proto.normalizer_spec.add_dummy_prefix}, treat_whitespace_as_suffix"
            f" {proto.trainer_spec.treat_whitespace_as_suffix}, pieces of type USER_DEFINED"
            f" {sum(piece.type == piece.USER_DEFINED for piece in proto.pieces)}"
        )


def _texts(proto: Any) -> Iterator[str]:
    """Yields random texts of vocabulary pieces, spaces and other characters. The texts are deterministic."""
    draw = random.Random(0)
    pieces = [piece.piece.replace(_SPACE, " ") for piece in proto.pieces if piece.type == piece.NORMAL]
    whole = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    others = [*string.printable, " ", "  ", _SPACE, "é", "日", "🙂", *whole]
    for number in range(_TEXTS):
        parts = (draw.choice(pieces if draw.random() < 0.6 else others) for _ in range(number % 12))
        yield "".join(parts)


def has_dummy_prefix(model: bytes) -> bool:
    """Returns whether a SentencePiece model begins every text with a space."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    return bool(proto.normalizer_spec.add_dummy_prefix)


def _unigram(proto: Any) -> models.Unigram:
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(vocab, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    vocab = {piece.piece: token for token, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        pair
        for token, _ in sorted(scores.items(), key=lambda item: -item[1])
        for pair in sorted(_pairs(token, scores), key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    ]
    return models.BPE(
        vocab,
        merges,
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _pairs(token: str, scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Yields the pairs of tokens that a token can be merged from."""
    for place in range(1, len(token)):
        if token[:place] in scores and token[place:] in scores:
            yield token[:place], token[place:]


def _normalizers(proto: Any) -> Iterator[normalizers.Normalizer]:
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Strip()
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if spec.add_dummy_prefix:
        # Also before a space, unlike Metaspace.
        yield normalizers.Prepend(_SPACE)
    yield normalizers.Replace(" ", _SPACE)


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if dummy_prefix else steps)
