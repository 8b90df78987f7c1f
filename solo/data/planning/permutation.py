"""A seeded shuffle of range(n) without a table: any index is looked up by itself, in constant memory.

This is a generalised Feistel network (Black and Rogaway, 2002). An index is written as (left, right) in
range(a) x range(b), with a and b both about the square root of n. A round (left, right) -> (right, left + f(right)
mod a) is a bijection for any f, and an even number of rounds leads back to range(a * b). The few indices that land
outside range(n) go through again until they land inside ("cycle walking"), which keeps the bijection.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_CONSTANTS = [np.uint64(number * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF) for number in range(6)]


def derive_key(*parts: int | str) -> int:
    """Returns a 64-bit key that depends on every part, such as (seed, stage)."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        for number in [part] if isinstance(part, int) else [len(part), *part.encode()]:
            state = _absorb(state, np.asarray([number & 0xFFFFFFFFFFFFFFFF], np.uint64))
    return int(state[0])


def derive_keys(key: int, *parts: np.ndarray) -> np.ndarray:
    """Returns uint64 [...]: a key for each element of the integer arrays `parts` [...], from one key."""
    state = np.asarray(key, np.uint64)
    for part in parts:
        state = _absorb(state, part.astype(np.uint64))
    return state


def permute(indices: np.ndarray, n: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Returns where a shuffle of range(n) sends the given indices.

    Args:
        indices: integers [...] in range(n).
        n: size of the shuffled range, from 1 to 2^62; a number, or integers [...], one per index.
        key: selects the shuffle; a number, or uint64 [...], one per index.

    Returns:
        int64 [...]. `permute(np.arange(n), n, key)` holds every number of range(n) once.

    Raises:
        ValueError: an index is not in range(n).
    """
    values = np.asarray(indices)
    flat = values.astype(np.uint64).reshape(-1)
    sizes = np.broadcast_to(np.asarray(n, np.uint64), values.shape).reshape(-1)
    if (flat >= sizes).any() or (values < 0).any():
        raise ValueError(f"indices from {values.min()} to {values.max()} are not in range({np.min(n)})")
    keys = np.broadcast_to(np.asarray(key, np.uint64), values.shape).reshape(-1)
    out = flat
    outside = np.arange(len(flat))
    while len(outside):
        out[outside] = _feistel(out[outside], sizes[outside], keys[outside])
        outside = outside[out[outside] >= sizes[outside]]
    return out.astype(np.int64).reshape(values.shape)


def _feistel(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Runs one pass over range(a * b): a is the root of the size, rounded up, and b is the least with a * b >= size."""
    distinct, which = np.unique(sizes, return_inverse=True)
    roots = [math.isqrt(int(size) - 1) + 1 for size in distinct]
    sides = np.asarray([(root, -(-int(size) // root)) for root, size in zip(roots, distinct, strict=True)], np.uint64)
    modulus = sides[which].T
    left, right = np.divmod(values, modulus[1])
    for number, constant in enumerate(_ROUND_CONSTANTS):
        # Products wrap modulo 2^64 on purpose, which uint64 arrays do silently.
        scrambled = _mix(right * _GOLDEN + keys + constant) >> np.uint64(32)
        left, right = right, (left + scrambled) % modulus[number % 2]
    return left * modulus[1] + right


def _absorb(state: np.ndarray, number: np.ndarray) -> np.ndarray:
    return _mix((state + _GOLDEN) ^ _mix(number))


def _mix(values: np.ndarray) -> np.ndarray:
    """Applies SplitMix64's finaliser, in which every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
