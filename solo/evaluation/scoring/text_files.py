"""Files of text that a model is measured on: documents for perplexity, or questions with options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.config import ConfigError
from solo.data.readers.paths import COMPRESSED, READ_ERRORS, open_bytes, suffix

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Document:
    """A text that is predicted token by token."""

    id: str
    text: str


@dataclass(frozen=True)
class Choice:
    """A text, and options of which one continues it. `answer` is the number of the right one, from 0."""

    id: str
    context: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class TextFile:
    """The items of a file, all of one kind."""

    name: str
    items: Sequence[Document | Choice]

    @property
    def is_choice(self) -> bool:
        """Whether its items have options."""
        return isinstance(self.items[0], Choice)


def read_texts(paths: Sequence[str], limit: int | None = None) -> list[TextFile]:
    """Reads files, the first `limit` items of each.

    A `.jsonl` file has an object on each line: `{"text": ...}`, or `{"context": ..., "options": [...], "answer": ...}`,
    where the answer is a number from 0 or a letter from A. Any other file is one document. Files may be compressed.

    Raises:
        ConfigError: a file cannot be read or used, or two have the same name; the message says where.
    """
    found: dict[str, TextFile] = {}
    for path in paths:
        name = _name(path)
        if name in found:
            raise ConfigError(f"--text {path}: another file is named {name}, too, and results are named after files")
        items = list(_items(path, limit))
        kinds = {type(item) for item in items}
        if len(kinds) != 1:
            raise ConfigError(
                f"--text {path}: it has both documents and questions with options; put them into files of their own"
                if items
                else f"--text {path}: it holds no text"
            )
        found[name] = TextFile(name, items)
    return list(found.values())


def _items(path: str, limit: int | None) -> Iterator[Any]:
    try:
        with open_bytes(path) as file:
            content = file.read()
    except READ_ERRORS as error:
        raise ConfigError(f"--text {path}: cannot be read: {error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {path}: it is not UTF-8: {error.reason} at byte {error.start:,}") from None
    if suffix(path) not in (".jsonl", ".ndjson"):
        if text.strip():
            yield Document("1", text)
        return
    count = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or count == limit:
            continue
        count += 1
        yield _item(line, number, f"--text {path}: line {number:,}")


def _item(line: str, number: int, where: str) -> Document | Choice:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: it is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object, found {type(values).__name__}")
    name = str(values.get("id", number))
    if "options" in values:
        return _choice(name, values, where)
    if not isinstance(values.get("text"), str) or not values["text"]:
        raise ConfigError(f'{where}: it has neither a "text" nor "options"')
    return Document(name, values["text"])


def _choice(name: str, values: Mapping[str, Any], where: str) -> Choice:
    context, options, answer = values.get("context"), values["options"], values.get("answer")
    if not isinstance(context, str):
        raise ConfigError(f'{where}: "context" must be a text')
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(each, str) and each for each in options):
        raise ConfigError(f'{where}: "options" must be a list of at least two texts, none of them empty')
    if isinstance(answer, str) and len(answer) == 1:
        answer = _LETTERS.find(answer.upper())
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        raise ConfigError(
            f'{where}: "answer" must be a number from 0 to {len(options) - 1}, or a letter from A to'
            f" {_LETTERS[min(len(options), 26) - 1]}"
        )
    return Choice(name, context, tuple(options), answer)


def _name(path: str) -> str:
    name = Path(path).name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).stem
