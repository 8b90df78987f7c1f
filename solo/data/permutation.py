"""A seeded shuffle of range(n) that needs no table: any index is looked up alone, in constant memory.

A generalised Feistel network (Black and Rogaway, 2002): an index is written as (left, right) in range(a) x range(b),
a and b both about the square root of n. A round (left, right) -> (right, left + f(right) mod a) is a bijection
whatever f is; an even number of rounds leads back to range(a * b). The few indices that land outside range(n) are
sent through again until they land inside ("cycle walking"), which keeps the bijection.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_CONSTANTS = [np.uint64(number * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF) for number in range(6)]


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a few numbers and names, such as (seed, stage, epoch): other parts, other key."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        numbers = [part & 0xFFFFFFFFFFFFFFFF] if isinstance(part, int) else [len(part), *part.encode()]
        for number in numbers:
            state = _mix((state + _GOLDEN) ^ _mix(np.asarray([number], np.uint64)))
    return int(state[0])


def permute(indices: np.ndarray, n: int, key: int | np.ndarray) -> np.ndarray:
    """Where a shuffle of range(n) sends the given indices.

    Args:
        indices: integers [...] in range(n).
        n: size of the shuffled range, at least 1, at most 2^62.
        key: names the shuffle; a number, or uint64 [...] with a shuffle of its own for every index.

    Returns:
        int64 [...]: `permute(np.arange(n), n, key)` holds every number of range(n) once.

    Raises:
        ValueError: an index is not in range(n).
    """
    values = np.asarray(indices)
    if values.size and (values.min() < 0 or values.max() >= n):
        raise ValueError(f"indices from {values.min()} to {values.max()} are not in range({n})")
    flat = values.astype(np.uint64).reshape(-1)
    keys = np.broadcast_to(np.asarray(key, np.uint64), values.shape).reshape(-1)
    out = _feistel(flat, n, keys)
    outside = np.flatnonzero(out >= n)
    while len(outside):
        out[outside] = _feistel(out[outside], n, keys[outside])
        outside = outside[out[outside] >= n]
    return out.astype(np.int64).reshape(values.shape)


def _feistel(values: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """One pass over range(a * b), the smallest such product that holds n with a the square root of n, rounded up."""
    root = math.isqrt(n - 1) + 1
    sides = np.uint64(root), np.uint64(-(-n // root))
    left, right = np.divmod(values, sides[1])
    for number, constant in enumerate(_ROUND_CONSTANTS):
        # Products modulo 2^64 wrap on purpose: uint64 arrays do so silently.
        scrambled = _mix(right * _GOLDEN + keys + constant) >> np.uint64(32)
        left, right = right, (left + scrambled) % sides[number % 2]
    return left * sides[1] + right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
