"""Examples in JSON files: a list, one value per line (JSONL, NDJSON), or concatenated values.

The layout is detected from the content, not from the file name. Files may be compressed, and encoded in UTF-8 or
UTF-16. An uncompressed file is split into parts without parsing it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np

from solo.config import ConfigError
from solo.data.readers.file_kinds import advice, file_kind
from solo.data.readers.json_scan import Scanner, pieces
from solo.data.readers.paths import Paths, expand
from solo.data.readers.registry import Part, Unreadable
from solo.data.readers.text_files import MAX_BYTES, DamagedError, TextFile, line_ends, lines, short_names, spans
from solo.data.record import Place

Layout = Literal["list", "lines", "values"]


def parts(paths: Paths, size: int, what: str) -> Iterator[Part]:
    """Splits JSON files.

    Args:
        paths: a path, a glob or a list of them.
        size: maximum number of examples per part. A file that is compressed or in UTF-16 is one part.
        what: name of the caller, for error messages, such as "reader 'llava'".

    Raises:
        ConfigError: a file does not exist, or the only file is of a known kind other than JSON.
    """
    found = expand(paths, what)
    for path, name in zip(found, short_names(found), strict=True):
        try:
            file = TextFile.open(path)
            layout, begun = _layout(file)
            if layout is None and len(found) == 1:
                _refuse(file, what)
            if not file.seekable or layout is None:
                yield Part(name, (path,), (layout, begun, None, 1, name))
                continue
            blocks = file.blocks(begun)
            ends = line_ends(blocks) if layout == "lines" else _element_ends(blocks, layout)
            for start, stop, first, last in spans(ends, begun, size):
                yield Part(f"{name}:{first}-{last}", (path,), (layout, start, stop, first, name), (start, stop))
        except DamagedError:
            yield Part(name, (path,), (None, 0, None, 1, name))  # `read` reports why


def elements(part: Part) -> Iterator[tuple[Place, Any] | Unreadable]:
    """Yields every example of a part: its place and its parsed JSON, or why it cannot be read.

    The place is a line number, or the number of an element in the file's list. Blank lines are skipped. An example
    with a duplicate key in a mapping is unreadable, because one of the values would be lost.
    """
    (path,) = part.files
    layout, start, stop, first, name = part.span
    number = first - 1
    try:
        file = TextFile.open(path)
        blocks = file.blocks(start, stop)
        if layout is None:
            for block in blocks:
                kind = file_kind(block)
                if kind is not None:
                    raise DamagedError(f"it is {kind}, not JSON{advice(kind)}")
            raise DamagedError("the file is empty")
        found = lines(blocks, first) if layout == "lines" else _numbered(blocks, layout, first, stop is None)
        for number, text in found:
            if layout == "lines" and not text.strip():
                continue
            place = Place(path, number)
            try:
                value = parse(text)
            except ValueError as error:
                yield Unreadable(f"{name}:{number}", str(error), place)
                continue
            yield place, value
    except DamagedError as error:
        yield Unreadable(f"{name}:{number + 1}" if layout else name, str(error), Place(path, number + 1))


def name_of(part: Part, place: Place) -> str:
    """Returns a name for an example without an id, such as `chats.jsonl:17`."""
    return f"{part.span[4]}:{place.line}"


def _numbered(blocks: Iterator[bytes], layout: Layout, first: int, is_last: bool) -> Iterator[tuple[int, bytes]]:
    """Yields the elements of a list, or concatenated values, with their numbers.

    Raises:
        DamagedError: the list is not closed, or text follows it.
    """
    number, closed = first - 1, layout == "values" or not is_last
    for kind, text in pieces(blocks, depth=1 if layout == "list" else 0):
        if kind == "element":
            number += 1
            yield number, text
        elif kind == "closed":
            closed = True
        elif closed and layout == "list":
            raise DamagedError(f"text follows the end of the list: {shown(text)}")
        else:
            why = "it has been cut off, or a quotation mark or bracket is missing"
            raise DamagedError(f"the file ends within an example: {why}: {shown(text)}")
    if not closed:
        raise DamagedError("the list is not closed: the file has been cut off")


def _element_ends(blocks: Iterator[bytes], layout: Layout) -> Iterator[tuple[int, np.ndarray]]:
    scanner = Scanner(depth=1 if layout == "list" else 0)
    for block in blocks:
        ends, closed = scanner.feed(block)
        yield len(block), ends
        if closed is not None:
            return
    # One extra byte after an unclosed list: its last part then does not end with an element, and detects the fault.
    yield int(layout == "list"), np.zeros(0, np.intp)


def _refuse(file: TextFile, what: str) -> None:
    """Raises ConfigError if the only file of a source is of a known kind other than JSON."""
    kind = file_kind(next(file.blocks(), b""))
    if kind is not None:
        raise ConfigError(f"{what}: {file.path} is {kind}, not JSON{advice(kind)}")


def _layout(file: TextFile) -> tuple[Layout | None, int]:
    """Returns the layout of a file's examples, and the byte where they begin; (None, 0) if it is empty or not text.

    A list begins with `[`, but so does a line that is itself a list. A mapping that is not alone on its line is one of
    several concatenated values. The text after the first line break distinguishes these cases.
    """
    blocks, skipped = file.blocks(), file.start
    head = b""
    for head in blocks:
        if head.strip():
            break
        skipped += len(head)
    text = head.lstrip()
    if not text or file_kind(head) is not None:
        return None, 0
    begun = skipped + len(head) - len(text)
    before, after = _around_line_break(chain([text], blocks))
    if text.startswith(b"["):
        alone = before != b"]" or after not in (b"[", b"{")
        return ("list", begun + 1) if alone else ("lines", begun)
    if text.startswith(b"{") and (after in (b"}", b",", b":") or (after == b'"' and before != b"}")):
        return "values", begun
    return "lines", file.start


def _around_line_break(blocks: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Returns the last character of the first line and the first character after it, ignoring white space."""
    before, broken = b"", False
    for block in blocks:
        if not broken:
            line, separator, block = block.partition(b"\n")
            before = line.rstrip()[-1:] or before
            broken = bool(separator)
        if broken and block.strip():
            return before, block.lstrip()[:1]
    return before, b""


def parse(text: bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: it is invalid, too long or nested too deeply, or a mapping has a duplicate key; the message says
            which.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        return _DECODER.decode(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not valid UTF-8: byte 0x{text[error.start]:02x} at position {error.start}") from None
    except json.JSONDecodeError as error:
        if not text.strip():
            raise ValueError("there is nothing between two commas") from None
        fault = f"{error.msg[0].lower()}{error.msg[1:]} at character {error.pos + 1}"
        raise ValueError(f"it is not valid JSON: {fault}: {shown(text)}") from None
    except ValueError as error:
        # Python refuses to convert integers with too many digits.
        raise ValueError("a number has too many digits" if "digits" in str(error) else str(error)) from None
    except RecursionError:
        raise ValueError("its lists or mappings are nested too deeply") from None


def shown(text: bytes, most: int = 40) -> str:
    """Returns the beginning of a text for an error message."""
    begun = text.strip()[: most + 1].decode(errors="replace")
    return repr(begun if len(begun) <= most else begun[:most] + "...")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice!r} twice")
    return found


# Control characters in strings are accepted, because they are unambiguous.
_DECODER = json.JSONDecoder(object_pairs_hook=_mapping, strict=False)
