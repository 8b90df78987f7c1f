"""Parses conversations, in the formats that datasets use, to turns.

A message is `{"role", "content"}` (OpenAI) or `{"from", "value"}` (ShareGPT, LLaVA). Its content is a string, or a list
of parts: strings, text parts, and image parts. In a string, the placeholder `<image>` stands for the next image of a
separate list, and `<img>path</img>` is an image itself (Qwen-VL). An image part without an image also stands for the
next image of the list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from solo.data.readers.image_files import load_image
from solo.data.readers.wording import kind, shown
from solo.data.record import ROLES, Image, Role, Turn

PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Role] = {
    **{role: role for role in ROLES},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    "developer": "system",
}
"""Roles by the names that datasets give them."""

_TOOLS = ("tool", "tools", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
_LEARNED = ("weight", "loss", "train")  # keys of a message's loss mask
_READ_ONLY = "is_input"  # of NEO: an answer that is not learned
_SPEAKERS = ("role", "from")
_TEXTS = ("content", "value", "text")
_READ = frozenset((*_SPEAKERS, *_TEXTS, *_LEARNED, _READ_ONLY))
# Keys that change the meaning of a message. A message with a value for one of them is refused.
_REFUSED = frozenset(
    ("tool_calls", "tool_call_id", "function_call", "refusal", "reasoning_content", "thinking", "prefix")
) | frozenset(("image", "images", "video", "videos", "audio", "audios"))
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64", "bytes", "source")
_PART_READ = frozenset(("type", "text", "index", *_IMAGE_KEYS))
# Image placeholders of other packages, such as <|image_1|>, <image 1>, <Image> and <IMG_CONTEXT>.
_FOREIGN = re.compile(
    r"<\|?ima?ge?(?:[ _-]?(?:\d+|pad|placeholder|token|soft_token|context|here))?\|?>|<\|vision_start\|>|\[ima?ge?\]",
    re.IGNORECASE,
)
_PATH = re.compile(r"<img>([^<>\n]+)</img>")


class _Given:
    """An image given in the content. If `value` is None, it is an image from the list, by default the next one."""

    def __init__(self, value: Any, index: int | None = None) -> None:
        self.value, self.index = value, index


_NEXT = _Given(None)
_Parts = list["str | _Given"]
Ignore = Callable[[str], None]


def conversation(
    messages: Any,
    images: Sequence[Any] = (),
    load: Callable[[Any], Image] = load_image,
    ignore: Ignore = lambda key: None,
    placeholder: str | None = PLACEHOLDER,
) -> tuple[Turn, ...]:
    """Returns the turns of a conversation.

    Args:
        messages: a list of mappings.
        images: images for the placeholders and for image parts without an image, in order. Without any of these, the
            images are put at the start of the first turn that is not a system turn, one per line.
        load: loads the image that an element of `images` or an image part describes. It is called last, so images of
            an unusable conversation are not read.
        ignore: called with every key of a message or part that is not read.
        placeholder: text that stands for an image. None: there are no placeholders.

    Raises:
        ValueError: the placeholders do not match the images, a speaker, key or part is unknown, or an image cannot be
            loaded; the message says which.
    """
    if not isinstance(messages, list | tuple):
        raise ValueError(f"the messages must be a list, not {kind(messages)}")
    if not images and placeholder == PLACEHOLDER:
        plain = _plain(messages)
        if plain is not None:
            return plain
    turns: list[tuple[Role, _Parts, bool]] = []
    for number, message in enumerate(messages, start=1):
        try:
            turns.append(_parse(message, ignore, placeholder))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    places = [part for _, parts, _ in turns for part in parts if _is_listed(part)]
    if images and not places:
        _begin_with_images(turns, len(images))
    elif len(places) != len(images):
        raise ValueError(f"{len(places)} {placeholder or 'image parts'} in the text for {len(images)} images")
    listed = iter(_in_order(images, [place.index for place in places]))
    found = []
    for number, (role, parts, learned) in enumerate(turns, start=1):
        try:
            found.append(Turn(role, tuple(_loaded(parts, listed, load)), learned))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return tuple(found)


def parse_conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Parses `[{"role": ..., "content": ...}]` to turns, for a model to answer.

    Content is a string or a list of parts. A part is a string, `{"type": "text", "text": ...}` or
    `{"type": "image", "image": X}`, where X is a path, a data URI, encoded bytes or a Pillow image. OpenAI's
    `{"type": "image_url", "image_url": {"url": X}}` is equivalent. Text contains no placeholders.

    Raises:
        ValueError: a role or part is unknown, or an image file cannot be read; the message says which.
    """
    return conversation(messages, load=_readable, placeholder=None)


def _readable(value: Any) -> Image:
    image = load_image(value)
    if image.file is not None:
        try:
            image.size()
        except OSError as error:
            raise ValueError(f"cannot read image {image.file}: {error}") from None
    return image


def _plain(messages: Sequence[Any]) -> tuple[Turn, ...] | None:
    """Fast path: returns the turns if each message is just a role and a text, as most are; otherwise None."""
    turns = []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        (key, speaker), (text_key, text) = message.items()
        if text_key in _SPEAKERS:
            key, speaker, text_key, text = text_key, text, key, speaker
        role = SPEAKERS.get(speaker) if type(speaker) is str else None
        if role is None or key not in _SPEAKERS or text_key not in _TEXTS:
            return None
        if type(text) is not str or not text or "<im" in text:
            return None
        turns.append(Turn(role, (text,)))
    return tuple(turns)


def _is_listed(part: str | _Given) -> TypeGuard[_Given]:
    return isinstance(part, _Given) and part.value is None


