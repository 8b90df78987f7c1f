"""Readers by name. A reader turns one dataset format into records.

A reader is a frozen dataclass whose fields are the options that a config may set, or a generator function whose
parameters are. Values are checked against the annotations. A class splits its source into parts, which processes read
independently; a function is read as one part:

    @reader("captions")
    @dataclass(frozen=True)
    class Captions(Reader):
        path: Paths
        images: str = "."

        def parts(self, size: int, limit: int | None) -> Iterable[Part]: ...
        def read(self, part: Part) -> Examples: ...

Other packages register readers with an entry point of the group `solo.readers` that names such a class or function.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from solo.config import ConfigError, nearest
from solo.data.record import Place, Record

ENTRY_POINTS = "solo.readers"
DEFAULT_PART_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An unreadable example, and why. Its part is read again once `file` has changed or appeared."""

    id: str
    reason: str
    place: Place | None = field(default=None, compare=False)
    file: str | None = field(default=None, compare=False)

    @classmethod
    def because(cls, error: ValueError, id: str, place: Place | None) -> Unreadable:
        """Returns the unreadable example that an error describes."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UnreadableFileError):
            cause = cause.__context__  # the reader may have given a more specific reason
        return cls(id, str(error), place, None if cause is None else cause.file)


class UnreadableFileError(ValueError):
    """A file other than the part's own, such as an image, is missing or cannot be read."""

    def __init__(self, reason: str, file: str) -> None:
        super().__init__(reason)
        self.file = file


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key of an example that the reader does not read. Preparation reports each key once per source."""

    key: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Omitted(Ignored):
    """A piece of a record that an option leaves out. `key` is its kind in the plural: "turns rated below 3".

    Preparation counts one piece for each `Omitted`.
    """


Examples = Iterator[Record | Unreadable | Ignored]


@dataclass(frozen=True, slots=True)
class Part:
    """A shard of a source, which one process reads independently. The parts, in order, yield the examples in order.

    name    unique within the source, and stable whenever the source is read: `chats.jsonl:4097-8192`
    files   input files: annotations, archives, tables. Their sizes and modification times show whether the part changed
    span    location of the part, as JSON values that only its reader understands
    extent  first byte, and byte after the last (None: end of file), if the part reads only this range of a single
            file. The part then counts as changed only if these bytes change
    """

    name: str
    files: tuple[str, ...] = ()
    span: tuple[Any, ...] = ()
    extent: tuple[int, int | None] | None = None


class Reader(ABC):
    """A source, opened with its options. Subclasses are picklable frozen dataclasses."""

    @abstractmethod
    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Splits the source.

        Args:
            size: approximate number of examples per part; parts may be larger if the format cannot be split there.
            limit: maximum number of examples to be used, over all parts; an endless reader makes no more.

        Raises:
            ConfigError: the source as a whole cannot be read.
        """

    @abstractmethod
    def read(self, part: Part) -> Examples:
        """Yields a `Record` for each example of a part, or an `Unreadable` if the example cannot be read.

        May also yield `Ignored` for unknown keys, and `Omitted` for each piece that it leaves out.

        Raises:
            ConfigError: the part as a whole cannot be read.
        """

    def about(self) -> str:
        """Returns a line to show the user before the source is prepared, such as its classes; may be empty.

        Raises:
            ConfigError: the source as a whole cannot be read.
        """
        return ""


@dataclass(frozen=True)
class _FunctionReader(Reader):
    """A generator function with its options, read as one part."""

    function: Callable[..., Examples]
    options: dict[str, Any]

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        return [Part("all")]

    def read(self, part: Part) -> Examples:
        return self.function(**self.options)


