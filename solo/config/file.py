"""Reads, merges, overrides, validates and writes config files."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from solo.config.base import ConfigError, Section, nearest
from solo.config.data import spell_out_source
from solo.config.renamed import new_key, new_value
from solo.config.run import Config
from solo.config.yaml_text import format_yaml, parse_yaml

SectionT = TypeVar("SectionT", bound=Section)

# The value of a key that a recipe's publication does not state. It must be set before the recipe can run.
UNKNOWN = "unknown"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load a YAML file and the files that it extends, and apply `key.path=value` overrides.

    Raises:
        ConfigError: the file cannot be read, or the config is not valid.
    """
    data = read_config(path)
    for override in overrides:
        _apply(data, override)
    return parse_config(data, origin=str(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """Returns a YAML file merged over the files it extends, without validation. Raises ConfigError if unreadable."""
    return _read(Path(path), seen=())


def set_value(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, as in `stages.0.steps`. Raises ConfigError if the key's parent does not exist."""
    keys = key.split(".")
    node: Any = data
    try:
        for part in keys[:-1]:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(keys[-1])] = value
        elif isinstance(node, dict):
            node[keys[-1]] = value
        else:
            raise TypeError
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"{key!r}: there is no such place in the config") from None


def parse_config(data: Mapping[str, Any], origin: str = "config") -> Config:
    """Validate a mapping as a config. Raises ConfigError with one line per error, or per value that is `unknown`."""
    if unknown := [".".join(path) for path in _unknown(data)]:
        raise ConfigError(
            f"{origin} has values that its source does not state; set them:\n"
            + "\n".join(f"  {key}=..." for key in unknown)
        )
    return parse_section(Config, data, origin, "config")


def parse_section(kind: type[SectionT], data: Any, origin: str, what: str) -> SectionT:
    """Validate a mapping as a section. Raises ConfigError with one line per error."""
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        lines = [_explain(fault, kind, what) for fault in _causes(error.errors())]
        raise ConfigError(f"{origin} is not a valid {what}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def dump_config(config: Config) -> str:
    """Returns the config as YAML. Loading it gives an equal Config."""
    return format_yaml(config.model_dump(mode="json"))


def _unknown(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the paths of all values that are `unknown`."""
    if node == UNKNOWN:
        yield path
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key == "options":  # a reader's own options may hold any string
            continue
        yield from _unknown(value, (*path, str(key)))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(str(p) for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read config {path}: it is not UTF-8: {error.reason} at byte {error.start}") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, found {type(data).__name__}")
    extended = data.pop("extends", [])
    parents = [extended] if isinstance(extended, str) else extended
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: expected a path or a list of paths, found {json.dumps(extended)}")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read(path.parent / parent, (*seen, path.resolve())))
    return _spell_out_sources(_merge(merged, data))


def _spell_out_sources(data: dict[str, Any]) -> dict[str, Any]:
    """Expands sources given only as a path to mappings, so that files that extend this one can override them."""
    section = data.get("data")
    sources = section.get("sources") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(sources, dict):
        spelled = {name: spell_out_source(source) for name, source in sources.items()}
        return {**data, "data": {**section, "sources": spelled}}
    return data


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: expected key.path=value")
    value = parse_yaml(text, f"override {override!r}")
    try:
        set_value(data, path, value)
    except ConfigError:
        raise ConfigError(f"override {override!r}: there is no such place in the config") from None


def _causes(faults: Sequence[Any]) -> list[Any]:
    """Returns the faults without those that follow from others: a tuple is too short because its items are invalid."""
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short"
        or not any(
            other["loc"][: len(fault["loc"])] == fault["loc"] and len(other["loc"]) > len(fault["loc"])
            for other in faults
        )
    ]


def _explain(fault: Any, kind: Any, what: str) -> str:
    # Drop the markers that pydantic adds for mapping keys and for the two forms of `max_epochs`.
    location = [str(part) for part in fault["loc"] if str(part) not in ("[key]", "(one)", "(each)")]
    where = ".".join(location) or "(top)"
    if fault["type"] == "extra_forbidden":
        if renamed := new_key(where, what):
            return f"{where}: this key is named {renamed} now; see CHANGELOG.md"
        known = _fields_at(location[:-1], kind)
        return f"{where}: unknown key{nearest(location[-1], known) or f'; known keys: {sorted(known)}'}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    if renamed := new_value(where, fault["input"]):
        return f"{where}: {fault['input']!r} is named {renamed!r} now; see CHANGELOG.md"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    found = json.dumps(fault["input"]) if not isinstance(fault["input"], dict) else "a mapping"
    return f"{where}: {message[0].lower()}{message[1:]}; found {found} ({type(fault['input']).__name__})"


def _fields_at(location: list[str], kind: Any) -> list[str]:
    """Returns the keys of the section at a path of the schema."""
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:
            arguments = [a for a in typing.get_args(kind) if a not in (Ellipsis, types.NoneType, str)]
            kind = arguments[-1] if arguments else None
    kind = next((each for each in (kind, *typing.get_args(kind)) if isinstance(each, type)), None)
    return list(kind.model_fields) if kind is not None and issubclass(kind, BaseModel) else []
