"""A part of a prepared source (a shard), made by one process from one `Part` of the reader.

The files are in `<source>/parts`. They are named by fingerprints, so files that a change does not affect are reused.
A part has two layers. The manifest of a layer is written last, so a layer is complete if its manifest exists:

    <part>.json                       `PartManifest`
    <part>.records                    ArrayRecord: JSON of every record, with numbers in place of images
    <part>.images                     ArrayRecord: the distinct image files; named <part>.<mask>.images if it omits
                                      images that earlier parts store
    <part>.table.npz                  `ImageTable`, and a digest of the content of every record
    <part>.quarantine.jsonl           examples that cannot be read
    <part>.filtered.jsonl             a sample of the records that the source's settings leave out
    <part>.<tokens>.*                 see `solo.data.store.part_tokens`

This module writes the first layer, which does not depend on the tokenizer. Empty files are not written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from solo.data.filters.duplicates import key_of, perceptual_hash
from solo.data.filters.selection import EmptyAnswerError, Filtered
from solo.data.readers import Ignored, Omitted, Unreadable
from solo.data.readers.paths import stamp
from solo.data.record import Image, Place, Record, Turn
from solo.data.store.checksums import FileSum
from solo.data.store.mirror import open_file
from solo.data.store.part_files import FilteredFile, PartFiles, Quarantine, place_text, read_manifest, write_manifest
from solo.data.store.progress import Amount

_DIGEST = 16  # bytes
_RECORDS_TOGETHER = 16  # ArrayRecord's group size: these records are compressed and read together

Header = tuple[int, int, bool]
Select = Callable[[Record, Sequence[bytes], Sequence[tuple[int, int]]], Record | Filtered]


@dataclass(frozen=True)
class PartManifest:
    """The manifest of a part's first layer.

    part         name of the reader's part
    examples     records, quarantined examples and filtered records
    records      records in `.records`
    images       entries of the image table
    dropped      mask of the images that earlier parts store, as packed bits in hexadecimal; "" if there are none
    quarantined  examples that cannot be read
    refused      the first few of them, for messages
    filtered     records that the source's settings leave out, by setting
    omitted      number of pieces of records that the reader left out, by kind
    ignored      the first place of each key that the reader ignores
    inputs       stamp of every image file, including missing ones (`solo.data.store.inputs`)
    files        size and checksum of every file, by suffix
    """

    part: str
    examples: int
    records: int
    images: int
    dropped: str
    quarantined: int
    refused: list[str]
    filtered: dict[str, int]
    omitted: dict[str, int]
    ignored: dict[str, str]
    inputs: dict[str, tuple[int, int]]
    files: dict[str, FileSum]

    @classmethod
    def read(cls, folder: Path, part: str) -> PartManifest | None:
        """Returns the manifest of a part; None if it is missing or has another format."""
        return read_manifest(cls, folder / f"{part}.json")

    @property
    def stored(self) -> np.ndarray:
        """Whether this part stores the file of each entry of the image table, bool [images]."""
        if not self.dropped:
            return np.ones(self.images, bool)
        bits = np.frombuffer(bytes.fromhex(self.dropped), np.uint8)
        return np.unpackbits(bits, count=self.images) == 0

    def with_images(self, stored: np.ndarray, files: dict[str, FileSum]) -> PartManifest:
        """Returns a copy of the manifest for other stored images."""
        dropped = "" if stored.all() else np.packbits(~stored).tobytes().hex()
        return replace(self, dropped=dropped, files=files)


class ImageTable(NamedTuple):
    """The m distinct images of a part. Records refer to them by number.

    digest  uint8 [m, 16]   BLAKE2b of the image file
    size    uint16 [m, 2]   width and height in pixels, before rotation
    turned  bool [m]        whether the EXIF orientation swaps width and height
    """

    digest: np.ndarray
    size: np.ndarray
    turned: np.ndarray


def read_table(folder: Path, part: str) -> ImageTable:
    """Returns a part's image table."""
    with np.load(folder / f"{part}.table.npz") as arrays:
        return ImageTable(*(arrays[name] for name in ImageTable._fields))


