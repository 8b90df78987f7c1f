"""Checks that no stage of a run trains on the records that the run is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from solo.config import Config
from solo.data.store.part import read_keys
from solo.data.store.prepare import Prepared
from solo.data.store.source import PreparedSource


def not_held_out(config: Config, prepared: Prepared) -> list[str]:
    """Returns a message for every source of the evaluation that shares records with a source of the stages.

    Two records are the same if they have the same image files, or, without images, the same turns. Parts whose tables
    are not on this machine, because the data is in a bucket, are not compared.
    """
    measured: dict[str, list[str]] = {}
    for kind, name, section in config.evaluation.evaluators():
        source = getattr(section, "source", None)
        if source is not None:
            measured.setdefault(source, []).append(f"{kind}/{name}")
    trained = {name: stage.name for stage in reversed(config.stages) for name in stage.sources}
    found = []
    for source, evaluators in measured.items():
        who = ", ".join(evaluators)
        if source in trained:
            found.append(
                f"{who}: source {source!r} is not held out; stage {trained[source]!r} trains on it"
                " (held_out and take select a share of a source)"
            )
            continue
        keys = np.unique(np.concatenate([np.zeros(0, np.uint64), *_keys(prepared.sources[source])]))
        for other in trained:
            if shared := _shared(keys, prepared.sources[other]):
                found.append(
                    f"{who}: {shared:,} of {len(keys):,} different records of source {source!r} are also in source"
                    f" {other!r}, which stage {trained[other]!r} trains on"
                )
    return found


def _shared(keys: np.ndarray, source: PreparedSource) -> int:
    seen = np.zeros(len(keys), bool)
    for others in _keys(source):  # one part at a time, however large the source is
        seen |= np.isin(keys, others)
    return int(seen.sum())


def _keys(source: PreparedSource) -> Iterator[np.ndarray]:
    """Yields uint64 keys of the records of each part."""
    folder = source.folder / "parts"
    for part in source.description.parts:
        if part.records and (folder / f"{part.name}.table.npz").is_file():
            yield read_keys(folder, part.name).images
