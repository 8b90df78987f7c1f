"""Readers by name. A reader turns one dataset format into records.

A reader is a generator function. Its keyword parameters are the options that a config may set. Values are checked
against their annotations. It yields a `Record` per example, or an `Unreadable` if an example cannot be read.
It raises only if the whole source is unusable.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from solo.config import ConfigError, nearest
from solo.data.record import Record


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An example that cannot be read, and why."""

    id: str
    reason: str


Examples = Iterator[Record | Unreadable]


@dataclass(frozen=True)
class Reader:
    """A registered reader. An `endless` reader never stops by itself, so it needs a limit."""

    name: str
    function: Callable[..., Examples]
    endless: bool

    @cached_property
    def options(self) -> type[BaseModel]:
        """Schema of the options, from the function's signature."""
        kinds = get_type_hints(self.function)
        fields: dict[str, Any] = {
            name: (kinds[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
            for name, parameter in inspect.signature(self.function).parameters.items()
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


_READERS: dict[str, Reader] = {}


def reader(name: str, endless: bool = False) -> Callable[[Callable[..., Examples]], Callable[..., Examples]]:
    """Registers a generator function under a name."""

    def register(function: Callable[..., Examples]) -> Callable[..., Examples]:
        if name in _READERS:
            raise ValueError(f"there are two readers named {name!r}")
        _READERS[name] = Reader(name, function, endless)
        return function

    return register


def reader_names() -> list[str]:
    """Returns the names of all readers, sorted."""
    return sorted(_READERS)


def read(name: str, options: Mapping[str, Any], limit: int | None = None) -> Examples:
    """Yields the first `limit` examples of a reader, readable or not; all of them without a limit.

    Raises:
        ConfigError: at once if there is no such reader, an option is unknown or of a wrong type, or an endless reader
            has no limit; while reading if the source as a whole cannot be read.
    """
    if name not in _READERS:
        raise ConfigError(f"no reader {name!r}{nearest(name, reader_names()) or f'; readers: {reader_names()}'}")
    found = _READERS[name]
    if found.endless and limit is None:
        raise ConfigError(f"reader {name!r} never ends: set `limit` to the number of records to take")
    try:
        checked = found.options.model_validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        faults = "; ".join(_explain(fault, list(found.options.model_fields)) for fault in error.errors())
        raise ConfigError(f"reader {name!r}: {faults}") from None
    return islice(found.function(**{key: getattr(checked, key) for key in found.options.model_fields}), limit)


def _explain(fault: Any, known: list[str]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown option {where!r}{nearest(where, known) or f'; options: {known}'}"
    if fault["type"] == "missing":
        return f"option {where!r} is missing"
    return f"option {where!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}; found {json.dumps(fault['input'])}"