class RecordKeys(NamedTuple):
    """Keys that identify duplicates among the n records of a part (`solo.data.filters.duplicates`).

    exact    uint64 [n]   key of the turns, with images compared by content
    images   uint64 [n]   key of the image files; equals `exact` for a record without images
    similar  uint64 [n]   perceptual hash of the only image, or a combined key for several images; empty unless
                          requested
    single   bool [n]     whether the record has exactly one image; empty unless requested
    """

    exact: np.ndarray
    images: np.ndarray
    similar: np.ndarray
    single: np.ndarray


def read_keys(folder: Path, part: str) -> RecordKeys:
    """Returns the keys of a part's records."""
    with np.load(folder / f"{part}.table.npz") as arrays:
        exact = _exact(arrays["records"])
        images = arrays.get("record_images", exact)
        return RecordKeys(
            exact, images, arrays.get("similar", np.zeros(0, np.uint64)), arrays.get("single", np.zeros(0, bool))
        )


@dataclass(frozen=True, slots=True)
class StoredImage(Image):
    """An image of a stored record, without its bytes. `number` is its index in the part's image table."""

    number: int = -1


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a part, with a `StoredImage` for each image. `example` is its number in the part, from 0."""

    record: Record
    example: int


def read_records(folder: Path, part: str) -> Iterator[StoredRecord]:
    """Yields the records of a part in order."""
    manifest = PartManifest.read(folder, part)
    assert manifest is not None
    reader = open_file(folder / f"{part}.records", manifest.files["records"], open_array_record)
    count = reader.num_records()
    for start in range(0, count, _RECORDS_TOGETHER):
        found = reader.read(list(range(start, min(start + _RECORDS_TOGETHER, count))))
        yield from (decode_record(data, stored_image) for data in found)


def open_array_record(path: Path) -> ArrayRecordReader:
    """Opens an ArrayRecord file for random access. Raises FileNotFoundError if it does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def new_image_file(path: Path) -> ArrayRecordWriter:
    """Returns a writer for an image file."""
    return ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # JPEG and PNG do not compress


def is_image_file(name: str) -> bool:
    """Returns whether a file name or suffix is that of a part's image file; see `solo.data.store.sharing`."""
    return name.endswith("images")


def stored_image(number: int) -> Image:
    """Returns the `StoredImage` of a number."""
    return StoredImage(b"", number=number)


def decode_record(data: bytes, image: Callable[[int], Image]) -> StoredRecord:
    """Decodes an entry of `.records`; `image` returns the image of a number."""
    found = json.loads(data)
    turns = tuple(
        Turn(
            turn["role"],
            tuple(part if isinstance(part, str) else image(part) for part in turn["content"]),
            turn.get("learned", True),
        )
        for turn in found["turns"]
    )
    place = None if found["place"] is None else Place(*found["place"])
    return StoredRecord(Record(found["id"], turns, place), found["example"])


class _RefusedError(Exception):
    """A record is unusable; the message says why."""