def _in_order(images: Sequence[Any], indexes: Sequence[int | None]) -> Sequence[Any]:
    """Returns the images in placeholder order. Placeholders may have indexes: `{"type": "image", "index": 0}`."""
    if all(index is None for index in indexes):
        return images
    if sorted(-1 if index is None else index for index in indexes) != list(range(len(images))):
        shown = ", ".join("none" if index is None else str(index) for index in indexes)
        raise ValueError(f"its image parts have the indexes {shown} for {len(images)} images")
    return [images[index] for index in indexes if index is not None]


def _loaded(parts: _Parts, listed: Iterator[Any], load: Callable[[Any], Image]) -> list[str | Image]:
    return [part if isinstance(part, str) else load(next(listed) if _is_listed(part) else part.value) for part in parts]


def _begin_with_images(turns: list[tuple[Role, _Parts, bool]], count: int) -> None:
    for number, (role, parts, _) in enumerate(turns, start=1):
        if role == "system":
            continue
        for part in parts:
            foreign = _FOREIGN.search(part) if isinstance(part, str) and role == "user" else None
            if foreign is not None:
                raise ValueError(
                    f"message {number}: the placeholder of an image is {PLACEHOLDER!r}, not {foreign[0]!r}"
                )
        first = parts.pop(0) if parts and isinstance(parts[0], str) else ""
        opening: _Parts = ["\n", _NEXT] * count
        parts[:0] = [*opening[1:], f"\n{first}"]
        return
    raise ValueError(f"there is no turn for {count} images")


def _parse(message: Any, ignore: Ignore, placeholder: str | None) -> tuple[Role, _Parts, bool]:
    if not isinstance(message, Mapping):
        raise ValueError(f"it must be a mapping, not {kind(message)}")
    speaker, content = message.get("role"), message.get("content")
    if speaker is None:
        speaker = message.get("from")
    if content is None:
        content = message.get("value")
        if content is None:
            content = message.get("text")  # used in InternVL's documentation
    learned = True
    if len(message) > 2:
        for key, value in message.items():
            if key in _REFUSED and value not in (None, "", [], {}, False):
                raise ValueError(f"its key {key!r} is not supported")
            if key not in _READ and value is not None:
                ignore(key)
        learned = _learned(message, SPEAKERS.get(speaker) if isinstance(speaker, str) else None)
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        role = _role(speaker)
    if isinstance(content, str):
        return role, _split(content, placeholder), learned
    if not isinstance(content, list | tuple):
        raise ValueError(f"its content must be a string or a list of parts, not {kind(content)}")
    parts: _Parts = []
    for part in content:
        parts += _part(part, ignore, placeholder)
    return role, parts, learned


def _split(text: str, placeholder: str | None) -> _Parts:
    """Splits a text at its placeholders, and returns the pieces with images in place of the placeholders."""
    if placeholder is None or ("<im" not in text and placeholder not in text):
        return [text] if text else []
    parts: _Parts = []
    for number, piece in enumerate(_PATH.split(text)):
        if number % 2:
            parts.append(_Given(piece))
            continue
        first, *rest = piece.split(placeholder)
        parts += [first] if first else []
        for after in rest:
            parts += [_NEXT, after] if after else [_NEXT]
    return parts


def _role(speaker: Any) -> Role:
    """Returns the role for an alternative name of a speaker. Raises ValueError if the name is unknown."""
    if not isinstance(speaker, str):
        raise ValueError(f"its speaker must be a string, not {kind(speaker)}")
    if speaker.strip().lower() in SPEAKERS:
        return SPEAKERS[speaker.strip().lower()]
    if speaker.lower() in _TOOLS:
        raise ValueError(f"the speaker is {speaker!r}, but tool calls are not supported")
    raise ValueError(f"the speaker {speaker!r:.60} is not one of {', '.join(SPEAKERS)}")


def _learned(message: Mapping[str, Any], role: Role | None) -> bool:
    """Returns whether a turn is trained on, according to its keys. Raises ValueError unless they are 0 or 1."""
    found = {key: message[key] for key in _LEARNED if message.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{key!r} is {shown(value)}, but a turn is either learned (1) or only read (0)")
        if value and role in ("user", "system"):
            raise ValueError(f"{key!r} is {shown(value)}, but {role} turns are only read")
    read_only = message.get(_READ_ONLY)
    if read_only not in (None, 0, 1):
        raise ValueError(f"{_READ_ONLY!r} is {shown(read_only)}, but a turn is either learned (0) or only read (1)")
    return all(found.values()) and not read_only


def _part(part: Any, ignore: Ignore, placeholder: str | None) -> _Parts:
    if isinstance(part, str):
        return _split(part, placeholder)
    if isinstance(part, Image):
        return [_Given(part)]
    if not isinstance(part, Mapping):
        raise ValueError(f"a part must be a string or a mapping, not {kind(part)}")
    held = {key: value for key, value in part.items() if value is not None}
    for key in held.keys() - _PART_READ:
        ignore(str(key))
    sort = held.get("type")
    if sort is None:
        sort = "text" if "text" in held else "image"
        if len(held.keys() & _PART_READ) != 1:
            raise ValueError(f"a part needs a 'type'; it has {sorted(map(str, held))[:8]}")
    if sort in _TEXT_PARTS:
        if not isinstance(held.get("text"), str):
            raise ValueError(f"the text of a part must be a string, not {kind(held.get('text'))}")
        return _split(held["text"], placeholder)
    if sort in _IMAGE_PARTS:
        found = [held[key] for key in _IMAGE_KEYS if key in held]
        if len(found) > 1:
            raise ValueError("an image part holds two images")
        if found:
            return [_Given({"base64": found[0]} if "base64" in held else found[0])]
        index = held.get("index")
        return [_Given(None, index) if isinstance(index, int) else _NEXT]
    raise ValueError(f"a part of type {shown(sort)} is not supported")
