"""Compares and hashes configs by what their keys decide.

Every key declares what it decides (`solo.config.base.Decides`). Three questions are answered from that:

    may this run resume in that folder?       `differences`: those that decide the result are refused
    is this run of a sweep done already?      `identity(config, "evaluation")`
    are these weights of this model?          `keys_deciding(ModelConfig, "model")`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from solo.config.base import Decides, Section

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
    """

    key: str
    old: Any
    new: Any
    decides: frozenset[Decides]

    def decides_at(self, level: Level) -> bool:
        """Returns whether configs with this difference differ at a level."""
        return bool(self.decides & _INCLUDED[level])

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} there, {self.new!r} here"


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
            found.append(Difference(key, was, now, (what or frozenset()) | (what_now or frozenset())))
    return found


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