class PartWriter:
    """Writes the first layer of a part. Use it as a context manager: no file appears before `finish`.

    Args:
        folder: the source's `parts` folder, which must exist.
        fingerprint: fingerprint of the part; names the files.
        part: name of the reader's part.
        check: returns (width, height, turned) of an image, or raises an OSError that says why it is unusable. It is
            called once for each distinct image.
        stamp: returns a stamp of the content of an image file.
        select: returns the record to store, or why it is left out; see `solo.data.filters.Selection`.
        similar: compute perceptual hashes of images.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        part: str,
        check: Callable[[Image], Header],
        stamp: Callable[[str], tuple[int, int]] = stamp,
        select: Select | None = None,
        similar: bool = False,
    ) -> None:
        self._files = PartFiles(folder, fingerprint)
        self._part, self._check, self._stamp = part, check, stamp
        self._records: ArrayRecordWriter | None = None
        self._images: ArrayRecordWriter | None = None
        self._headers: dict[bytes, Header | str] = {}  # a text says why the image is unusable
        self._numbers: dict[bytes, int] = {}
        self._digests: list[bytes] = []
        self._select = select or (lambda record, digests, sizes: record)
        self._similar = similar
        self._looks: dict[bytes, int] = {}
        self._keys: dict[int, tuple[int, int, bool]] = {}  # only of records with images
        self._images_read = 0
        self._quarantine, self._filtered = Quarantine(self._files), FilteredFile(self._files)
        self._omitted = Counter[str]()
        self._ignored: dict[str, str] = {}
        self._inputs: dict[str, tuple[int, int]] = {}
        self._examples = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._close()
        finally:  # with a full disk, the error may appear only on close
            self._files.discard()

    def add(self, example: Record | Unreadable | Ignored) -> StoredRecord | None:
        """Adds the reader's next example. Returns the stored record, or None if the example is left out."""
        number = self._examples
        if isinstance(example, Record):
            self._examples += 1
            try:
                return self._add(example, number)
            except (_RefusedError, EmptyAnswerError) as error:
                self._quarantine.add(Unreadable(example.id, str(error), example.place), number)
        elif isinstance(example, Unreadable):
            self._examples += 1
            self._quarantine.add(example, number)
            if example.file is not None:
                self._reads(example.file)
        elif isinstance(example, Omitted):
            self._omitted[example.key] += 1
        else:
            self._ignored.setdefault(example.key, place_text(example.place))
        return None

    def finish(self, fingerprint: str | None = None) -> PartManifest:
        """Writes the table and then the manifest, which marks the layer as complete.

        Args:
            fingerprint: another fingerprint to name the files.
        """
        self._files.stem = fingerprint or self._files.stem
        table = self._table()
        digests = np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, _DIGEST)
        if self._digests:
            with self._files.new("table.npz").open("wb") as file:
                arrays = {"records": digests, **self._key_arrays(digests), **table._asdict()}
                np.savez(file, allow_pickle=False, **arrays)
        self._close()
        manifest = PartManifest(
            part=self._part,
            examples=self._examples,
            records=len(digests),
            images=len(table.digest),
            dropped="",
            quarantined=self._quarantine.count,
            refused=self._quarantine.shown,
            filtered=self._filtered.counts,
            omitted=dict(self._omitted),
            ignored=self._ignored,
            inputs=self._inputs,
            files=self._files.keep(),
        )
        write_manifest(self._files.path("json"), manifest)
        return manifest

    @property
    def turned(self) -> np.ndarray:
        """Whether the EXIF orientation swaps width and height of each image so far, bool [m]."""
        return self._table().turned

    @property
    def amount(self) -> Amount:
        """The amount that was added so far."""
        return Amount(len(self._digests), self._images_read, self._quarantine.count)

    def _add(self, record: Record, example: int) -> StoredRecord | None:
        images = record.images()
        for image in images:
            if image.file is not None:
                self._reads(image.file)
        digests = [self._digest(image, place) for place, image in enumerate(images, start=1)] if images else []
        chosen = self._select(record, digests, [self._size(digest) for digest in digests] if images else [])
        if isinstance(chosen, Filtered):
            self._filtered.add(record.id, record.place, chosen.key, chosen.reason)
            return None
        record = chosen
        new: dict[bytes, Image] = {}
        if images:
            new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in self._numbers}
            later = {digest: len(self._numbers) + place for place, digest in enumerate(new)}
            record = _with_numbers(record, [self._numbers.get(digest, later.get(digest, -1)) for digest in digests])
        stored = StoredRecord(record, example)
        try:
            data, content = _encode(stored, digests)
        except UnicodeEncodeError as error:
            raise _RefusedError(f"its text is not valid Unicode: {error}") from None
        for digest, image in new.items():
            self._numbers[digest] = len(self._numbers)
            self._write_image(image)
        if self._records is None:
            self._records = ArrayRecordWriter(str(self._files.new("records")), f"group_size:{_RECORDS_TOGETHER},zstd:1")
        self._records.write(data)
        if images:
            self._images_read += len(images)
            self._keys[len(self._digests)] = self._key(digests, images)
        self._digests.append(content)
        return stored

    def _size(self, digest: bytes) -> tuple[int, int]:
        header = self._headers[digest]
        assert not isinstance(header, str)
        return header[:2]

    def _key(self, digests: list[bytes], images: list[Image]) -> tuple[int, int, bool]:
        """Returns the `RecordKeys` entries of a record with images: images, similar, single."""
        pictures = _combined(digests)
        if not self._similar:
            return pictures, 0, False
        for digest, image in zip(digests, images, strict=True):
            if digest not in self._looks:
                self._looks[digest] = perceptual_hash(image)
        looks = [self._looks[digest] for digest in digests]
        if len(looks) == 1:
            return pictures, looks[0], True
        return pictures, _combined([look.to_bytes(8, "big") for look in looks]), False

    def _key_arrays(self, digests: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of `RecordKeys` for the table. Records without images are identified by their content."""
        exact, records, keys = _exact(digests), list(self._keys), list(zip(*self._keys.values(), strict=True))
        found: dict[str, np.ndarray] = {}
        if keys:
            found["record_images"] = exact.copy()
            found["record_images"][records] = np.asarray(keys[0], np.uint64)
        if self._similar:
            found["similar"], found["single"] = exact.copy(), np.zeros(len(exact), bool)
        if self._similar and keys:
            found["similar"][records] = np.asarray(keys[1], np.uint64)
            found["single"][records] = keys[2]
        return found

    def _reads(self, file: str) -> None:
        if file not in self._inputs:
            self._inputs[file] = self._stamp(file)

    def _digest(self, image: Image, place: int) -> bytes:
        digest = hashlib.blake2b(image.data, digest_size=_DIGEST).digest()
        if digest not in self._headers:
            try:
                self._headers[digest] = self._check(image)
            except OSError as error:
                self._headers[digest] = str(error)
        header = self._headers[digest]
        if isinstance(header, str):
            raise _RefusedError(f"image {place} cannot be read: {header}")
        return digest

    def _write_image(self, image: Image) -> None:
        if self._images is None:
            self._images = new_image_file(self._files.new("images"))
        self._images.write(image.data)

    def _table(self) -> ImageTable:
        headers = [header for digest in self._numbers if not isinstance(header := self._headers[digest], str)]
        return ImageTable(
            np.frombuffer(b"".join(self._numbers), np.uint8).reshape(-1, _DIGEST),
            np.asarray([header[:2] for header in headers], np.uint16).reshape(-1, 2),
            np.asarray([header[2] for header in headers], bool),
        )

    def _close(self) -> None:
        # ArrayRecord's writers must be closed before they are garbage collected.
        for writer in (self._records, self._images):
            if writer is not None and writer.is_open():
                writer.close()
        self._quarantine.close()
        self._filtered.close()


def _exact(digests: np.ndarray) -> np.ndarray:
    """Returns the first 64 bits of digests, uint64 [n]; see `key_of`."""
    return digests[:, :8].copy().view(">u8").astype(np.uint64).ravel()


def _combined(digests: Sequence[bytes]) -> int:
    """Returns a single key for several digests."""
    return key_of(hashlib.blake2b(b"".join(digests), digest_size=8).digest())


def _with_numbers(record: Record, numbers: list[int]) -> Record:
    images = iter(numbers)

    def numbered(content: tuple[str | Image, ...]) -> tuple[str | Image, ...]:
        return tuple(part if isinstance(part, str) else stored_image(next(images)) for part in content)

    return replace(record, turns=tuple(replace(turn, content=numbered(turn.content)) for turn in record.turns))


def _encode(stored: StoredRecord, digests: list[bytes]) -> tuple[bytes, bytes]:
    """Returns the record encoded for `decode_record`, and a digest of its content.

    Raises:
        UnicodeEncodeError: a text contains lone surrogates.
    """
    record, place = stored.record, stored.record.place
    turns = _turns(record.turns)
    at = "null" if place is None else f"[{_json(place.file)},{'null' if place.line is None else place.line}]"
    data = f'{{"id":{_json(record.id)},"example":{stored.example},"place":{at},"turns":{turns}}}'.encode()
    # The digest depends on the images' content, not on their numbers.
    content = b"".join([_turns(record.turns, numbered=False).encode(), *digests]) if digests else turns.encode()
    return data, hashlib.blake2b(content, digest_size=_DIGEST).digest()


# Encoding only the strings is several times faster than encoding lists and mappings.
_json = json.JSONEncoder(ensure_ascii=False).encode


def _turns(turns: Sequence[Turn], numbered: bool = True) -> str:
    """Returns turns as JSON. A number stands for each image: its own, or 0 if not `numbered`."""
    found = []
    for turn in turns:
        content = [
            _json(part) if isinstance(part, str) else _number(part) if numbered else "0" for part in turn.content
        ]
        learned = "" if turn.learned else ',"learned":false'
        found.append(f'{{"role":{_json(turn.role)},"content":[{",".join(content)}]{learned}}}')
    return f"[{','.join(found)}]"


def _number(image: Image) -> str:
    assert isinstance(image, StoredImage)
    return str(image.number)
