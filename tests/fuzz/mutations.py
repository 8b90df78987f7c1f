"""Changes of bytes and of JSON, drawn from a seeded generator."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import zstandard

# ---------------------------------------------------------------------------------------------- bytes

_PIECES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r\n", b'"', b"[", b"]", b"{", b"}", b",", b"\\", b"\x80"),
    *(b"\xed\xa0\x80", "\u2028".encode(), b"PAR1", b"ARROW1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\0" * 512),
)
_WHOLE = ((1, 0), (1, 0xFF), (4, 0), (4, 0xFFFFFFFF), (4, 0x7FFFFFFF), (8, 2**64 - 1), (8, 2**63 - 1), (8, 2**32))


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Returns the bytes after one to three changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(_BYTE_CHANGES)(data, random)
    return data


def _span(data: bytes, random: Random) -> tuple[int, int]:
    """Returns the limits of a piece, which is more often short than long."""
    start = random.randrange(len(data) + 1)
    longest = len(data) - start
    return start, start + random.randint(0, min(longest, random.choice((1, 4, 16, 64, 512, longest))))


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut_out(data: bytes, random: Random) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + data[stop:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, stop = _span(data, random)
    return data[:stop] + data[start:stop] * random.choice((1, 1, 2, 50)) + data[stop:]


def _insert(data: bytes, random: Random) -> bytes:
    start, _ = _span(data, random)
    piece = random.choice((random.choice(_PIECES), random.randbytes(random.choice((1, 3, 20)))))
    return data[:start] + piece + data[start:]


def _swap(data: bytes, random: Random) -> bytes:
    a, b = sorted((_span(data, random), _span(data, random)))
    if a[1] > b[0]:
        return data[::-1] if len(data) < 50 else data[a[1] :] + data[: a[1]]
    return data[: a[0]] + data[b[0] : b[1]] + data[a[1] : b[0]] + data[a[0] : a[1]] + data[b[1] :]


def _overwrite(data: bytes, random: Random) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + random.choice((b"\0", b"\xff", b" ")) * (stop - start) + data[stop:]


def _set_number(data: bytes, random: Random) -> bytes:
    width, value = random.choice(_WHOLE)
    start = random.randrange(max(1, len(data) - width))
    return data[:start] + value.to_bytes(width, random.choice(("little", "big"))) + data[start + width :]


_BYTE_CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_flip, _flip, _cut_out, _repeat, _insert, _swap, _overwrite, _set_number),
    lambda data, random: data[: random.randrange(len(data) + 1)],
    lambda data, random: data[random.randrange(len(data) + 1) :],
    lambda data, random: data + data,
)


def compress(data: bytes, random: Random) -> bytes:
    """Returns the bytes compressed in one of the ways that readers know."""
    return random.choice(_COMPRESSIONS)(data)


_COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: gzip.compress(data, mtime=0),
    lambda data: gzip.compress(data[: len(data) // 2], mtime=0) + gzip.compress(data[len(data) // 2 :], mtime=0),
    zstandard.compress,
    bz2.compress,
    lzma.compress,
)


def encode(data: bytes, random: Random) -> bytes:
    """Returns UTF-8 text in another encoding."""
    text = data.decode(errors="replace")
    return random.choice(
        (
            lambda: b"\xef\xbb\xbf" + data,
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-be"),
            lambda: text.encode("utf-32"),
            lambda: text.encode("latin-1", errors="replace"),
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
        )
    )()


# ----------------------------------------------------------------------------------------------- JSON


@dataclass(frozen=True)
class Raw:
    """Text that stands in JSON as it is."""

    text: str


class Pairs(list[tuple[str, Any]]):
    """A mapping that may have a key twice."""


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3.5, 1e308, -1e-320, 10**18, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-0")),
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u2028", "\ufeff", "é" * 300, "x" * 5000, "null", "1"),
    *("../../../../etc/hostname", "/", ".", "..", "~", "a" * 300, "a/" * 3000, "%00", "%zz", "file:///dev/zero"),
    *(
        "http://x.org/a.png",
        "data:",
        "data:image/png;base64,",
        "data:image/png;base64,!!",
        "data:,x",
        "ftp://x.org/a.png",
    ),
    *("<image>", "<image>\n<image>", "<video>", "<img>a.png</img>", "<img>", "<|im_end|>", "</s>", "{}", "[]", "{0}"),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": None},
        [None],
        {"a": {}},
        [1, "a", None, []],
        {"bytes": None, "path": None},
        {"bytes": []},
    ),
    *(
        Raw("[" * 400 + "]" * 400),
        Raw("[" * 5000 + "]" * 5000),
        Raw("[" * 200_000),
        Raw('{"a":' * 3000 + "1" + "}" * 3000),
    ),
)
_KEYS = (
    *("id", "image", "images", "image_id", "file_name", "text", "texts", "caption", "video", "frames", "times", "fps"),
    *("role", "from", "content", "value", "type", "weight", "loss", "system", "tools", "messages", "conversations", ""),
    *(
        "bytes",
        "path",
        "url",
        "question",
        "answer",
        "answers",
        "split",
        "\ud800",
        "\0",
        "key\u2028",
        "metadata",
        "history",
    ),
)


def mutate_json(value: Any, random: Random) -> Any:
    """Returns a copy of a JSON value after one to three changes; it may hold `Raw` and `Pairs`."""
    value = deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holders = _containers(value)
        if not holders:
            return _replacement(value, value, random)
        holder = random.choice(holders) if random.random() < 0.9 else value
        random.choice(_JSON_CHANGES)(holder, value, random)
    return value


def _containers(value: Any) -> list[Any]:
    found, waiting = list[Any](), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value and not isinstance(value, Pairs):
            found.append(value)
            waiting += value.values() if isinstance(value, dict) else value
    return found


def _places(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def _replacement(old: Any, root: Any, random: Random) -> Any:
    draw = random.random()
    if draw < 0.55:
        return deepcopy(random.choice(_ODD))
    if draw < 0.7:  # another part of the document
        holders = _containers(root)
        return deepcopy(random.choice(holders)) if holders else old
    if isinstance(old, str) and draw < 0.9:
        place = random.randrange(len(old) + 1)
        piece = random.choice([odd for odd in _ODD if isinstance(odd, str)])
        return random.choice(
            (
                old[:place] + piece + old[place:],
                old[:place],
                old * 2,
                old.upper(),
                [old],
                old.encode(errors="replace").hex(),
            )
        )
    if isinstance(old, int | float) and draw < 0.9:
        return random.choice((-old, old + 1, old * 10**10, str(old), old % 1.5 if abs(old) < 1e300 else 0.5, bool(old)))
    return random.choice(([old], {"a": old}, [old, old], json.dumps(old, default=str)))


def _replace(holder: Any, root: Any, random: Random) -> None:
    places = _places(holder)
    if places:
        place = random.choice(places)
        holder[place] = _replacement(holder[place], root, random)


def _remove(holder: Any, root: Any, random: Random) -> None:
    places = _places(holder)
    if places:
        del holder[random.choice(places)]


def _rename(holder: Any, root: Any, random: Random) -> None:
    if isinstance(holder, dict) and holder:
        old = random.choice(list(holder))
        new = random.choice((random.choice(_KEYS), old + "s", old.upper(), " " + old))
        items = [(new if key == old else key, value) for key, value in holder.items()]
        holder.clear()
        holder.update(items)
    elif isinstance(holder, list):
        random.shuffle(holder)


def _add(holder: Any, root: Any, random: Random) -> None:
    value = deepcopy(random.choice(_ODD))
    if isinstance(holder, dict):
        holder[random.choice(_KEYS)] = value
    else:
        holder.insert(random.randrange(len(holder) + 1), value)


def _double(holder: Any, root: Any, random: Random) -> None:
    """Makes a mapping in the holder have a key twice, or repeats an element."""
    inside = [place for place in _places(holder) if isinstance(holder[place], dict) and holder[place]]
    if inside:
        place = random.choice(inside)
        pairs = list(holder[place].items())
        holder[place] = Pairs([*pairs, (random.choice(pairs)[0], deepcopy(random.choice(_ODD)))])
    elif isinstance(holder, list) and holder:
        holder += [deepcopy(random.choice(holder))] * random.choice((1, 5))


_JSON_CHANGES = (_replace, _replace, _replace, _remove, _rename, _add, _double)


def dump(value: Any, random: Random) -> bytes:
    """Returns JSON text, in which lone surrogates may stand as bytes."""
    escape = random.random() < 0.5
    parts: list[str] = []
    _write(value, parts, escape)
    return "".join(parts).encode("utf-8", "surrogatepass")


def _write(value: Any, parts: list[str], escape: bool) -> None:
    if isinstance(value, Raw):
        parts.append(value.text)
    elif isinstance(value, dict | Pairs):
        items = value.items() if isinstance(value, dict) else value
        parts.append("{")
        for number, (key, item) in enumerate(items):
            parts.append(f"{', ' if number else ''}{json.dumps(key, ensure_ascii=escape)}: ")
            _write(item, parts, escape)
        parts.append("}")
    elif isinstance(value, list | tuple):
        parts.append("[")
        for number, item in enumerate(value):
            parts.append(", " if number else "")
            _write(item, parts, escape)
        parts.append("]")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        parts.append("1" + "0" * 400)
    else:
        parts.append(json.dumps(value, ensure_ascii=escape))