@dataclass(frozen=True)
class Registered:
    """A registered reader. An `endless` reader never stops by itself, so it needs a limit."""

    name: str
    made: Callable[..., Any]
    endless: bool

    @cached_property
    def options(self) -> type[BaseModel]:
        """Schema of the options, derived from the fields of the class or the signature of the function."""
        kinds = get_type_hints(self.made)
        found: dict[str, Any] = {
            name: (kinds[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
            for name, parameter in inspect.signature(self.made).parameters.items()
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid", strict=True), **found)

    def open(self, options: Mapping[str, Any]) -> Reader:
        """Returns the reader with validated options. Raises ConfigError if an option is unknown or has a wrong type."""
        try:
            checked = self.options.model_validate_json(json.dumps(dict(options)))
        except ValidationError as error:
            faults = "; ".join(_explain(fault, list(self.options.model_fields)) for fault in error.errors())
            raise ConfigError(f"reader {self.name!r}: {faults}") from None
        values = {key: getattr(checked, key) for key in self.options.model_fields}
        if isinstance(self.made, type):
            opened: Reader = self.made(**values)
            return opened
        return _FunctionReader(self.made, values)


_READERS: dict[str, Registered] = {}
_Made = TypeVar("_Made", bound=Callable[..., Any])


def register(found: Registered) -> None:
    """Registers a reader. Raises ValueError if its name is taken."""
    if found.name in _READERS:
        raise ValueError(f"there are two readers named {found.name!r}")
    _READERS[found.name] = found


def reader(name: str, endless: bool = False) -> Callable[[_Made], _Made]:
    """Registers a generator function or a `Reader` dataclass under a name."""

    def decorate(made: _Made) -> _Made:
        register(Registered(name, made, endless))
        return made

    return decorate


def reader_names() -> list[str]:
    """Returns the names of all readers, sorted."""
    return sorted({*_READERS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find_reader(name: str) -> Registered:
    """Returns the reader with a name, from this package or from another package's entry point.

    Raises:
        ConfigError: there is no such reader, or the package that provides it cannot be imported.
    """
    if name not in _READERS:
        points = list(entry_points(group=ENTRY_POINTS, name=name))
        packages = sorted({point.dist.name if point.dist else point.value for point in points})
        if len(packages) > 1:
            raise ConfigError(f"reader {name!r}: the packages {' and '.join(packages)} both offer it; uninstall one")
        for point in points:
            try:
                made = point.load()
            except Exception as error:
                raise ConfigError(f"reader {name!r}: {point.value} cannot be imported: {error}") from error
            if not (inspect.isfunction(made) or (isinstance(made, type) and issubclass(made, Reader))):
                raise ConfigError(f"reader {name!r}: {point.value} is neither a function nor a subclass of Reader")
            _READERS.setdefault(name, Registered(name, made, endless=getattr(made, "endless", False)))
    if name not in _READERS:
        raise ConfigError(f"no reader {name!r}{nearest(name, reader_names()) or f'; readers: {reader_names()}'}")
    return _READERS[name]


def open_reader(name: str, options: Mapping[str, Any], limit: int | None = None) -> Reader:
    """Opens a source.

    Raises:
        ConfigError: there is no such reader, an option is unknown or of the wrong type, or an endless reader has no
            limit.
    """
    found = find_reader(name)
    if found.endless and limit is None:
        raise ConfigError(f"reader {name!r} never ends: set `limit` to the number of records to take")
    return found.open(options)


def read(name: str, options: Mapping[str, Any], limit: int | None = None) -> Examples:
    """Yields the first `limit` examples of a reader, readable or not; without a limit, all of them.

    Raises:
        ConfigError: see `open_reader`, raised by the call; or the source as a whole cannot be read, raised during
            iteration.
    """
    opened = open_reader(name, options, limit)
    examples = (example for part in opened.parts(DEFAULT_PART_SIZE, limit) for example in opened.read(part))
    return _first(examples, limit)


def _first(examples: Examples, limit: int | None) -> Examples:
    """Yields the first `limit` records and unreadable examples. `Ignored` does not count towards the limit."""
    counted = 0
    for example in examples:
        yield example
        counted += not isinstance(example, Ignored)
        if counted == limit:
            return


def _explain(fault: Any, known: list[str]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown option {where!r}{nearest(where, known) or f'; options: {known}'}"
    if fault["type"] == "missing":
        return f"option {where!r} is missing"
    return f"option {where!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}; found {json.dumps(fault['input'])}"
