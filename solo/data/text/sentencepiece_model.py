"""SentencePiece models that include their special tokens, so that one file contains the whole vocabulary.

Special tokens have the type CONTROL, and text never encodes to them. The tokens appended to SOLO's own model have the
type NORMAL, so text can match them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from solo.data.text.repository import RepositoryTokens
from solo.data.text.tokenizer import SpecialTokens, Tokenizer

FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model. Pickles as its bytes.

    Raises:
        ValueError: the bytes are not a SentencePiece model, or the model has no end-of-text token.
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError("not a SentencePiece model") from None
        processor = self._processor
        bos, eos, pad = processor.bos_id(), processor.eos_id(), processor.pad_id()
        if eos < 0:
            raise ValueError("the SentencePiece model has no end-of-text token")
        self.special = SpecialTokens(bos if bos >= 0 else None, eos, pad if pad >= 0 else eos)
        self.special_ids = frozenset(
            token for token in range(self.vocab_size) if processor.IsControl(token) or processor.IsUnknown(token)
        )
        self.unknown = processor.unk_id()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._processor.vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the model's SHA-256."""
        return hashlib.sha256(self._model).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        try:
            return list(self._processor.EncodeAsIds(text))
        except RuntimeError:
            text.encode()  # Raises an error that shows the character; the binding's error only shows C++ types.
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        """See `Tokenizer`."""
        try:
            return list(self._processor.EncodeAsIds(list(texts), num_threads=1))
        except (RuntimeError, TypeError):  # the error does not say which text failed
            return super().encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return str(self._processor.DecodeIds([int(token) for token in ids if int(token) not in self.special_ids]))

    def find(self, token: str) -> int | None:
        """See `Tokenizer`."""
        found = int(self._processor.PieceToId(token))
        return found if self._processor.IdToPiece(found) == token else None

    def token(self, token_id: int) -> str:
        """See `Tokenizer`."""
        return str(self._processor.IdToPiece(token_id)).replace("\u2581", " ")

    def extended(self, tokens: Sequence[str]) -> SentencePieceTokenizer:
        """See `Tokenizer`. The added tokens have the type CONTROL."""
        proto = _parse(self._model)
        known = {entry.piece: entry for entry in proto.pieces}
        for token in tokens:
            entry = known.get(token) or proto.pieces.add(piece=token, score=0.0)
            entry.type = entry.CONTROL
        return SentencePieceTokenizer(proto.SerializeToString())

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.model`."""
        (Path(folder) / FILE).write_bytes(self._model)

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes]]:
        return type(self), (self._model,)


def with_repository_tokens(model: bytes, found: RepositoryTokens) -> bytes:
    """Returns a model with the tokens that the other files of its repository append or rename.

    Special tokens get the type CONTROL. The others get USER_DEFINED, so text matches them as a whole.

    Raises:
        ValueError: there is a gap between the model's ids and the new ids.
    """
    proto = _parse(model)
    for token_id, token in sorted(found.added.items()):
        if token_id > len(proto.pieces):
            raise ValueError(
                f"token {token.text!r} has the id {token_id}, but no token has the ids from {len(proto.pieces)} on"
            )
        entry = proto.pieces[token_id] if token_id < len(proto.pieces) else proto.pieces.add(score=0.0)
        if entry.piece != token.text:
            entry.piece = token.text
            entry.type = entry.CONTROL if token.special else entry.USER_DEFINED
        elif token.special and entry.type != entry.UNKNOWN:
            entry.type = entry.CONTROL
    entries = {entry.piece: entry for entry in proto.pieces}
    for role in ("bos", "eos", "pad"):
        name = getattr(found, role)
        if name in entries and entries[name].type != entries[name].UNKNOWN:
            setattr(proto.trainer_spec, f"{role}_piece", name)
            entries[name].type = entries[name].CONTROL
    changed: bytes = proto.SerializeToString()
    return changed


def _parse(model: bytes) -> Any:
    try:
        return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    except Exception:  # protobuf has its own class
        raise ValueError("not a SentencePiece model") from None
