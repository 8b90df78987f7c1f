"""SentencePiece models with special tokens inside, so that one file carries the whole vocabulary.

Special pieces are of type CONTROL, which text never becomes. SOLO appends pieces of type NORMAL, which its text can
match, and has to warn against tokenizing them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from solo.data.text.repository import RepositoryPieces
from solo.data.text.tokenizer import SpecialTokens, Tokenizer

FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; pickles as its bytes.

    Raises:
        ValueError: the bytes are no SentencePiece model, or one without a token for the end of a text.
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
            raise ValueError("the SentencePiece model has no token for the end of a text")
        self.special = SpecialTokens(bos if bos >= 0 else None, eos, pad if pad >= 0 else eos)
        self.special_ids = frozenset(
            token for token in range(self.vocab_size) if processor.IsControl(token) or processor.IsUnknown(token)
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self._processor.vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the model's SHA-256."""
        return hashlib.sha256(self._model).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens neither added nor recognised. Raises ValueError on lone surrogates."""
        try:
            return list(self._processor.EncodeAsIds(text))
        except RuntimeError:
            text.encode()  # The binding's own error is about its C++ types; this one names the character.
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out. Raises IndexError on an id outside the vocabulary."""
        return str(self._processor.DecodeIds([int(token) for token in ids if int(token) not in self.special_ids]))

    def find(self, piece: str) -> int | None:
        """The id of a piece, special or not; None where the vocabulary does not have it."""
        found = int(self._processor.PieceToId(piece))
        return found if self._processor.IdToPiece(found) == piece else None

    def extended(self, pieces: Sequence[str]) -> SentencePieceTokenizer:
        """With more CONTROL pieces; see `extend_tokenizer`."""
        proto = _parse(self._model)
        known = {piece.piece: piece for piece in proto.pieces}
        for name in pieces:
            piece = known.get(name) or proto.pieces.add(piece=name, score=0.0)
            piece.type = piece.CONTROL
        return SentencePieceTokenizer(proto.SerializeToString())

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.model`."""
        (Path(folder) / FILE).write_bytes(self._model)

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[bytes]]:
        return type(self), (self._model,)


def with_repository_pieces(model: bytes, found: RepositoryPieces) -> bytes:
    """A model with the pieces that the other files of its repository append, or give another name.

    Special ones become CONTROL; the others USER_DEFINED, which text matches as a whole.

    Raises:
        ValueError: the files name a piece further behind the end than the next.
    """
    proto = _parse(model)
    for token, piece in sorted(found.pieces.items()):
        if token > len(proto.pieces):
            raise ValueError(
                f"piece {piece.text!r} has the id {token}, but nothing names the ids from {len(proto.pieces)} on"
            )
        entry = proto.pieces[token] if token < len(proto.pieces) else proto.pieces.add(score=0.0)
        if entry.piece != piece.text:
            entry.piece = piece.text
            entry.type = entry.CONTROL if piece.special else entry.USER_DEFINED
        elif piece.special and entry.type != entry.UNKNOWN:
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
    except Exception:  # protobuf's own kind of error
        raise ValueError("not a SentencePiece model") from None
