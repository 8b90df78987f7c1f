"""Readers of annotation files: one JSON file that describes many images.

The file is parsed once, by the process that splits the source into parts, and each part carries its own examples.
Other processes therefore never parse the file, and a corrected example changes only the part that contains it.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from solo.config import ConfigError
from solo.data.readers import json_files
from solo.data.readers.image_files import load_image
from solo.data.readers.paths import READ_ERRORS, Paths, expand, open_bytes
from solo.data.readers.registry import Examples, Ignored, Part, Reader, Unreadable
from solo.data.record import Image, Place


@dataclass(frozen=True, slots=True)
class Annotated:
    """An example of an annotation file, as JSON values.

    id      its name in reports
    line    its number in the file's list, from 1
    images  candidate paths of the image; the first one that exists is used
    texts   texts from which the reader makes the record
    fault   why the example is unusable; if set, the other fields are ignored
    """

    id: str
    line: int
    images: tuple[str, ...] = ()
    texts: tuple[Any, ...] = ()
    fault: str = ""


@dataclass
class Keys:
    """Collects keys that a reader does not know, each with the first example that contains it."""

    known: frozenset[str]
    found: dict[str, int] = field(default_factory=dict)

    def check(self, example: Mapping[str, Any], line: int) -> None:
        """Records the unknown keys of an example."""
        if example.keys() <= self.known:
            return
        for key in example.keys() - self.known:
            self.found.setdefault(key, line)


class AnnotationReader(Reader):
    """Base class of readers of annotation files. Subclasses have an option `path`."""

    path: Paths

    @property
    @abstractmethod
    def what(self) -> str:
        """Returns the reader's name, for error messages."""

    @abstractmethod
    def examples(self, path: str, content: Any, keys: Keys) -> Iterable[Annotated]:
        """Yields the examples of a parsed file. Raises ConfigError if the file has another format."""

    @abstractmethod
    def records(self, example: Annotated, image: Image, place: Place) -> Examples:
        """Yields the records of an example. Raises ValueError if it has none."""

    known: frozenset[str] = frozenset()

    def parts(self, size: int, limit: int | None) -> Iterator[Part]:
        """Parses each file, and yields its examples in groups."""
        taken = 0
        for path in expand(self.path, self.what):
            keys = Keys(self.known)
            examples = iter(list(self.examples(path, read_json(path, self.what), keys)))
            ignored = tuple(sorted(keys.found.items()))
            start = 0
            while limit is None or taken < limit:
                count = size if limit is None else min(size, limit - taken)
                chunk = tuple((e.id, e.line, e.images, e.texts, e.fault) for e in islice(examples, count))
                if not chunk:
                    break
                name = f"{os.path.basename(path)}:{start + 1}-{start + len(chunk)}"
                yield Part(name, (path, *self.other_files()), (chunk, ignored))
                start, taken, ignored = start + len(chunk), taken + len(chunk), ()

    def other_files(self) -> Sequence[str]:
        """Returns the files that every part depends on, in addition to its own."""
        return ()

    def read(self, part: Part) -> Examples:
        """Yields the records of a part's examples, with their images loaded."""
        examples, ignored = part.span
        for key, line in ignored:
            yield Ignored(key, Place(part.files[0], line))
        for id, line, images, texts, fault in examples:
            place = Place(part.files[0], line)
            try:
                if fault:
                    raise ValueError(fault)
                image = _first_image(images)
                yield from self.records(Annotated(id, line, tuple(images), tuple(texts)), image, place)
            except ValueError as error:
                yield Unreadable.because(error, id, place)


BLANK = object()
"""Stands for a line without content, so that the position in a list is the number of the line."""


def read_json(path: str, what: str) -> Any:
    """Returns a parsed JSON file. The result takes several times the file's size in memory.

    A file with one example per line becomes a list, in which an unreadable line is an `Unreadable` and an empty line
    `BLANK`.

    Raises:
        ConfigError: the file cannot be read or is not JSON.
    """
    try:
        with open_bytes(path) as file:
            data = file.read()
        try:
            return json.loads(data)
        except json.JSONDecodeError as error:
            # It may be JSON lines: more examples follow, or the first line is damaged.
            if error.msg != "Extra data" and not data.lstrip().partition(b"\n")[0].rstrip().endswith(b"}"):
                raise
        return _lines(path, what)
    except RecursionError:
        raise ConfigError(f"{what}: cannot read {path}: it is nested too deeply") from None
    except READ_ERRORS as error:
        raise ConfigError(f"{what}: cannot read {path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{what}: {path} is not one JSON document: {error}") from None


def _lines(path: str, what: str) -> list[Any]:
    found: list[Any] = []
    for part in json_files.parts(path, 1 << 30, what):
        for element in json_files.elements(part):
            place, value = (element.place, element) if isinstance(element, Unreadable) else element
            found += [BLANK] * ((place.line or 1 if place else 1) - 1 - len(found))
            found.append(value)
    return found


def mappings(content: Any, key: str, path: str, what: str) -> list[Any]:
    """Returns the list under a key of a parsed file. Raises ConfigError if there is no such list."""
    found = content.get(key)
    if not isinstance(found, list):
        raise ConfigError(f"{what}: {path}: {key!r} must be a list, not {type(found).__name__}")
    return found


def _first_image(paths: Sequence[str]) -> Image:
    errors = []
    for path in paths:
        try:
            return load_image(path)
        except ValueError as error:
            errors.append(error)
    raise errors[0] if errors else ValueError("it has no image")
