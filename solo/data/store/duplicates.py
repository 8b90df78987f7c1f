"""Finds the duplicates of a source across all of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from solo.config import SourceConfig
from solo.data.filters.duplicates import choose_duplicates, choose_similar
from solo.data.store.part import PartManifest, RecordKeys, read_keys
from solo.data.store.part_tokens import read_runs


def duplicates(folder: Path, parts: Sequence[str], tokens: str, source: SourceConfig) -> np.ndarray:
    """Returns the numbers of the records to leave out, sorted int64 [n], as `assemble` expects them.

    Args:
        folder: folder of the prepared source.
        parts: fingerprints of its parts, in order; both layers must be complete.
        tokens: fingerprint of tokenizer and template.
        source: the source's config.
    """
    if source.deduplicate == "none":
        return np.zeros(0, np.int64)
    keys, usable = [], []
    for part in parts:
        manifest = PartManifest.read(folder / "parts", part)
        if manifest is not None and manifest.records:
            keys.append(read_keys(folder / "parts", part))
            usable.append(np.diff(read_runs(folder / "parts", part, tokens).record_run) > 0)
    if not keys:
        return np.zeros(0, np.int64)
    joined = RecordKeys(*(np.concatenate(arrays) for arrays in zip(*keys, strict=True)))
    fit = np.concatenate(usable)
    if source.deduplicate == "similar_images":
        return choose_similar(joined.similar, joined.single, source.similar_bits, fit)
    return choose_duplicates(joined.exact if source.deduplicate == "exact" else joined.images, fit)
