"""Examples of conversation datasets: mappings with messages, a list of images, and other keys.

A known key that changes the meaning of an example is either read or refused. Each part of a source reports every other
key once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from solo.data.readers.conversations import PLACEHOLDER, Ignore, conversation
from solo.data.readers.image_files import load_image
from solo.data.readers.registry import Ignored
from solo.data.readers.wording import kind, shown
from solo.data.record import Image, Place, Record, Turn

MESSAGES = ("messages", "conversations", "conversation")
IMAGES = ("image", "images")
OTHER_IMAGES = (
    *("Image", "Images", "image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls"),
    *("img", "imgs", "img_path", "img_paths", "picture", "pictures"),
)
SYSTEM = ("system", "system_prompt")
_PAIRS = ("query", "response", "history")
_MEDIA = frozenset(("video", "videos", "audio", "audios", "speech", "point_cloud"))
MEDIA = _MEDIA | {*IMAGES, *OTHER_IMAGES}
_CHANGING = frozenset(("tools", "functions", "objects", "chosen", "rejected", "rejected_response", "rejected_messages"))
_WEIGHTS = frozenset(("weight", "loss", "loss_weight", "sample_weight"))
TELLING = _MEDIA | _CHANGING | _WEIGHTS | {*SYSTEM}
"""Keys beside the messages and images that change what an example means. They are read or refused."""

_HINTS = ("image", "img", "picture", "photo", "pixel", "video", "audio")
_MOST_KEYS = 100
_NAME = re.compile(r"<image_\d+>")


class IgnoredKeys:
    """Collects keys that are not read, each once. Call it with a key; `take` returns the new keys.

    `harmless` contains the keys whose values need no check, so examples with only these keys take a fast path.
    """

    def __init__(self) -> None:
        self.harmless = set[str]()
        self._seen, self._new = set[str](), list[str]()

    def __call__(self, key: str) -> None:
        """Records a key."""
        if key not in self._seen and len(self._seen) < _MOST_KEYS:
            self._seen.add(key)
            self._new.append(key)

    @property
    def has_new(self) -> bool:
        """Whether there are new keys since the last call of `take`."""
        return bool(self._new)

    def take(self, place: Place | None) -> list[Ignored]:
        """Returns the new keys since the last call. `place` is the place of the example that contains them."""
        new, self._new = self._new, []
        return [Ignored(key, place) for key in new]


def read_example(
    example: Any,
    name: str,
    place: Place | None,
    ignore: Ignore,
    folder: str = ".",
    message_keys: tuple[str, ...] = MESSAGES,
    images: list[Any] | None = None,
    load: Callable[[Any], Image] | None = None,
) -> Record:
    """Returns the conversation of an example.

    Args:
        example: parsed JSON, or a table row.
        name: id to use if the example has none.
        place: place of the example in its file.
        ignore: called with every key that is not read.
        folder: folder that relative image paths start from.
        message_keys: possible keys of the messages; the first one present is read.
        images: the example's images, if they are not in the example itself.
        load: loads the image that a value describes; by default `load_image`.

    Raises:
        ValueError: the example is unusable, or part of its meaning would be lost; the message says why.
    """
    if not isinstance(example, Mapping):
        raise ValueError(f"an example must be a mapping, not {kind(example)}")
    used: tuple[str, ...] = ()
    messages = None
    for key in message_keys:
        messages = example.get(key)
        if messages is not None:
            used = (key,)
            break
    if messages is None and "messages" in message_keys:
        messages, used = _question_and_answer(example), _PAIRS
    if messages is None:
        raise ValueError(_absence(example, message_keys))
    found, hint = _check(example, used, ignore)
    if len(found) == 1 and isinstance(found[0], Mapping) and found[0] and all(map(_NAME.fullmatch, found[0])):
        messages, found = _place_named(messages, found[0])
    if images is not None and found:
        raise ValueError("it names images, and there are others beside it")
    turns = conversation(messages, found or images or [], load or partial(load_image, folder=folder), ignore)
    system = _system(example)
    if system is not None:
        if any(turn.role == "system" for turn in turns):
            raise ValueError("it has a system turn, and another in its key 'system'")
        turns = (Turn("system", (system,)), *turns)
    record = Record(record_id(example.get("id"), name), turns, place)
    if hint is not None and not record.images():
        raise ValueError(f"it has {hint!r} but no image: name the key 'image' if it holds one")
    return record


def record_id(value: Any, name: str) -> str:
    """Returns an example's id as a string, or `name` if it has none."""
    if isinstance(value, str) and value:
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else name


def example_id(example: Any, name: str) -> str:
    """Returns the id of an example, or `name` if it has none or is not a mapping."""
    return record_id(example.get("id"), name) if isinstance(example, Mapping) else name


