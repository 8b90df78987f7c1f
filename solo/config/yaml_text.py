"""The YAML subset of config files: JSON-compatible values, YAML 1.2 numbers, and no duplicate keys.

By default, PyYAML reads `1e-3` as a string, `010` as 8, `1:30` as 90 and `2026-01-01` as a date, and silently keeps
the last of two duplicate keys.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from solo.config.base import ConfigError

_TAG = "tag:yaml.org,2002:"
_DIGITS = list("-+.0123456789")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
_EXPONENT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_FLOAT = re.compile(
    rf"{_EXPONENT.pattern}|^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Resolves numbers as YAML 1.2 does, and rejects duplicate keys in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        # Check before `<<` is expanded: keys of merged mappings may be overridden.
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is set twice, first in line {lines[key.value]}",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would read as numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_TAG) not in ("int", "float", "timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, _DIGITS)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, _DIGITS)
_Dumper.add_implicit_resolver(f"{_TAG}float", _EXPONENT, _DIGITS)


def parse_yaml(text: str, what: str) -> Any:
    """Returns the value of a YAML document as JSON-compatible data, so mappings have string keys.

    Args:
        text: the document.
        what: prefix of error messages, such as "a.yaml" or "override 'seed=['".

    Raises:
        ConfigError: the text is not YAML, has duplicate keys, or has a value that JSON cannot represent.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not YAML: {error}") from None
    try:
        return json.loads(json.dumps(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: only mappings, lists, strings, numbers, booleans and null: {error}") from None


def format_yaml(data: Any) -> str:
    """Returns a YAML document that `parse_yaml` reads as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)
