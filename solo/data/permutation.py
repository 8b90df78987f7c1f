"""A seeded shuffle of range(n) that needs no table: any index is looked up alone, in constant memory.

A balanced Feistel network is a bijection of the integers of 2w bits, whatever its round function is. With 2w the
least even number of bits that holds n, the domain is at most 4n; an index that lands outside range(n) is sent
through again until it lands inside ("cycle walking"), which keeps the bijection.
"""

from __future__ import annotations

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
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    out = _feistel(flat, half, keys)
    outside = np.flatnonzero(out >= n)
    while len(outside):
        out[outside] = _feistel(out[outside], half, keys[outside])
        outside = outside[out[outside] >= n]
    return out.astype(np.int64).reshape(values.shape)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """One pass over integers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for constant in _ROUND_CONSTANTS:
        # Products modulo 2^64 wrap on purpose: uint64 arrays do so silently.
        scrambled = _mix(right * _GOLDEN + keys + constant)
        left, right = right, left ^ (scrambled & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