def joined(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Joins turns to one `text` turn, all of it trained on. Raises ValueError if a turn must not be trained on."""
    if not all(turn.learned for turn in turns):
        raise ValueError("a turn is only read, but all are learned with train_on_inputs")
    content: list[str | Image] = [part for turn in turns for part in turn.content]
    return (Turn("text", tuple(content)),)


def check_text_only(example: Mapping[str, Any], field: str, ignore: IgnoredKeys) -> None:
    """Reports the keys other than `field`. Raises ValueError if one of them has content that would be lost."""
    if ignore.harmless.issuperset(example):
        return
    for key, value in example.items():
        if key in MEDIA and not _is_empty(value):
            raise ValueError(f"it has {key!r}, but the reader reads only text")
        if key not in ("id", field):
            ignore(key)
        if key not in MEDIA and len(ignore.harmless) < _MOST_KEYS:
            ignore.harmless.add(key)


def refuse(example: Mapping[str, Any]) -> None:
    """Raises ValueError if a caption or a question-answer pair has a key that changes its meaning."""
    for key, value in example.items():
        if key in _WEIGHTS and value not in (None, 1):
            raise ValueError(f"its {key!r} is {shown(value)}, but only sources and turns have weights")
        if (key in _MEDIA or key in SYSTEM) and not _is_empty(value):
            raise ValueError(f"its key {key!r} is not supported")


def _check(example: Mapping[str, Any], used: tuple[str, ...], ignore: Ignore) -> tuple[list[Any], str | None]:
    """Returns the images that an example lists, and the name of a key that may contain more, or None.

    Args:
        example: the example.
        used: keys of its messages.
        ignore: called with every key that is not read.

    Raises:
        ValueError: a key is refused.
    """
    harmless = ignore.harmless if isinstance(ignore, IgnoredKeys) else set[str]()
    if harmless.issuperset(example):
        return [], None
    images, others, hint = list[Any](), list[str](), None
    for key, value in example.items():
        if key in _WEIGHTS:
            if value not in (None, 1):
                raise ValueError(f"its {key!r} is {shown(value)}, but only sources and turns have weights")
        elif key in SYSTEM or (_is_empty(value) and key not in used):
            continue
        elif key in IMAGES:
            if images and images != _listed(value):
                raise ValueError("it has both 'image' and 'images'")
            images = _listed(value)
        elif key in OTHER_IMAGES:
            others.append(key)
        elif key in _MEDIA or key in _CHANGING:
            raise ValueError(f"its key {key!r} is not supported")
        else:
            if key != "id" and key not in used:
                ignore(key)
            if any(word in key.lower() for word in _HINTS):
                hint = key if isinstance(value, str | list | Mapping) else hint
            elif len(harmless) < _MOST_KEYS:
                harmless.add(key)
    if len(others) > 1 and not images:
        raise ValueError(f"it has both {others[0]!r} and {others[1]!r}: name the one to read 'image'")
    if others and not images:
        return _listed(example[others[0]]), None
    for key in others:
        ignore(key)
    return images, hint


_EMPTY: tuple[Any, ...] = ("", "[]", [], (), {})


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | tuple | dict) and value in _EMPTY)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _system(example: Mapping[str, Any]) -> str | None:
    found = [example[key] for key in SYSTEM if not _is_empty(example.get(key))]
    if not found:
        return None
    if len(found) > 1 or not isinstance(found[0], str):
        raise ValueError("its system turn must be one string")
    return found[0]


def _place_named(messages: Any, named: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Replaces image names in messages with `<image>` (MiniCPM-V). Returns the messages and the images in order."""
    order: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[0] not in named:
            raise ValueError(f"there is no image {match[0]}")
        order.append(match[0])
        return PLACEHOLDER

    placed = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError("images with names need messages with text as their content")
        placed.append({**message, "content": _NAME.sub(place, message["content"])})
    unplaced = [name for name in named if name not in order]
    if order and unplaced:
        raise ValueError(f"the text does not place image {unplaced[0]}")
    return placed, [named[name] for name in order or named]


def _question_and_answer(example: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the messages of `{"query", "response", "history"}`, an older ms-swift format; None for other examples."""
    if example.get("response") is None:
        return None
    history = example.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        raise ValueError("'history' must be a list of pairs, a question and its answer")
    turns = [*history, (example.get("query"), example["response"])]
    pairs = [({"role": "user", "content": query}, {"role": "assistant", "content": answer}) for query, answer in turns]
    return [message for pair in pairs for message in pair if message["content"] is not None]


def _absence(example: Mapping[str, Any], message_keys: tuple[str, ...]) -> str:
    sets = [value for value in example.values() if isinstance(value, Mapping) and "annotation" in value]
    if sets:
        options = f"{{path: {shown(sets[0]['annotation'])}, images: {shown(sets[0].get('root'))}}}"
        return f"it lists datasets (InternVL's meta file), not examples: make each a source, with options {options}"
    wanted = " or ".join(repr(key) for key in message_keys)
    return f"it has no {wanted}; its keys are {', '.join(shown(str(key)) for key in list(example)[:8]) or 'none'}"
