"""`tokenizer.json` files, read by the `tokenizers` package."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from solo.data.text.repository import CONFIG_FILE, AddedToken, RepositoryTokens
from solo.data.text.tokenizer import SpecialTokens, Tokenizer

FILE = "tokenizer.json"
_BATCH = 128  # texts per call; the encodings of a larger batch do not fit the processor's cache
_SHOWN = 5
_STAND_IN = "\U0010ffff unknown"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`. Pickles as its text.

    Args:
        text: content of the file. The file does not say which tokens are `bos`, `eos` and `pad`.
        bos: token that begins a text, or None.
        eos: token that ends a text.
        pad: token for empty slots; default: `eos`.

    Raises:
        ValueError: the text is not a tokenizer, or lacks one of these tokens.
    """

    def __init__(self, text: str, bos: str | None, eos: str, pad: str | None) -> None:
        self._text, self._names = text, (bos, eos, pad)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            tree = json.loads(text)
            ids = self._tokenizer.get_vocab(with_added_tokens=True)
            whole, stand_in = _with_unknown(tree, ids)
            if whole is not tree:
                self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(whole))
        except Exception as error:  # the binding raises plain Exception
            raise ValueError(f"not a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # special tokens in text are encoded as plain text
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None  # otherwise merges would be random
        if missing := [name for name in self._names if name is not None and name not in ids]:
            raise ValueError(f"it does not have the tokens {', '.join(missing)} that {CONFIG_FILE} names")
        self._vocab_size = max(ids.values()) + 1
        self.special = SpecialTokens(ids[bos] if bos is not None else None, ids[eos], ids[pad or eos])
        added = self._tokenizer.get_added_tokens_decoder()
        unknown = _unknown(tree["model"], ids)
        unknowns = {token for token in (unknown, stand_in) if token is not None}
        # Some vocabularies list their byte tokens as special, but only to keep text from matching their names.
        of_bytes = _byte_tokens(tree["model"], ids)
        special = {token_id for token_id, token in added.items() if token.special} - of_bytes
        self.special_ids = frozenset(special | ({unknown} if unknown is not None else set()))
        # If the unknown token also ends a text, as in CLIP, it cannot stand for a character inside a text.
        self.unknown = unknown if unknown not in (self.special.bos, self.special.eos) else None
        self._refused = unknowns - {self.unknown}
        self._special = special - unknowns
        self._suspects = frozenset(special | unknowns)
        self._unknown_text = (unknown is not None and self._tokenizer.id_to_token(unknown)) or ""

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, special tokens included."""
        return self._vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over the file, `bos`, `eos` and `pad`."""
        return hashlib.sha256(json.dumps([self._text, self._names]).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        found = self._encode(text)
        ids = list(found.ids)
        return ids if self._suspects.isdisjoint(ids) else self._apart(text, found)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        """See `Tokenizer`."""
        found: list[list[int] | ValueError] = []
        for start in range(0, len(texts), _BATCH):
            found += self._together(texts[start : start + _BATCH])
        return found

    def _together(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        with suppress(ValueError), _errors():  # fails if one of the texts cannot be encoded
            encoded = [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            return [
                ids if self._suspects.isdisjoint(ids) else self._attempt(text)
                for text, ids in zip(texts, encoded, strict=True)
            ]
        return super().encode_batch(texts)

    def _encode(self, text: str) -> tokenizers.Encoding:
        try:
            with _errors(text):
                return self._tokenizer.encode(text, add_special_tokens=False)
        except ValueError as error:
            if "unk_id" in str(error) and (missing := {one for one in set(text) if not self._has(one)}):
                raise ValueError(_without_token(missing)) from None
            raise

    def _has(self, character: str) -> bool:
        """Returns whether a Unigram vocabulary without an unknown token can encode a character."""
        try:
            with _errors():
                self._tokenizer.encode(character, add_special_tokens=False)
        except ValueError:
            return False
        return True

    def _apart(self, text: str, found: tokenizers.Encoding) -> list[int]:
        """Returns ids without special tokens, by splitting each special token in the text after its first character.

        In a Unigram vocabulary, special tokens are ordinary pieces, so text can encode to them.

        Args:
            text: the encoded text.
            found: its encoding, which may contain special tokens.
        """
        spans = list(zip(found.ids, found.offsets, strict=True))
        if missing := {text[slice(*span)] for token, span in spans if token in self._refused}:
            raise ValueError(_without_token(missing))
        cuts = {start + 1 for token, (start, stop) in spans if token in self._special and stop - start > 1}
        if not cuts and (special := self._special & set(found.ids)):
            name = self._tokenizer.id_to_token(min(special))
            raise ValueError(f"text encodes to the special token {name!r}, wherever it is split")
        if len(self._unknown_text) > 1:
            for start, stop in (span for token, span in spans if token == self.unknown):
                # Adjacent unknown characters may share one token.
                hits = re.finditer(re.escape(self._unknown_text), text[start:stop])
                cuts |= {start + hit.start() + 1 for hit in hits}
        if not cuts:
            return list(found.ids)
        parts = [text[start:stop] for start, stop in pairwise([0, *sorted(cuts), len(text)])]
        return [token for part in parts for token in self._apart(part, self._encode(part))]

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
        # Word decoders strip the space before the first word.
        return " " + text if name[:1] in ("\u2581", "\u0120") and not text.startswith(" ") else text

    def extended(self, tokens: Sequence[str]) -> HuggingFaceTokenizer:
        """See `Tokenizer`."""
        added, next_id = {}, self.vocab_size
        for token in tokens:
            token_id = self.find(token)
            added[next_id if token_id is None else token_id] = AddedToken(token, True)
            next_id += token_id is None
        return HuggingFaceTokenizer(with_tokens(self._text, added), *self._names)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and a `tokenizer_config.json` with `bos`, `eos` and `pad`."""
        bos, eos, pad = self._names
        (Path(folder) / FILE).write_text(self._text, encoding="utf-8")
        names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(names) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[str | None, ...]]:
        return type(self), (self._text, *self._names)


def from_repository(text: str, found: RepositoryTokens) -> HuggingFaceTokenizer:
    """Returns the tokenizer defined by a `tokenizer.json` and the files next to it.

    Raises:
        ValueError: no file names an end-of-text token, or the files contradict each other.
    """
    if found.eos is None:
        raise ValueError(
            f"no file names the token that ends a text; put a {CONFIG_FILE} with eos_token next to the tokenizer.json"
        )
    return HuggingFaceTokenizer(with_tokens(text, found.added), found.bos, found.eos, found.pad)


def added_tokens(text: str) -> dict[int, AddedToken]:
    """Returns the added tokens of a `tokenizer.json` by id. Raises ValueError if the text is not a tokenizer."""
    try:
        entries = json.loads(text)["added_tokens"]
        return {entry["id"]: AddedToken(entry["content"], entry["special"]) for entry in entries}
    except (ValueError, TypeError, KeyError):
        raise ValueError("not a tokenizer.json") from None


def with_tokens(text: str, tokens: Mapping[int, AddedToken]) -> str:
    """Returns the file's text with tokens appended, renamed or made special; unchanged if there is nothing to do."""
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
    """Changes the text of a token in the model's vocabulary."""
    if isinstance(model["vocab"], list):
        model["vocab"][token_id][0] = text
    else:
        model["vocab"] = {(text if number == token_id else name): number for name, number in model["vocab"].items()}


@contextmanager
def _errors(text: str = "") -> Iterator[None]:
    """Converts every error of the binding to a ValueError. It raises plain Exception, and its own class for panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text.encode()  # raises an error that shows a lone surrogate; the binding's error does not
        raise ValueError(f"the tokenizer cannot encode the text: {error}") from None


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """Returns the id of the model's unknown token."""
    found = model["unk_id"] if "unk_id" in model else ids.get(model.get("unk_token") or "")
    return None if found is None else int(found)


def _byte_tokens(model: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    """Returns the ids of the byte-fallback tokens, which encode characters that the vocabulary lacks."""
    if not model.get("byte_fallback"):
        return set()
    return {ids[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in ids}


def _without_token(characters: set[str]) -> str:
    return f"the vocabulary has no token for {_listed(characters)}, and none for unknown characters"


def _with_unknown(tree: dict[str, Any], ids: Mapping[str, int]) -> tuple[dict[str, Any], int | None]:
    """Adds an unknown token to a BPE model that has none, and returns its id, which is outside the vocabulary.

    Otherwise the model would silently drop unknown characters. For other models, returns the same tree and None.
    """
    model = tree["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or (model.get("unk_token") or "") in ids:
        return tree, None
    if '"ByteLevel"' in json.dumps(tree.get("pre_tokenizer")) and ids.keys() >= set(ByteLevel.alphabet()):
        return tree, None  # there is a token for every byte
    stand_in = max(ids.values()) + 1
    # Added tokens get their ids from the vocabulary, so all of them must be in it.
    model = model | {"unk_token": _STAND_IN, "fuse_unk": False, "vocab": {**ids, _STAND_IN: stand_in}}
    return tree | {"model": model}, stand_in


def _listed(characters: set[str]) -> str:
    """Returns a text that lists a few characters with their code points."""
    shown = sorted(characters)
    named = ", ".join(f"{one!r} ({' '.join(f'U+{ord(part):04X}' for part in one)})" for one in shown[:_SHOWN])
    return named + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")
