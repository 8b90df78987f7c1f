"""LLaVA conversations, which LLaVA, LLaVA-NeXT, Mono-InternVL, EVE and NEO train on.

An example is `{"id", "image": path or list of paths, "conversations": [{"from": "human", "value": "<image>\\nWhy?"},
{"from": "gpt", "value": "Because."}]}`. Text-only examples have no "image".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from solo.config import ConfigError
from solo.data.readers.registry import Examples, Unreadable, reader
from solo.data.record import Image, Record, Role, Turn

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


@reader("llava")
def llava(path: str, images: str = ".", train_on_inputs: bool = False) -> Examples:
    """Yields the conversations of a .json file with one list, or of a .jsonl file, which is streamed.

    Image paths are relative to `images`. Every `<image>` in the text becomes the next image; the chat template keeps or
    removes the line breaks around it. If there is no `<image>`, the images begin the first human turn, one per line. An
    example is unreadable if its numbers of `<image>` and of images differ, a file is missing, a speaker is unknown, or
    a field has the wrong type.

    With `train_on_inputs`, every turn is learned, not only the assistant's: the turns become one `text` turn without
    speakers, as in SOLO's pre-training on captions and web pages.
    """
    for number, line in enumerate(_lines(Path(path)), start=1):
        name = f"{Path(path).name}:{number}"
        try:
            example = json.loads(line) if isinstance(line, str) else line
            if not isinstance(example, dict):
                raise ValueError(f"an example must be a mapping, not {type(example).__name__}")
            name = str(example.get("id", name))
            turns = _turns(example, Path(images))
            yield Record(name, _as_text(turns) if train_on_inputs else turns)
        except (ValueError, OSError) as error:
            yield Unreadable(name, str(error))


def _lines(path: Path) -> Iterator[Any]:
    """Yields the elements of a JSON list, or the unparsed lines of a JSONL file."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            if path.suffix != ".json":
                yield from (line for line in file if line.strip())
                return
            examples = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"reader 'llava': cannot read {path}: {error}") from None
    if not isinstance(examples, list):
        raise ConfigError(
            f"reader 'llava': {path} does not hold one JSON list; a file with one example per line must be named .jsonl"
        )
    yield from examples


def _turns(example: dict[str, Any], folder: Path) -> tuple[Turn, ...]:
    paths = example.get("image") or []
    paths = [paths] if isinstance(paths, str) else paths
    said = example.get("conversations")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("'image' must be a path or a list of paths")
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError("'conversations' must be a list of turns")
    speakers = [_role(turn) for turn in said]
    texts = [_text(turn) for turn in said]
    places = sum(text.count(PLACEHOLDER) for text in texts)
    if not places and paths and "user" in speakers:
        first = speakers.index("user")
        texts[first] = f"{PLACEHOLDER}\n" * len(paths) + texts[first]
    elif places != len(paths):
        raise ValueError(f"{places} {PLACEHOLDER} in the text for {len(paths)} images")
    images = (Image((folder / path).read_bytes()) for path in paths)
    return tuple(Turn(role, _content(text, images)) for role, text in zip(speakers, texts, strict=True))


def _as_text(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return (Turn("text", tuple(part for turn in turns for part in turn.content)),)


def _role(turn: dict[str, Any]) -> Role:
    if turn.get("from") not in _ROLES:
        raise ValueError(f"'from' must be one of {', '.join(_ROLES)}, not {turn.get('from')!r}")
    return _ROLES[turn["from"]]


def _text(turn: dict[str, Any]) -> str:
    if not isinstance(turn.get("value"), str):
        raise ValueError(f"'value' must be a string, not {turn.get('value')!r}")
    return str(turn["value"])


def _content(text: str, images: Iterator[Image]) -> tuple[str | Image, ...]:
    content: list[str | Image] = []
    for number, part in enumerate(text.split(PLACEHOLDER)):
        if number > 0:
            content.append(next(images))
        if part:
            content.append(part)
    return tuple(content)
