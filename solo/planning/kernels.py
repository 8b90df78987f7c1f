"""The kernels of a program compiled for a GPU: the matmuls that each one computes, and the bytes that it moves.

XLA's GPU compiler reports no times. Every instruction outside of a fusion is one kernel, which reads its operands from
memory and writes its results. If a fusion only slices an array or updates it in place, only that part counts as moved.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from solo.planning.hlo import Instruction, Module, Run, shape_bytes

# These only rename values, group them or branch. Collectives are timed elsewhere (solo/planning/collectives.py).
_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("while", "conditional", "call", "partition-id", "replica-id", "send", "recv"),
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
}
_ASYNC = ("-start", "-done", "-update")
_SLICES = ("dynamic-slice", "slice", "gather")
# Instructions that update an array in place -> index of the operand with the new values.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
_LIBRARY = 'custom_call_target="__cublas'
_PALLAS = 'custom_call_target="__gpu$xla.gpu.triton"'


@dataclass(frozen=True)
class Product:
    """A batched matmul: `batch` times [m, k] x [k, n]. `dtype` is the operands' type as HLO names it."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str

    @property
    def flops(self) -> int:
        """FLOPs of the matmul. A multiply-add counts as two."""
        return 2 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class Kernel:
    """A kernel of a step.

    run       its instruction, and how often it runs
    products  matmuls that it computes
    bytes     bytes that it reads and writes
    """

    run: Run
    products: tuple[Product, ...]
    bytes: int

    @property
    def is_attention(self) -> bool:
        """Whether it is a Pallas kernel. All Pallas kernels of this project compute attention."""
        return self.run.instruction.opcode == "custom-call" and _PALLAS in self.run.instruction.rest

    @property
    def last_dim(self) -> int:
        """The last dimension of the first result; for an attention kernel, the head dimension."""
        return _dims(self.run.instruction.shape)[-1]


def find_kernels(module: Module) -> Iterator[Kernel]:
    """Yields the kernels of a program."""
    known = {each.name: each for computation in module.computations.values() for each in computation}
    for run in module.runs():
        opcode = run.instruction.opcode
        within = any(place.startswith("fusion ") for place in run.inside)
        if within or opcode in _NO_KERNEL or opcode.endswith(_ASYNC):
            continue
        products = tuple(_products(run.instruction, module, known))
        yield Kernel(run, products, _moved(run.instruction, module, known))


def _products(instruction: Instruction, module: Module, known: dict[str, Instruction]) -> Iterator[Product]:
    if instruction.opcode == "fusion":
        for each in module.computations[instruction.called["calls"]]:
            yield from _products(each, module, known)
    elif instruction.opcode == "dot":
        yield _product(instruction, known, lambda side, axes: _numbers(instruction.rest, f"{side}_{axes}_dims"))
    elif instruction.opcode == "custom-call" and _LIBRARY in instruction.rest:
        numbers = _library_numbers(instruction.rest)
        yield _product(instruction, known, lambda side, axes: map(int, numbers.get(f"{side}_{axes}_dimensions", ())))


def _product(instruction: Instruction, known: dict[str, Instruction], axes: Any) -> Product:
    left, right = (known[name].shape for name in instruction.operands[:2])
    sizes, others = _dims(left), _dims(right)
    k = prod(sizes[axis] for axis in axes("lhs", "contracting"))
    batch = prod(sizes[axis] for axis in axes("lhs", "batch"))
    found = _ARRAY.search(left)
    assert found is not None
    return Product(batch, prod(sizes) // k // batch, prod(others) // k // batch, k, found[1])


def _numbers(rest: str, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([0-9,]*)\}}", rest)
    return [int(each) for each in found[1].split(",") if each] if found else []


def _library_numbers(rest: str) -> dict[str, Any]:
    """Returns the dimension numbers of a matmul that calls cuBLAS."""
    start = rest.index('"dot_dimension_numbers":') + len('"dot_dimension_numbers":')
    found: dict[str, Any] = json.JSONDecoder().raw_decode(rest[start:].lstrip())[0]
    return found


def _dims(shape: str) -> list[int]:
    """Returns the shape of an array, or of the first array of a tuple."""
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _moved(instruction: Instruction, module: Module, known: dict[str, Instruction]) -> int:
    """Returns the bytes that an instruction reads and writes."""
    if instruction.opcode == "fusion":
        inside = module.computations[instruction.called["calls"]]
        users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
        for each in inside:
            for place, name in enumerate(each.operands):
                users[name].append((each, place))
        read = sum(_read(each, users) for each in inside if each.opcode == "parameter")
        return read + _written(inside[-1], known)
    if instruction.opcode in _SLICES:
        return 2 * instruction.bytes
    if instruction.opcode in _UPDATES:
        return 2 * _written(instruction, known)
    return instruction.bytes + sum(known[name].bytes for name in instruction.operands if name in known)


def _read(value: Instruction, users: dict[str, list[tuple[Instruction, int]]]) -> int:
    total = 0
    for user, place in users[value.name]:
        if user.opcode == "bitcast":
            total += _read(user, users)
        elif user.opcode in _SLICES and place == 0:
            total += user.bytes
        elif user.opcode not in _UPDATES or place != 0:
            return value.bytes
    return min(total, value.bytes)


def _written(value: Instruction, known: dict[str, Instruction]) -> int:
    if value.opcode in ("tuple", "bitcast"):
        return sum(_written(known[name], known) for name in value.operands)
    if value.opcode in _UPDATES:
        return shape_bytes(known[value.operands[_UPDATES[value.opcode]]].shape)
    return value.bytes
