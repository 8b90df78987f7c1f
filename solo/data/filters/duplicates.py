"""Finds duplicates in a source: records with equal or similar keys. The first one, in source order, is kept.

A key has 64 bits. Among 100 million different records, the probability that any two keys collide is
below 0.0003. Finding equal keys takes about 30 bytes of memory per record.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from solo.config import ConfigError
from solo.data.images.resizing import resize
from solo.data.record import Image

_BITS = 64


def choose_duplicates(keys: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """Returns the numbers of the records to leave out, sorted int64 [e]: those with the key of an earlier record.

    Args:
        keys: uint64 [n], in the order of the source.
        usable: bool [n], the records to consider; None: all. The others are neither kept nor left out.
    """
    numbers = np.arange(len(keys)) if usable is None else np.flatnonzero(usable)
    order = numbers[np.argsort(keys[numbers], kind="stable")]
    again = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
    return np.sort(order[again])


def choose_similar(keys: np.ndarray, comparable: np.ndarray, bits: int, usable: np.ndarray | None = None) -> np.ndarray:
    """Like `choose_duplicates`, for keys that may differ in some bits.

    A record is left out if the key of an earlier record that is kept differs in at most `bits` bits. Two such keys
    agree in at least one of `bits + 1` bands, so only keys that agree in a band are compared. For n evenly
    distributed different keys, this is about n^2 (bits + 1) / 2^(64 / (bits + 1) + 1) comparisons: 60 million for a
    million images and 3 bits.

    Args:
        keys: uint64 [n], in the order of the source.
        comparable: bool [n], keys with a meaningful distance; the others must be equal.
        bits: number of bits in which two keys may differ, 0 to 7.
        usable: bool [n], the records to consider; None: all.
    """
    equal = choose_duplicates(keys, usable)
    if not bits:
        return equal
    left = comparable.copy() if usable is None else comparable & usable
    left[equal] = False
    numbers = np.flatnonzero(left)
    pairs = _near_pairs(keys[numbers], bits)
    out = np.zeros(len(numbers), bool)
    for later, earlier in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        out[later] |= not out[earlier]
    return np.union1d(equal, numbers[out])


def _near_pairs(keys: np.ndarray, bits: int) -> np.ndarray:
    """Returns index pairs (later, earlier) of keys that differ in at most `bits` bits, int64 [p, 2]."""
    found = [np.zeros((0, 2), np.int64)]
    edges = np.linspace(0, _BITS, bits + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        band = keys >> np.uint64(low) & np.uint64((1 << high - low) - 1)
        order = np.argsort(band, kind="stable")
        band, step = band[order], 1
        places = np.flatnonzero(band[1:] == band[:-1])
        while len(places):
            first, second = order[places], order[places + step]
            near = np.bitwise_count(keys[first] ^ keys[second]) <= bits
            found.append(np.stack([np.maximum(first, second)[near], np.minimum(first, second)[near]], axis=1))
            step += 1
            places = places[places + step < len(order)]
            places = places[band[places + step] == band[places]]
    return np.unique(np.concatenate(found), axis=0)


def perceptual_hash(image: Image) -> int:
    """Returns the 64-bit perceptual hash of an image (pHash): the signs of its lowest frequencies.

    Raises:
        ConfigError: the package imagehash is missing.
        OSError: the image cannot be decoded.
    """
    try:
        import imagehash  # optional, and slow to import
    except ImportError:
        raise ConfigError("deduplicate: similar_images needs the package imagehash; install solo-vlm[dedup]") from None
    # `phash` would resize the image itself, with results that depend on the version of Pillow.
    pixels = resize(image.decode().convert("L"), (32, 32), "lanczos")
    found = imagehash.phash(pixels).hash
    return int.from_bytes(np.packbits(found.ravel()).tobytes(), "big")


def key_of(digest: bytes) -> int:
    """Returns the first 64 bits of a digest."""
    return int.from_bytes(digest[:8], "big")
