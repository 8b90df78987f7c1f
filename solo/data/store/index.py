"""The index of a source, which is all that planning reads: the runs of every record as flat arrays.

Image sizes are stored in pixels, so one index serves every image geometry.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from solo.config import ImageConfig
from solo.data.images.delimiters import image_text
from solo.data.images.geometry import patch_grid, visual_tokens
from solo.data.record import Exif, Image
from solo.data.text.templates import TextRun

TEXT, SUPERVISED_TEXT, IMAGE = 0, 1, 2


@dataclass(frozen=True)
class SourceIndex:
    """The runs of N records, R in all.

    run_kind   uint8 [R]     TEXT, SUPERVISED_TEXT or IMAGE
    run_size   int32 [R, 2]  text: (tokens, 0); image: (width, height) in pixels
    record_run int64 [N+1]   record i has the runs [record_run[i], record_run[i+1])
    """

    run_kind: np.ndarray
    run_size: np.ndarray
    record_run: np.ndarray

    def __len__(self) -> int:
        return len(self.record_run) - 1

    def run_counts(self, config: ImageConfig) -> np.ndarray:
        """Returns int64 [R, 3]: patches, text tokens (delimiters and row tokens included), supervised tokens."""
        counts = np.zeros((len(self.run_kind), 3), np.int64)
        text = self.run_kind != IMAGE
        counts[text, 1] = self.run_size[text, 0]
        supervised = self.run_kind == SUPERVISED_TEXT
        counts[supervised, 2] = self.run_size[supervised, 0]
        width, height = self.image_sizes().T
        grid = patch_grid(width, height, config, self._images_of_record() if config.share_tiles else 1)
        counts[~text, 0] = visual_tokens(grid, config)
        counts[~text, 1] = image_text(grid.rows, config)
        return counts

    def image_sizes(self) -> np.ndarray:
        """Returns width and height of every image in pixels, int32 [images, 2]."""
        return self.run_size[self.run_kind == IMAGE]

    def _images_of_record(self) -> np.ndarray:
        """Returns, for each image, the number of images in its record, int64 [images]."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.run_kind == IMAGE)])[self.record_run]
        counts = np.diff(before)
        return np.repeat(counts, counts)

    def counts(self, config: ImageConfig) -> np.ndarray:
        """Returns `run_counts` summed over each record, int64 [N, 3]."""
        total = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(self.run_counts(config), axis=0)])
        return total[self.record_run[1:]] - total[self.record_run[:-1]]

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        np.savez(path, run_kind=self.run_kind, run_size=self.run_size, record_run=self.record_run)

    @classmethod
    def load(cls, path: Path) -> SourceIndex:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["run_kind"], arrays["run_size"], arrays["record_run"])


class IndexBuilder:
    """Collects the runs of one record after another. `exif` says whether sizes are those after a stored rotation."""

    def __init__(self, exif: Exif = "apply") -> None:
        self._exif = exif
        # Flat arrays, because a list of tuples takes ten times the memory.
        self._kinds = array("B")
        self._sizes = array("i")
        self._ends = array("q", [0])

    def add(self, parts: Sequence[TextRun | Image]) -> None:
        """Adds the runs of one record.

        Raises:
            OSError: the header of an image cannot be read; nothing is added.
        """
        sizes = [part.size(self._exif) if isinstance(part, Image) else (len(part.tokens), 0) for part in parts]
        self._sizes.extend(chain.from_iterable(sizes))
        self._kinds.extend(
            IMAGE if isinstance(part, Image) else SUPERVISED_TEXT if part.supervised else TEXT for part in parts
        )
        self._ends.append(len(self._kinds))

    def build(self) -> SourceIndex:
        """Returns the index of all records added so far."""
        return SourceIndex(
            np.array(self._kinds, np.uint8),
            np.array(self._sizes, np.int32).reshape(-1, 2),
            np.array(self._ends, np.int64),
        )
