"""Compares configs by what their keys affect.

Every key declares what it affects (`solo.config.base.Decides`). These declarations answer three questions:

    may this run resume in that folder?             `differences`: differences that affect the result are refused
    has this run of a sweep already finished?       `identity(config, "evaluation")`
    do these weights belong to this model?          `keys_deciding(ModelConfig, "model")`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from solo.config.base import Decides, Section

# How many characters of a value a message shows, and how many before the first difference of two long values.
_SHOWN, _SHOWN_BEFORE = 60, 12

Level = Literal["model", "data", "result", "evaluation"]
# The model and the data affect the result, and the result affects what an evaluator measures.
_INCLUDED: Mapping[Level, frozenset[Decides]] = {
    "model": frozenset({"model"}),
    "data": frozenset({"data"}),
    "result": frozenset({"model", "data", "result"}),
    "evaluation": frozenset({"model", "data", "result", "evaluation"}),
}


@dataclass(frozen=True)
class Difference:
    """A key whose value differs between two configs. A value is None if its config does not have the key.

    key      dotted path, such as `stages.0.optimizer.beta2`
    decides  what the key affects
    part     the largest subtree that contains the key and is missing from one config; empty if both have the key
    added    whether the new config is the one that has that subtree
    """

    key: str
    old: Any
    new: Any
    decides: frozenset[Decides]
    part: str = ""
    added: bool = False

    def decides_at(self, level: Level) -> bool:
        """Returns whether this difference matters at a level."""
        return bool(self.decides & _INCLUDED[level])

    def __str__(self) -> str:
        old, new = _short(self.old, self.new)
        if self.part:
            old, new = ("not set", new) if self.added else (old, "not set")
        return f"{self.key}: {old} -> {new}"


def summary(changes: Sequence[Difference]) -> list[str]:
    """Returns one line `key: old -> new` per difference, and one line per subtree that was added or removed."""
    sizes = Counter(change.part for change in changes)
    lines: dict[str, None] = {}
    for change in changes:
        if sizes[change.part] == 1 or not change.part:
            lines[str(change)] = None
        else:
            verb = "added" if change.added else "removed"
            lines[f"{change.part}: {verb}, {sizes[change.part]} keys"] = None
    return list(lines)


def _short(old: Any, new: Any) -> tuple[str, str]:
    """Returns two values as text; long values are shortened to the part around their first difference."""
    texts = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    same = common - _SHOWN_BEFORE if max(map(len, texts)) > _SHOWN else 0
    cut = [f"...{text[same:]}" if same > 0 and len(text) > _SHOWN else text for text in texts]
    first, second = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in cut)
    return first, second


def flat(config: Section) -> dict[str, Any]:
    """Returns all values by dotted key. The values are JSON scalars and empty containers."""
    return {key: value for key, (value, _) in _flat(config).items()}


def identity(config: Section, level: Level) -> dict[str, Any]:
    """Returns the values that matter at a level, by dotted key. They are JSON scalars and empty containers.

    Levels are nested: `result` includes the keys of `model` and `data`, and `evaluation` includes those of `result`.
    """
    return {key: value for key, (value, what) in _flat(config).items() if what & _INCLUDED[level]}


def differences(old: Section, new: Section) -> list[Difference]:
    """Returns the differences between two configs, in the order of the schema."""
    before, after = _flat(old), _flat(new)
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        (was, what), (now, what_now) = before.get(key, (None, None)), after.get(key, (None, None))
        if what and what_now and was == now:
            continue
        if (what and what_now) or not _is_filled(key, after if what else before):
            part = "" if what and what_now else _missing_part(key, after if what else before)
            decided = (what or frozenset()) | (what_now or frozenset())
            found.append(Difference(key, was, now, decided, part, added=not what))
    return found


def _missing_part(key: str, flat: Mapping[str, Any]) -> str:
    """Returns the shortest prefix of a dotted key that is also missing from the config."""
    parts = key.split(".")
    beginnings = [".".join(parts[:number]) for number in range(1, len(parts) + 1)]
    return next(each for each in beginnings if each not in flat and not _is_filled(each, flat))


def _is_filled(key: str, flat: Mapping[str, Any]) -> bool:
    """Returns whether the other config has entries below a key; they are reported as differences themselves."""
    return any(other.startswith(f"{key}.") for other in flat)


def what_decides(section: type[Section], key: str) -> frozenset[Decides]:
    """Returns what a key of a section is declared to affect."""
    extra = section.model_fields[key].json_schema_extra
    declared: Any = extra["decides"] if isinstance(extra, dict) and "decides" in extra else section.keys_decide
    return frozenset(declared)


def keys_deciding(section: type[Section], level: Level) -> list[str]:
    """Returns the keys of a section that matter at a level, in the order of the schema."""
    return [key for key in section.model_fields if what_decides(section, key) & _INCLUDED[level]]


def _flat(config: Section) -> dict[str, tuple[Any, frozenset[Decides]]]:
    """Returns dotted key -> (value, what it decides), for every scalar and every empty container."""
    return {key: (value, what) for key, value, what in _leaves(config, frozenset(), "")}


def _leaves(value: Any, what: frozenset[Decides], where: str) -> Iterator[tuple[str, Any, frozenset[Decides]]]:
    parts: list[tuple[str, Any, frozenset[Decides]]]
    if isinstance(value, Section):
        kind = type(value)
        parts = [(key, getattr(value, key), what_decides(kind, key)) for key in kind.model_fields]
    elif isinstance(value, Mapping):
        parts = [(str(key), part, what) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(number), part, what) for number, part in enumerate(value)]
    else:
        yield where, value, what
        return
    if not parts:
        yield where, ([] if isinstance(value, list | tuple) else {}), what
    for key, part, decided in parts:
        yield from _leaves(part, decided, f"{where}.{key}".strip("."))
