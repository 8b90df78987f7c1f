"""Compares and hashes configs by what their keys decide.

Every key declares what it decides (`solo.config.base.Decides`). Three questions are answered from that:

    may this run resume in that folder?       `differences`: those that decide the result are refused
    is this run of a sweep done already?      `identity(config, "evaluation")`
    are these weights of this model?          `keys_deciding(ModelConfig, "model")`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from solo.config.base import Decides, Section

# Characters of a value in a message, and those before the place where two long values differ.
_SHOWN, _SHOWN_BEFORE = 60, 12

Level = Literal["model", "data", "result", "evaluation"]
# The model and the data decide the result, and the result decides what an evaluation measures.
_INCLUDED: Mapping[Level, frozenset[Decides]] = {
    "model": frozenset({"model"}),
    "data": frozenset({"data"}),
    "result": frozenset({"model", "data", "result"}),
    "evaluation": frozenset({"model", "data", "result", "evaluation"}),
}


@dataclass(frozen=True)
class Difference:
    """A key with different values in two configs; None stands for a key that one of them lacks.

    key      dotted path, as in `stages.0.optimizer.beta2`
    decides  what the key decides
    part     the largest part of the config that holds the key and that one of the configs lacks; empty if both have it
    added    whether the new config has that part
    """

    key: str
    old: Any
    new: Any
    decides: frozenset[Decides]
    part: str = ""
    added: bool = False

    def decides_at(self, level: Level) -> bool:
        """Returns whether configs with this difference differ at a level."""
        return bool(self.decides & _INCLUDED[level])

    def __str__(self) -> str:
        old, new = _short(self.old, self.new)
        if self.part:
            old, new = ("not set", new) if self.added else (old, "not set")
        return f"{self.key}: {old} -> {new}"


def summary(changes: Sequence[Difference]) -> list[str]:
    """Returns one short line for each difference, `key: old -> new`, and one for a part that a config lacks."""
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
    """Returns two values as text, long ones cut to where they differ."""
    texts = json.dumps(old, ensure_ascii=False), json.dumps(new, ensure_ascii=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    same = common - _SHOWN_BEFORE if max(map(len, texts)) > _SHOWN else 0
    cut = [f"...{text[same:]}" if same > 0 and len(text) > _SHOWN else text for text in texts]
    first, second = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in cut)
    return first, second


def flat(config: Section) -> dict[str, Any]:
    """Returns all values by dotted key: JSON scalars and empty containers."""
    return {key: value for key, (value, _) in _flat(config).items()}


def identity(config: Section, level: Level) -> dict[str, Any]:
    """Returns the values that decide at a level, by dotted key: JSON scalars and empty containers.

    Levels are nested: `result` includes the keys of `model` and `data`, and `evaluation` includes those of `result`.
    """
    return {key: value for key, (value, what) in _flat(config).items() if what & _INCLUDED[level]}


def differences(old: Section, new: Section) -> list[Difference]:
    """Returns the keys whose values differ, in the schema's order."""
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
    """Returns the shortest beginning of a dotted key that a config without the key lacks, too."""
    parts = key.split(".")
    beginnings = [".".join(parts[:number]) for number in range(1, len(parts) + 1)]
    return next(each for each in beginnings if each not in flat and not _is_filled(each, flat))


def _is_filled(key: str, flat: Mapping[str, Any]) -> bool:
    """Returns whether a container that is empty in one config has entries in the other, which differ themselves."""
    return any(other.startswith(f"{key}.") for other in flat)


def what_decides(section: type[Section], key: str) -> frozenset[Decides]:
    """Returns what a key of a section decides, as declared."""
    extra = section.model_fields[key].json_schema_extra
    declared: Any = extra["decides"] if isinstance(extra, dict) and "decides" in extra else section.keys_decide
    return frozenset(declared)


def keys_deciding(section: type[Section], level: Level) -> list[str]:
    """Returns the keys of a section that decide at a level, in the schema's order."""
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
