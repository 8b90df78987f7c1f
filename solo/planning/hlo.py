"""Parses a compiled program: its instructions, how often they run, and the cycles that the compiler expects.

The input is the text of an optimised, scheduled HLO module, from `compiled.as_text()`. Only the parts that the
estimates need are parsed: names, shapes, opcodes, calls, trip counts of loops, and libtpu's `estimated_cycles`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,<=]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# libtpu gives instructions on a SparseCore the largest integer.
_UNKNOWN_CYCLES = 2**63 - 1
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NUMBER = re.compile(r"(\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """An instruction. `shape` is the text of the result's shape, `rest` the text after the opcode."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def cycles(self) -> int:
        """Cycles that libtpu expects of one execution; 0 if it gives none or they are unknown."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found and int(found[1]) < _UNKNOWN_CYCLES else 0

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return shape_bytes(self.shape)

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest)])

    @property
    def called(self) -> dict[str, str]:
        """Role -> computation, as in body -> region_1.2."""
        return dict(_CALLED.findall(self.rest))


@dataclass(frozen=True)
class Run:
    """An instruction, and how often and where a step runs it.

    times      over all loops whose trip count is known
    unbounded  enclosing loops whose trip count depends on the data; `times` counts each once
    inside     enclosing computations and instructions, outermost first
    """

    instruction: Instruction
    times: int
    unbounded: int
    inside: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the name of its entry."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def runs(self) -> Iterator[Run]:
        """Yields every instruction that a step runs, including those within fusions. A fusion has its own cycles."""
        yield from self._walk(self.entry, 1, 0, ())

    def _walk(self, name: str, times: int, unbounded: int, inside: tuple[str, ...]) -> Iterator[Run]:
        for instruction in self.computations.get(name, ()):
            yield Run(instruction, times, unbounded, inside)
            within = (*inside, f"{instruction.opcode} {instruction.name}")
            called = instruction.called
            if instruction.opcode == "while":
                trips = self.trip_count(instruction)
                yield from self._walk(called["body"], times * (trips or 1), unbounded + (trips is None), within)
                continue
            branches = _BRANCHES.search(instruction.rest)
            targets = [called[role] for role in ("calls", "true_computation", "false_computation") if role in called]
            targets += re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
            if instruction.opcode in ("call", "async-start", "call-start") and "to_apply" in called:
                targets.append(called["to_apply"])
            for target in targets:
                yield from self._walk(target, times, unbounded, within)

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns the trip count of a loop, or None if the bound is computed."""
        if known := _KNOWN_TRIPS.search(loop.rest):
            return int(known[1])
        condition = self.computations.get(loop.called.get("condition", ""), ())
        by_name = {each.name: each for each in condition}
        compared = [each for each in condition if each.opcode == "compare"]
        for each in compared or [each for each in condition if each.opcode == "fusion"]:
            for operand in each.operands:
                limit = by_name.get(operand)
                if limit is not None and limit.opcode == "constant" and (found := _NUMBER.match(limit.rest)):
                    return int(found[1])
        return None


def parse_module(text: str) -> Module:
    """Parse a module. Raises ValueError if the text has no entry computation."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", None
    lines: list[Instruction] = []
    for line in text.splitlines():
        if name is None:
            if opened := _COMPUTATION.match(line):
                name, lines = opened[2], []
                entry = name if opened[1] else entry
        elif line.startswith("}"):
            computations[name] = tuple(lines)
            name = None
        elif found := _INSTRUCTION.match(line):
            # A tuple's shape is in parentheses; the opcode is the first word after it that precedes a parenthesis.
            start = _closing(found[2][1:]) + 2 if found[2].startswith("(") else 0
            opcode = _OPCODE.search(found[2], max(start - 1, 0))
            if opcode:
                lines.append(Instruction(found[1], found[2][: opcode.start()], opcode[1], found[2][opcode.end() :]))
    if not entry:
        raise ValueError("not an HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape, summed over a tuple, without the padding of tiles."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(kind)
        if bits is None:
            digits = re.match(r"[a-z]+(\d+)", kind)
            if not digits:
                continue
            bits = int(digits[1])
        total += prod(int(size.lstrip("<=")) for size in sizes.split(",") if size) * bits // 8
    return total


def _closing(text: str) -> int:
    """Returns the position where the parenthesis opened before the text closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    return len(text)
