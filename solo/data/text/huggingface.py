"""`tokenizer.json` files, read by the `tokenizers` package."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from solo.data.text.repository import CONFIG_FILE, Piece, RepositoryPieces
from solo.data.text.tokenizer import SpecialTokens, Tokenizer

FILE = "tokenizer.json"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, which does not say itself what opens and ends a text. Pickles as its text.

    Args:
        text: content of the file.
        bos: piece that opens a text, if there is one.
        eos: piece that ends one.
        pad: piece of empty slots; that of the end unless given.

    Raises:
        ValueError: the text is no tokenizer, or does not have one of these pieces.
    """

    def __init__(self, text: str, bos: str | None, eos: str, pad: str | None) -> None:
        self._text, self._names = text, (bos, eos, pad)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the binding raises Exception itself
            raise ValueError(f"not a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as plain text, that is
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if missing := [name for name in self._names if name is not None and name not in ids]:
            raise ValueError(f"it does not have the pieces {', '.join(missing)} that {CONFIG_FILE} names")
        self._vocab_size = max(ids.values()) + 1
        self.special = SpecialTokens(ids[bos] if bos is not None else None, ids[eos], ids[pad or eos])
        added = self._tokenizer.get_added_tokens_decoder()
        self._pieces = {token: piece.content for token, piece in added.items() if piece.special}
        self.special_ids = frozenset(self._pieces) | _unknown(json.loads(text)["model"], ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: the highest, plus one."""
        return self._vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the file and the names."""
        return hashlib.sha256(json.dumps([self._text, self._names]).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens neither added nor recognised. Raises ValueError on lone surrogates."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            text.encode()  # The binding's own error is about its types; this one names the character.
            raise
        # A Unigram vocabulary holds its special pieces like any others: where text reads so, it is taken apart.
        return list(ids) if self._pieces.keys().isdisjoint(ids) else self._encode_apart(text)

    def _encode_apart(self, text: str) -> list[int]:
        whole = "|".join(map(re.escape, sorted(self._pieces.values(), key=len, reverse=True)))
        cuts = [match.start() + 1 for match in re.finditer(f"(?={whole})", text)]
        parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [token for part in parts for token in self._tokenizer.encode(part, add_special_tokens=False).ids]
        if found := self._pieces.keys() & set(ids):
            raise ValueError(f"text becomes the special piece {self._pieces[min(found)]!r}, however it is cut")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out. Raises IndexError on an id outside the vocabulary."""
        numbers = [int(token) for token in ids]
        if strange := [token for token in numbers if not 0 <= token < self.vocab_size]:
            raise IndexError(f"id {strange[0]} is outside the vocabulary of {self.vocab_size}")
        kept = [token for token in numbers if token not in self.special_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def find(self, piece: str) -> int | None:
        """The id of a piece, special or not; None where the vocabulary does not have it."""
        return self._tokenizer.token_to_id(piece)

    def extended(self, pieces: Sequence[str]) -> HuggingFaceTokenizer:
        """With more special pieces; see `extend_tokenizer`."""
        wanted, following = {}, self.vocab_size
        for name in pieces:
            token = self.find(name)
            wanted[following if token is None else token] = Piece(name, True)
            following += token is None
        return HuggingFaceTokenizer(_with_pieces(self._text, wanted), *self._names)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and a `tokenizer_config.json` with what it does not say."""
        bos, eos, pad = self._names
        (Path(folder) / FILE).write_text(self._text, encoding="utf-8")
        names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(names) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[str | None, ...]]:
        return type(self), (self._text, *self._names)


def from_repository(text: str, found: RepositoryPieces) -> HuggingFaceTokenizer:
    """A tokenizer of a `tokenizer.json` and of what the files beside it say. Raises ValueError if they do not fit."""
    if found.eos is None:
        raise ValueError(
            f"which piece ends a text? A tokenizer.json does not say: put a {CONFIG_FILE} with eos_token beside it"
        )
    return HuggingFaceTokenizer(_with_pieces(text, found.pieces), found.bos, found.eos, found.pad)


def _with_pieces(text: str, pieces: Mapping[int, Piece]) -> str:
    """The file's text with pieces appended, renamed, or made special; the same text where all is so already."""
    try:
        tree = json.loads(text)
        added = {entry["id"]: entry for entry in tree["added_tokens"]}
        vocab = tree["model"]["vocab"]
        own = len(vocab) if isinstance(vocab, list) else max(vocab.values()) + 1
    except (ValueError, TypeError, KeyError):
        raise ValueError("not a tokenizer.json") from None
    changed = False
    for token, piece in sorted(pieces.items()):
        following = max([own - 1, *added]) + 1
        if token > following:
            raise ValueError(f"piece {piece.text!r} has the id {token}, but nothing names the ids from {following} on")
        entry = added.get(token)
        if entry is not None and entry["content"] == piece.text and (entry["special"] or not piece.special):
            continue
        if entry is None:
            entry = {"id": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            tree["added_tokens"].append(entry)
            added[token] = entry
        if token < own:
            _rename(tree["model"], token, piece.text)
        entry |= {"content": piece.text, "special": piece.special or entry.get("special", False)}
        changed = True
    return json.dumps(tree, ensure_ascii=False) if changed else text


def _rename(model: dict[str, Any], token: int, piece: str) -> None:
    """Give the piece of an id of the model's own another name."""
    if isinstance(model["vocab"], list):
        model["vocab"][token][0] = piece
    else:
        model["vocab"] = {(piece if number == token else name): number for name, number in model["vocab"].items()}


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> frozenset[int]:
    token = model["unk_id"] if "unk_id" in model else ids.get(model.get("unk_token") or "")
    return frozenset() if token is None else frozenset([token])
