"""Stores an image that occurs in several parts of a source only once, in the first of these parts.

Parts are made independently, so each one first stores all of its images. When the parts are joined, later parts drop
their copies: `<part>.<mask>.images` replaces `<part>.images`, and the manifest records which images were dropped. The
result depends only on the parts, not on the order in which they were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo.data.store.mirror import open_file
from solo.data.store.part import PartManifest, is_image_file, new_image_file, open_array_record, read_table
from solo.data.store.part_files import PartFiles, write_manifest


class SharedImages(NamedTuple):
    """The E entries of the concatenated image tables of all parts.

    manifests  current manifests of the parts
    number     uint32 [E]    number of each entry's image among the stored images of all parts
    first      int64 [P+1]   part p has the entries [first[p], first[p+1])
    """

    manifests: list[PartManifest]
    number: np.ndarray
    first: np.ndarray


def share_images(folder: Path, names: Sequence[str], manifests: Sequence[PartManifest]) -> SharedImages:
    """Keeps each image only in the first part that contains it; the other parts drop it.

    Files that are no longer needed are not deleted: call `remove_copies` once nothing refers to them.

    Args:
        folder: the source's `parts` folder.
        names: fingerprints of the parts, in order.
        manifests: manifests of the parts.

    Raises:
        LostImagesError: parts dropped images that no other part stores any more.
    """
    table = _Entries(folder, names, manifests)
    table.check_found()
    made = [table.rewritten(part) for part in range(len(names))]
    number = (np.cumsum(table.kept) - 1)[table.owner].astype(np.uint32)
    return SharedImages(made, number, table.first)


class LostImagesError(Exception):
    """Images of some parts are lost. The manifests of these parts were deleted, so that the parts are made again.

    Attributes:
        parts: names of these parts.
    """

    def __init__(self, parts: list[str]) -> None:
        super().__init__(f"{len(parts):,} parts lack images that another part held; make them again")
        self.parts = parts


def remove_copies(folder: Path, names: Sequence[str], manifests: Sequence[PartManifest]) -> None:
    """Deletes image files of parts that the manifests do not name."""
    named = {f"{name}.{end}" for name, manifest in zip(names, manifests, strict=True) for end in manifest.files}
    parts = set(names)
    for path in folder.glob("*.images"):
        if path.name.partition(".")[0] in parts and path.name not in named:
            path.unlink(missing_ok=True)


def first_equal(digests: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the index of the first equal row for each row of the concatenated uint8 [n, 16] arrays, int64 [N]."""
    if not digests:
        return np.zeros(0, np.int64)
    words = np.concatenate([np.ascontiguousarray(each).view(np.uint64) for each in digests])
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable, so equal rows keep their order
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return found


class _Entries:
    """The concatenated image tables of all parts.

    owner   int64 [E]    first entry with the same image, whose part will store the image
    kept    bool [E]     whether the entry is its own owner
    stored  bool [E]     whether the entry's part stores the image now
    """

    def __init__(self, folder: Path, names: Sequence[str], manifests: Sequence[PartManifest]) -> None:
        self._folder, self._names, self._manifests = folder, names, manifests
        self.first = np.cumsum([0, *(manifest.images for manifest in manifests)])
        pairs = zip(names, manifests, strict=True)
        self.owner = first_equal([read_table(folder, name).digest for name, each in pairs if each.images])
        self.kept = self.owner == np.arange(len(self.owner))
        self.stored = np.concatenate([np.zeros(0, bool), *(manifest.stored for manifest in manifests)])
        self._open = lru_cache(16)(self._opened)

    def check_found(self) -> None:
        needed = self.owner[self.kept & ~self.stored]
        lost = needed[~np.isin(needed, self.owner[self.stored])]
        if len(lost):
            parts = np.unique(self._part(np.flatnonzero(np.isin(self.owner, lost))))
            names = [self._names[part] for part in parts.tolist()]
            for name in names:
                (self._folder / f"{name}.json").unlink(missing_ok=True)
            raise LostImagesError(names)

    def rewritten(self, part: int) -> PartManifest:
        """Returns a part's manifest. Rewrites its image file first if the part must store other images."""
        entries = slice(self.first[part], self.first[part + 1])
        mask, manifest = self.kept[entries], self._manifests[part]
        if np.array_equal(mask, self.stored[entries]):
            return manifest
        files = PartFiles(self._folder, self._names[part])
        try:
            if mask.any():
                named = hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=4).hexdigest()
                writer = new_image_file(files.new("images" if mask.all() else f"{named}.images"))
                for entry in (entries.start + np.flatnonzero(mask)).tolist():
                    writer.write(self._image(entry))
                writer.close()
            others = {end: found for end, found in manifest.files.items() if not is_image_file(end)}
            made = manifest.with_images(mask, others | files.keep())
            write_manifest(files.path("json"), made)
        finally:
            files.discard()
        return made

    def _image(self, entry: int) -> bytes:
        """Returns the encoded image of an entry, from any part that stores it."""
        if not self.stored[entry]:
            entry = int(np.flatnonzero((self.owner == self.owner[entry]) & self.stored)[0])
        part = int(self._part(entry))
        reader, places = self._open(part)
        data: bytes = reader.read([int(places[entry - self.first[part]])])[0]
        return data

    def _opened(self, part: int) -> tuple[Any, np.ndarray]:
        manifest = self._manifests[part]
        end = next(filter(is_image_file, manifest.files))
        path = self._folder / f"{self._names[part]}.{end}"
        return open_file(path, manifest.files[end], open_array_record), np.cumsum(manifest.stored) - 1

    def _part(self, entry: int | np.ndarray) -> np.ndarray:
        found: np.ndarray = np.searchsorted(self.first, entry, side="right") - 1
        return found
