"""Plain text: `.txt` and other text files, a key of JSON examples, or a column of Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from solo.data.readers import json_files
from solo.data.readers.examples import MEDIA, IgnoredKeys, check_text_only, record_id
from solo.data.readers.file_kinds import file_kind
from solo.data.readers.paths import READ_ERRORS, Paths, expand, open_bytes, suffix
from solo.data.readers.registry import Examples, Ignored, Part, Reader, Unreadable, reader
from solo.data.readers.tables import Columns, open_table, table_parts, table_rows
from solo.data.readers.text_files import (
    MAX_BYTES,
    DamagedError,
    TextFile,
    line_ends,
    lines,
    short_names,
    spans,
)
from solo.data.readers.wording import kind, shown
from solo.data.record import Place, Record, Turn

_WHAT = "reader 'text'"
_JSON = (".json", ".jsonl", ".ndjson")
_MOST_FILES = 256  # per part
_BEFORE = 256  # bytes before a part that are searched for the end of the previous line


@reader("text")
@dataclass(frozen=True)
class Text(Reader):
    """Documents without speakers. All of their text is trained on.

    `document` says whether a text file is one document, or has one document per line or per paragraph (lines up to a
    blank one). `encoding` is the encoding of text files without a byte-order mark, UTF-8 by default. From JSON files
    (`.json`, `.jsonl`, `.ndjson`), Parquet and Arrow files, `field` is read; an example with an image or a video is
    unreadable.
    """

    path: Paths
    document: Literal["file", "line", "paragraph"] = "file"
    field: str = "text"
    encoding: str | None = None

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Splits files by lines, JSON elements or row groups; short text files share a part."""
        paths = expand(self.path, _WHAT)
        waiting: list[tuple[str, str]] = []  # (path, name) of files that are one document each
        for path, name in zip(paths, short_names(paths), strict=True):
            form = _form(path)
            if form == "text" and self.document == "file":
                waiting.append((path, name))
                if len(waiting) == min(size, _MOST_FILES):
                    yield _group(waiting)
                    waiting = []
                continue
            if waiting:
                yield _group(waiting)
                waiting = []
            yield from self._split(path, name, form, size)
        if waiting:
            yield _group(waiting)

    def _split(self, path: str, name: str, form: str, size: int) -> Iterator[Part]:
        if form == "text":
            yield from self._line_parts(path, name, size)
            return
        found = json_files.parts(path, size, _WHAT) if form == "json" else table_parts([path], size)
        for part in found:
            yield Part(name + part.name.removeprefix(short_names([path])[0]), part.files, (form, *part.span))

    def _line_parts(self, path: str, name: str, size: int) -> Iterator[Part]:
        try:
            file = TextFile.open(path, self.encoding)
            found = spans(line_ends(file.blocks()), file.start, size) if file.seekable else iter(())
            first = 0
            for start, stop, first, last in found:
                yield Part(f"{name}:{first}-{last}", (path,), ("lines", name, start, stop, first))
            if first:
                return
        except DamagedError:
            pass  # `read` reports why
        yield Part(name, (path,), ("lines", name, None, None, 1))

    def read(self, part: Part) -> Examples:
        """Yields the documents of a part."""
        sort, *span = part.span
        if sort == "files":
            for path, name in zip(part.files, span, strict=True):
                yield self._file(path, name)
        elif sort == "json":
            yield from self._json(Part(part.name, part.files, tuple(span)))
        elif sort == "table":
            yield from self._table(Part(part.name, part.files, tuple(span)))
        else:
            yield from self._lines(part.files[0], *span)

    def _file(self, path: str, name: str) -> Record | Unreadable:
        place = Place(path)
        try:
            blocks, size = list[bytes](), 0
            for block in TextFile.open(path, self.encoding).blocks():
                found = file_kind(block) if not blocks else None
                if found is not None:
                    return Unreadable(name, f"it is {found}, not text", place)
                blocks.append(block)
                size += len(block)
                if size > MAX_BYTES:
                    return Unreadable(name, f"it has more than {MAX_BYTES >> 20} MiB; set document: line", place)
        except DamagedError as error:
            return Unreadable(name, str(error), place)
        return _record(name, b"".join(blocks), place)

    def _lines(self, path: str, name: str, start: int | None, stop: int | None, first: int) -> Examples:
        number = first - 1
        try:
            file = TextFile.open(path, self.encoding)
            sort = file_kind(next(file.blocks(), b"")) if first == 1 else None
            if sort is not None:
                raise DamagedError(f"it is {sort}, not text")
            if self.document == "paragraph":
                found = _paragraphs(file, start, stop, first)
            else:
                found = ((number, line) for number, line in lines(file.blocks(start, stop), first) if line.strip())
            for number, text in found:
                yield _record(f"{name}:{number}", text.rstrip(b"\r\n"), Place(path, number))
            if first == 1 and number == 0 and not any(block.strip() for block in file.blocks()):
                raise DamagedError("the file is empty")
        except DamagedError as error:
            yield Unreadable(f"{name}:{number + 1}", str(error), Place(path, number + 1))

    def _json(self, part: Part) -> Examples:
        ignore = IgnoredKeys()
        for found in json_files.elements(part):
            if isinstance(found, Unreadable):
                yield found
                continue
            place, example = found
            yield self._example(example, json_files.name_of(part, place), place, ignore)
            if ignore.has_new:
                yield from ignore.take(place)

    def _table(self, part: Part) -> Examples:
        (path,) = part.files
        name = short_names([path])[0]
        if part.span[0] == "damaged":
            yield Unreadable(name, str(part.span[1]), Place(path))
            return
        try:
            columns = Columns(open_table(path).schema)
            columns.find(self.field, (), "field", f"{_WHAT}: {path}")
            read = [column for column in columns.schema.names if column in (self.field, "id", *MEDIA)]
            first = Place(path, part.span[4] + 1)
            yield from (Ignored(column, first) for column in columns.schema.names if column not in read)
            ignore = IgnoredKeys()
            for number, row in table_rows(part, read):
                place = Place(path, number)
                if isinstance(row, str):
                    yield Unreadable(f"{name}:{number}", row, place)
                else:
                    yield self._example(row, f"{name}:{number}", place, ignore)
        except DamagedError as error:
            yield Unreadable(name, str(error), Place(path))

    def _example(self, example: Any, name: str, place: Place, ignore: IgnoredKeys) -> Record | Unreadable:
        if isinstance(example, str):
            return _text(name, example, place)
        if not isinstance(example, dict):
            return Unreadable(name, f"an example must be a mapping or a string, not {kind(example)}", place)
        name = record_id(example.get("id"), name)
        text = example.get(self.field)
        if not isinstance(text, str):
            keys = ", ".join(shown(str(key)) for key in list(example)[:8])
            reason = f"its {self.field!r} is {kind(text)}" if self.field in example else f"it has no {self.field!r}"
            return Unreadable(name, f"{reason}; its keys are {keys or 'none'}", place)
        if len(example) > 1:
            try:
                check_text_only(example, self.field, ignore)
            except ValueError as error:
                return Unreadable(name, str(error), place)
        return _text(name, text, place)


