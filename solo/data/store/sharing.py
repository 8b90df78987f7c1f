"""Images that several parts of a source hold are stored once, in the first of them.

A part is made without knowledge of the others, so at first each holds all of its images. When the parts are joined,
later ones drop their copies: `<part>.<mask>.images` replaces `<part>.images`, and the manifest says which images are
left. The result depends on the parts alone, not on the order in which they were made.
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
    """The E entries of the image tables of all parts, one after another.

    manifests  of the parts, as they are now
    number     uint32 [E]    number of each entry's image among the stored images of all parts
    first      int64 [P+1]   part p has the entries [first[p], first[p+1])
    """

    manifests: list[PartManifest]
    number: np.ndarray
    first: np.ndarray


def share_images(folder: Path, names: Sequence[str], manifests: Sequence[PartManifest]) -> SharedImages:
    """Lets the first part that holds an image keep it, and the others drop it.

    Files that are no longer needed stay: call `remove_copies` once nothing refers to them.

    Args:
        folder: of the parts.
        names: of the parts, in order.
        manifests: of the parts.

    Raises:
        LostImagesError: parts had dropped images that no part holds any more.
    """
    table = _Entries(folder, names, manifests)
    table.check_found()
    made = [table.rewritten(part) for part in range(len(names))]
    number = (np.cumsum(table.kept) - 1)[table.owner].astype(np.uint32)
    return SharedImages(made, number, table.first)


class LostImagesError(Exception):
    """Parts lack images. Their manifests were removed, so that the parts are made again.

    Attributes:
        parts: their names.
    """

    def __init__(self, parts: list[str]) -> None:
        super().__init__(f"{len(parts):,} parts lack images that another part held; make them again")
        self.parts = parts


def remove_copies(folder: Path, names: Sequence[str], manifests: Sequence[PartManifest]) -> None:
    """Removes image files of these parts that their manifests do not name."""
    named = {f"{name}.{end}" for name, manifest in zip(names, manifests, strict=True) for end in manifest.files}
    parts = set(names)
    for path in folder.glob("*.images"):
        if path.name.partition(".")[0] in parts and path.name not in named:
            path.unlink(missing_ok=True)


def first_equal(digests: Sequence[np.ndarray]) -> np.ndarray:
    """Returns, for each row of uint8 [n, 16] arrays one after another, the number of the first equal row, int64 [N]."""
    if not digests:
        return np.zeros(0, np.int64)
    words = np.concatenate([np.ascontiguousarray(each).view(np.uint64) for each in digests])
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable: equal rows stay in order
    new = np.ones(len(order), bool)
    new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return found


class _Entries:
    """The image tables of all parts, one after another.

    owner   int64 [E]    first entry of the same image, which is to keep it
    kept    bool [E]     whether it is the entry itself
    stored  bool [E]     whether the entry's part holds the image now
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
        """Returns a part's manifest, after writing the images that the part is to keep if they are not those it has."""
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
        """Returns the file of an image, from any part that holds it."""
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
