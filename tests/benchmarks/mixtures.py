"""Synthetic sources for planning: indexes with random counts, without records."""

from __future__ import annotations

import numpy as np

from solo.config import DataConfig, ImageConfig, OptimizerConfig, SourceConfig, StageConfig
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, TEXT, SourceIndex, make_index

IMAGES = ImageConfig(patch_size=8, max_side=8 * 64)


def image_source(
    records: int, grids: np.ndarray, read: tuple[int, int], learned: tuple[int, int], seed: int
) -> SourceIndex:
    """Returns records of one image, unsupervised text and supervised text, with lengths uniform in [low, high].

    `grids` int [n, 2]: rows and columns of patches, sampled uniformly.
    """
    random = np.random.default_rng(seed)
    grid = grids[random.integers(0, len(grids), records)]
    sizes = np.zeros((records, 4, 2), np.int32)
    sizes[:, 0, 0] = 1
    sizes[:, 1] = grid[:, ::-1] * IMAGES.patch_size
    sizes[:, 2, 0] = random.integers(read[0], read[1] + 1, records)
    sizes[:, 3, 0] = random.integers(learned[0], learned[1] + 1, records)
    kinds = np.tile(np.asarray([TEXT, IMAGE, TEXT, SUPERVISED_TEXT], np.uint8), records)
    return make_index(kinds, sizes.reshape(-1, 2), np.arange(0, 4 * records + 1, 4, dtype=np.int64))


def text_source(lengths: np.ndarray) -> SourceIndex:
    """Returns records of `<s>` and supervised text; `lengths` int [records] include `<s>`."""
    sizes = np.zeros((len(lengths), 2, 2), np.int32)
    sizes[:, 0, 0], sizes[:, 1, 0] = 1, lengths - 1
    kinds = np.tile(np.asarray([TEXT, SUPERVISED_TEXT], np.uint8), len(lengths))
    return make_index(kinds, sizes.reshape(-1, 2), np.arange(0, 2 * len(lengths) + 1, 2, dtype=np.int64))


def grids(rows: range, columns: range) -> np.ndarray:
    """Returns all grids of these sizes, int [n, 2]."""
    return np.asarray([(row, column) for row in rows for column in columns])


def quickstart(records: int = 20_000) -> dict[str, SourceIndex]:
    """Digits (4-16 patches, ~10 tokens), scenes (15-48, 20-35), lines (18-40, 20-40), text of 50-400 tokens."""
    lengths = np.random.default_rng(3).integers(50, 401, records)
    return {
        "digits": image_source(records, grids(range(2, 5), range(2, 5)), (4, 6), (3, 5), 0),
        "scenes": image_source(records, grids(range(3, 7), range(5, 9)), (10, 20), (9, 14), 1),
        "lines": image_source(records, grids(range(2, 3), range(9, 21)), (5, 8), (14, 31), 2),
        "text": text_source(lengths),
    }


def long_tailed(records: int = 20_000) -> dict[str, SourceIndex]:
    """Captions of 20 tokens on images of 4-1,000 patches (log-uniform) beside text documents of 10,000 tokens."""
    sides = np.sqrt(np.exp(np.random.default_rng(4).uniform(np.log(4), np.log(1000), 4096)))
    grid = np.stack([np.maximum(np.floor(sides), 1), np.maximum(np.ceil(sides), 1)], axis=1).astype(int)
    return {
        "captions": image_source(records, grid, (2, 2), (17, 17), 5),
        "text": text_source(np.full(records // 20, 10_000)),
    }


def stage(mixture: dict[str, float], **settings: object) -> StageConfig:
    """Returns a stage of 1,000,000 steps of 8 rows, unless `settings` say otherwise."""
    if "epochs" not in settings:
        settings.setdefault("steps", 1_000_000)
    fields = {"name": "test", "batch_rows": 8, "optimizer": OptimizerConfig(learning_rate=0.0), **settings}
    return StageConfig(mixture=mixture, **fields)  # type: ignore[arg-type]


def data_config(mixture: dict[str, float], **settings: object) -> DataConfig:
    """Returns a data config whose readers are never called."""
    return DataConfig(sources={name: SourceConfig(reader="none") for name in mixture}, **settings)  # type: ignore[arg-type]


def _quickstart(
    row_slots: int = 1024, mixture_by: str = "documents", without: str = ""
) -> tuple[dict[str, SourceIndex], StageConfig]:
    sources = quickstart()
    for name in without.split():
        del sources[name]
    return sources, stage(dict.fromkeys(sources, 1.0), row_slots=row_slots, mixture_by=mixture_by)


def _long_tailed(text_share: float) -> tuple[dict[str, SourceIndex], StageConfig]:
    mixture = {"captions": 1 - text_share, "text": text_share}
    return long_tailed(), stage(mixture, row_slots=16_384, mixture_by="tokens")


CASES = {
    "quickstart, by documents": lambda: _quickstart(),
    "quickstart, by tokens": lambda: _quickstart(mixture_by="tokens"),
    "quickstart, rows of 2048": lambda: _quickstart(2048, mixture_by="tokens"),
    "quickstart, images only": lambda: _quickstart(without="text"),
    "digits only, rows of 8192": lambda: _quickstart(8192, without="scenes lines text"),
    "long-tailed, 30% text": lambda: _long_tailed(0.3),
    "long-tailed, 50% text": lambda: _long_tailed(0.5),
    "long-tailed, 70% text": lambda: _long_tailed(0.7),
}
