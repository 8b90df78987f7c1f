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

from solo.data.text.repository import CONFIG_FILE, AddedToken, RepositoryTokens
from solo.data.text.tokenizer import SpecialTokens, Tokenizer

FILE = "tokenizer.json"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`. Pickles as its text.

    Args:
        text: content of the file. It does not name the tokens that begin and end a text.
        bos: token that begins a text, or None.
        eos: token that ends a text.
        pad: token that fills empty slots; default `eos`.

    Raises:
        ValueError: the text is not a tokenizer, or lacks one of these tokens.
    """

    def __init__(self, text: str, bos: str | None, eos: str, pad: str | None) -> None:
        self._text, self._names = text, (bos, eos, pad)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the binding raises Exception itself
            raise ValueError(f"not a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # encodes them as plain text
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if missing := [name for name in self._names if name is not None and name not in ids]:
            raise ValueError(f"it does not have the tokens {', '.join(missing)} that {CONFIG_FILE} names")
        self._vocab_size = max(ids.values()) + 1
        self.special = SpecialTokens(ids[bos] if bos is not None else None, ids[eos], ids[pad or eos])
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(self._special) | _unknown(json.loads(text)["model"], ids)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""
        return self._vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 of the file and of `bos`, `eos` and `pad`."""
        return hashlib.sha256(json.dumps([self._text, self._names]).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            text.encode()  # Raises an error that names the character; the binding's error names its types.
            raise
        # A Unigram vocabulary holds its special tokens like any others, so that text can encode to them.
        return list(ids) if self._special.keys().isdisjoint(ids) else self._encode_apart(text)

    def _encode_apart(self, text: str) -> list[int]:
        """Encodes text that spells special tokens: splits it after the first character of each."""
        whole = "|".join(map(re.escape, sorted(self._special.values(), key=len, reverse=True)))
        cuts = [match.start() + 1 for match in re.finditer(f"(?={whole})", text)]
        parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [token for part in parts for token in self._tokenizer.encode(part, add_special_tokens=False).ids]
        if found := self._special.keys() & set(ids):
            raise ValueError(f"text encodes to the special token {self._special[min(found)]!r}, wherever it is split")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        numbers = [int(token) for token in ids]
        if strange := [token for token in numbers if not 0 <= token < self.vocab_size]:
            raise IndexError(f"id {strange[0]} is outside the vocabulary of {self.vocab_size}")
        kept = [token for token in numbers if token not in self.special_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def find(self, token: str) -> int | None:
        """See `Tokenizer`."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str:
        """See `Tokenizer`."""
        name = self._tokenizer.id_to_token(token_id) or ""
        if token_id in self.special_ids:
            return name
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if "\ufffd" in text:
            return name
        # Decoders of words strip the space before the first one.
        return " " + text if name[:1] in ("\u2581", "\u0120") and not text.startswith(" ") else text

    def extended(self, tokens: Sequence[str]) -> HuggingFaceTokenizer:
        """See `Tokenizer`."""
        added, next_id = {}, self.vocab_size
        for token in tokens:
            token_id = self.find(token)
            added[next_id if token_id is None else token_id] = AddedToken(token, True)
            next_id += token_id is None
        return HuggingFaceTokenizer(_with_tokens(self._text, added), *self._names)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, and a `tokenizer_config.json` that names `bos`, `eos` and `pad`."""
        bos, eos, pad = self._names
        (Path(folder) / FILE).write_text(self._text, encoding="utf-8")
        names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(names) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[str | None, ...]]:
        return type(self), (self._text, *self._names)


def from_repository(text: str, found: RepositoryTokens) -> HuggingFaceTokenizer:
    """Returns the tokenizer of a `tokenizer.json` and the files next to it.

    Raises:
        ValueError: no file names an end-of-text token, or the files contradict each other.
    """
    if found.eos is None:
        raise ValueError(
            f"no file names the token that ends a text; put a {CONFIG_FILE} with eos_token next to the tokenizer.json"
        )
    return HuggingFaceTokenizer(_with_tokens(text, found.added), found.bos, found.eos, found.pad)


def added_tokens(text: str) -> dict[int, AddedToken]:
    """Returns the added tokens of a `tokenizer.json`, by id. Raises ValueError if it is not one."""
    try:
        entries = json.loads(text)["added_tokens"]
        return {entry["id"]: AddedToken(entry["content"], entry["special"]) for entry in entries}
    except (ValueError, TypeError, KeyError):
        raise ValueError("not a tokenizer.json") from None


def _with_tokens(text: str, tokens: Mapping[int, AddedToken]) -> str:
    """Returns the file's text with tokens appended, renamed or made special; the same text if nothing changes."""
    try:
        tree = json.loads(text)
        added = {entry["id"]: entry for entry in tree["added_tokens"]}
        vocab = tree["model"]["vocab"]
        own = len(vocab) if isinstance(vocab, list) else max(vocab.values()) + 1
    except (ValueError, TypeError, KeyError):
        raise ValueError("not a tokenizer.json") from None
    changed = False
    for token_id, token in sorted(tokens.items()):
        next_id = max([own - 1, *added]) + 1
        if token_id > next_id:
            raise ValueError(f"token {token.text!r} has the id {token_id}, but no token has the ids from {next_id} on")
        entry = added.get(token_id)
        if entry is not None and entry["content"] == token.text and (entry["special"] or not token.special):
            continue
        if entry is None:
            entry = {"id": token_id, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            tree["added_tokens"].append(entry)
            added[token_id] = entry
        if token_id < own:
            _rename(tree["model"], token_id, token.text)
        entry |= {"content": token.text, "special": token.special or entry.get("special", False)}
        changed = True
    return json.dumps(tree, ensure_ascii=False) if changed else text


def _rename(model: dict[str, Any], token_id: int, text: str) -> None:
    """Changes the text of one of the model's own tokens."""
    if isinstance(model["vocab"], list):
        model["vocab"][token_id][0] = text
    else:
        model["vocab"] = {(text if number == token_id else name): number for name, number in model["vocab"].items()}


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> frozenset[int]:
    token = model["unk_id"] if "unk_id" in model else ids.get(model.get("unk_token") or "")
    return frozenset() if token is None else frozenset([token])
