"""Reads which devices a collective joins, and along which mesh axes it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from math import prod

import numpy as np

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[^=]*?\}|)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? ?\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """Returns the positions in the mesh, int [groups, members], of the devices that a collective joins.

    Args:
        attributes: the instruction's: listed `{{0,1},{2,3}}`, iota `[2,2]<=[4]`, or axes `mesh['a'=2,'b'=2] {'a'}`.
        devices: the number of all devices, which empty groups stand for.

    Raises:
        ValueError: the attributes have none of these forms.
    """
    if found := _MESH.search(attributes):
        return _of_mesh(*found.groups())
    if found := _LISTED.search(attributes):
        listed = [
            [int(number) for number in group.split(",") if number] for group in re.findall(r"\{([\d, ]*)\}", found[1])
        ]
        return np.asarray(listed) if listed and listed[0] else np.arange(devices)[None]
    if found := _IOTA.search(attributes):
        return _of_iota(found[1])
    raise ValueError(f"no replica groups in {attributes[:200]!r}")


def _of_iota(text: str) -> np.ndarray:
    """Reads `[groups, members]<=[dimensions]T(permutation)`; the permutation is optional."""
    shape, _, source = text.partition("<=")
    return _permuted(source).reshape(_numbers(shape))


def _permuted(text: str) -> np.ndarray:
    """Reads `[dimensions]T(permutation)`: all numbers in that shape, transposed."""
    dimensions, _, permutation = text.partition("T")
    ids = np.arange(prod(_numbers(dimensions))).reshape(_numbers(dimensions))
    return ids.transpose(_numbers(permutation)) if permutation else ids


def _of_mesh(axes: str, device_ids: str | None, along: str) -> np.ndarray:
    """Reads groups along axes, or along parts of axes: `'a':(2)4` is the factor 4 of axis a that follows a factor 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = _permuted(device_ids).ravel() if device_ids else np.arange(prod(sizes.values()))
    wanted = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in _AXIS.findall(along)]
    shape: list[int] = []
    joined: list[int] = []
    for name, size in sizes.items():
        # Split the axis where a part begins or ends.
        parts = [(before, before * part) for axis, before, part in wanted if axis == name]
        cuts = sorted({1, size, *chain.from_iterable(parts)})
        for low, high in pairwise(cuts):
            if any(axis == name and before <= low < before * part for axis, before, part in wanted):
                joined.append(len(shape))
            shape.append(high // low)
    ids = ids.reshape(shape)
    rest = [place for place in range(len(shape)) if place not in joined]
    return ids.transpose(rest + joined).reshape(-1, prod(shape[place] for place in joined))


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ; `mesh`: axis -> size, outermost first."""
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())


def _numbers(text: str | Sequence[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(text))]