def _form(path: str) -> Literal["text", "json", "table"]:
    try:
        with open_bytes(path) as file:
            if file.read(6).startswith((b"PAR1", b"ARROW1")):
                return "table"
    except READ_ERRORS:
        pass  # `read` reports why
    return "json" if suffix(path) in _JSON else "text"


def _group(files: list[tuple[str, str]]) -> Part:
    paths, names = zip(*files, strict=True)
    name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return Part(name, paths, ("files", *names))


def _record(name: str, text: bytes, place: Place) -> Record | Unreadable:
    if len(text) > MAX_BYTES:
        return Unreadable(name, f"it has more than {MAX_BYTES >> 20} MiB", place)
    try:
        return _text(name, text.decode(), place)
    except UnicodeDecodeError as error:
        reason = f"it is not valid UTF-8: byte 0x{text[error.start]:02x} at position {error.start}"
        return Unreadable(name, f"{reason}; set option 'encoding' if it is in another", place)


def _text(name: str, text: str, place: Place) -> Record | Unreadable:
    if not text or text.isspace():
        return Unreadable(name, "its text is empty", place)
    return Record(name, (Turn("text", (text,)),), place)


def _paragraphs(file: TextFile, start: int | None, stop: int | None, first: int) -> Iterator[tuple[int, bytes]]:
    """Yields the paragraphs that begin in a part, each with the number of its first line.

    The last paragraph may end in the next part, which skips these lines.
    """
    held, begun, offset = list[bytes](), first, start or 0
    skipping = start is not None and start > file.start and not _follows_blank_line(file, start)
    for number, line in lines(file.blocks(start), first):
        if not line.strip():
            if held:
                yield begun, b"\n".join(held)
            held, skipping = [], False
        elif not skipping:
            if not held:
                if stop is not None and offset >= stop:
                    return
                begun = number
            held.append(line)
        elif stop is not None and offset >= stop:
            return
        offset += len(line) + 1
    if held:
        yield begun, b"\n".join(held)


def _follows_blank_line(file: TextFile, start: int) -> bool:
    before = b"".join(file.blocks(max(file.start, start - _BEFORE), start))
    return not before[:-1].rpartition(b"\n")[2].strip()
