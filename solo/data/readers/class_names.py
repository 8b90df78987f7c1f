"""Class names from a file or a list, such as "tench, Tinca tinca" for `n01440764`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from solo.config import ConfigError
from solo.data.readers.paths import READ_ERRORS, open_bytes

WORDNET_ID = re.compile(r"n\d{8}")
_KEYED = re.compile(r"(n\d{8})[\s,:]+(\S.*)|([^\t]+)\t+(\S.*)")


@dataclass(frozen=True)
class ClassNames:
    """Class names by key (a WordNet id or a folder name), and in label order."""

    by_key: dict[str, str]
    in_order: tuple[str, ...]

    def find(self, key: str, number: int, classes: int) -> str | None:
        """Returns the name of a class, or None if it is unknown.

        Args:
            key: the key of the class in the dataset. A key that consists of digits is a label, from 0: folder `10`
                gets the eleventh name, although it sorts before folder `2`.
            number: position of the class in the dataset's order, from 0.
            classes: number of classes. Names are matched by position only if there are as many of them.
        """
        if key in self.by_key:
            return self.by_key[key]
        if key.isdecimal():
            return self.in_order[int(key)] if int(key) < len(self.in_order) else None
        return self.in_order[number] if not self.by_key and len(self.in_order) == classes else None


def read_class_names(names: str | Sequence[str], what: str) -> ClassNames:
    """Reads class names from a file, or uses a given list.

    A text file has one name per line, or a key and a name: `n01440764 tench, Tinca tinca`, as in ImageNet's
    LOC_synset_mapping.txt. A tab separates other keys from their names. A JSON file contains a list of names, or a
    mapping from keys or labels to names, such as ImageNet's class index, `{"0": ["n01440764", "tench"]}`.

    Args:
        names: path of a file, or the names in label order.
        what: name of the caller, for error messages.

    Raises:
        ConfigError: the file cannot be read or has another format.
    """
    if not isinstance(names, str):
        return ClassNames({}, tuple(names))
    try:
        with open_bytes(names) as file:
            text = file.read().decode("utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith(("{", "[")) else None
    except (*READ_ERRORS, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: names: cannot read {names}: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parsed = _from_lines(lines) if found is None else _from_json(found)
    if parsed is None or not (parsed.in_order or parsed.by_key):
        raise ConfigError(
            f"{what}: names: {names} must have one name per line, or `n01440764 tench` per line, or hold a JSON list of"
            ' names or a JSON mapping such as {"0": ["n01440764", "tench"]}'
        )
    return parsed


def _from_lines(lines: list[str]) -> ClassNames:
    keyed = [_KEYED.fullmatch(line) for line in lines]
    if not all(keyed):
        return ClassNames({}, tuple(lines))
    pairs = [(match[1] or match[3], match[2] or match[4]) for match in keyed if match]
    return ClassNames(dict(pairs), tuple(name for _, name in pairs))


def _from_json(found: Any) -> ClassNames | None:
    if isinstance(found, list):
        return ClassNames({}, tuple(found)) if all(isinstance(name, str) for name in found) else None
    by_key: dict[str, str] = {}
    labels: dict[int, str] = {}
    for key, value in found.items():
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
            return None
        if key.isdecimal() and len(key) < 10:
            labels[int(key)] = parts[-1]
            by_key |= {parts[0]: parts[-1]} if len(parts) > 1 else {}
        else:
            by_key[key] = parts[0]
    in_order = (
        tuple(labels[number] for number in range(len(labels))) if set(labels) == set(range(len(labels))) else None
    )
    return None if in_order is None else ClassNames(by_key, in_order)
