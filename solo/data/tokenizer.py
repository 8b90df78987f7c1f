"""SentencePiece with special tokens inside the model file, so that one file carries the whole vocabulary.

Special pieces are of type CONTROL: text never becomes one, however it reads ("</vision>" in a caption is plain
characters). SOLO appends pieces of type NORMAL, which its text can match, and has to warn against tokenizing them.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from solo.config import TokenizerConfig
from solo.data.conversation import Role

# SOLO's names for what it has; user, assistant and system take the place of its later <|im_start|> markup.
PIECES = {
    "pad": "<pad>",
    "vision": "<vision>",
    "vision_end": "</vision>",
    "row_separator": "<vrow_sep>",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}
# Characters. SentencePiece leaves texts above its limit (in bytes) out of training without a word, and needs
# quadratic time for long repetitive ones: long texts are cut.
_LONGEST_TEXT = 4096


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that text never becomes."""

    bos: int
    eos: int
    unk: int
    pad: int
    vision: int
    vision_end: int
    row_separator: int
    system: int
    user: int
    assistant: int

    def role(self, role: Role) -> int:
        """The token that opens a turn of this role. Raises ValueError for `text`, which has none."""
        if role == "text":
            raise ValueError("a turn of role 'text' opens without a token")
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


class Tokenizer:
    """Text to token ids and back. Pickles as the model's bytes, so it travels to worker processes.

    Raises:
        ValueError: the bytes are no SentencePiece model, or one that lacks special pieces.
    """

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError("not a SentencePiece model") from None
        self.special = _special_tokens(self._processor)
        self._specials = frozenset(getattr(self.special, name) for name in SpecialTokens.__slots__)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
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
        return str(self._processor.DecodeIds([int(token) for token in ids if int(token) not in self._specials]))

    def save(self, path: str | Path) -> None:
        """Write the SentencePiece model file."""
        Path(path).write_bytes(self._model)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file that has the special pieces (see `extend`). Raises OSError, or ValueError naming it."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)


def _special_tokens(processor: sentencepiece.SentencePieceProcessor) -> SpecialTokens:
    ids = {name: processor.PieceToId(piece) for name, piece in PIECES.items()}
    missing = [PIECES[name] for name, token in ids.items() if token == processor.unk_id()]
    if missing:
        raise ValueError(f"the model lacks the special pieces {', '.join(missing)}; append them with `extend`")
    plain = [PIECES[name] for name, token in ids.items() if not processor.IsControl(token)]
    if plain:
        raise ValueError(f"text could become the special pieces {', '.join(plain)}; make them control with `extend`")
    if processor.bos_id() < 0 or processor.eos_id() < 0:
        raise ValueError("the model has no token for the beginning or the end of a text")
    return SpecialTokens(processor.bos_id(), processor.eos_id(), processor.unk_id(), **ids)


def extend(model: bytes, pieces: Iterable[str] = tuple(PIECES.values())) -> bytes:
    """Append special pieces to a SentencePiece model, such as Mistral's `tokenizer.model`; old ids stay.

    A piece that is there already keeps its id and becomes CONTROL, whatever it was. Nothing to do: same bytes.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    control = type(proto).SentencePiece.CONTROL
    known = {piece.piece: piece for piece in proto.pieces}
    changed = False
    for name in pieces:
        if name not in known:
            known[name] = proto.pieces.add(piece=name, score=0.0)
        if known[name].type != control:
            known[name].type = control
            changed = True
    return bytes(proto.SerializeToString()) if changed else model


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a SentencePiece model of exactly `config.vocab_size` pieces, special tokens included.

    Text is taken as it is: no normalisation, no spaces added or removed, newlines kept, and characters that got no
    piece fall back to their bytes. So `decode(encode(text)) == text`, but for U+2581, SentencePiece's own sign for
    the space. The same texts give the same model.

    Raises:
        ValueError: the text does not support that many pieces, or that few; the message says how many it would.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_cut(texts),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            control_symbols=list(PIECES.values()),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=4 * _LONGEST_TEXT,
            num_threads=1,  # Sums over threads depend on their number, and so would the model.
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), config.vocab_size)) from None
    return Tokenizer(model.getvalue())


def _cut(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for start in range(0, len(text), _LONGEST_TEXT):
            yield text[start : start + _LONGEST_TEXT]


def _explain(error: str, vocab_size: int) -> str:
    if found := re.search(r"a value <= (\d+)", error):
        return f"too little text for a vocabulary of {vocab_size}: it supports at most {found[1]}"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return f"a vocabulary of {vocab_size} is too small: bytes, characters and special tokens alone take {found[1]}"
    if "sentences_.empty()" in error:
        return "there is no text to train the tokenizer on"
    return f"SentencePiece could not train the tokenizer: {error}"
