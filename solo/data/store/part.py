"""A part of a prepared source, made by one process from one `Part` of the reader.

Files are in `<source>/parts` and named by fingerprints, so those that a change does not affect are kept. There are two
layers. Each is complete once its manifest exists, which is written last:

    <part>.json                       `PartManifest`
    <part>.records                    ArrayRecord: JSON of every record, with numbers in place of images
    <part>.images                     ArrayRecord: the distinct image files; without those that earlier parts hold,
                                      its name is <part>.<mask>.images
    <part>.table.npz                  `ImageTable`, and a digest of the content of every record
    <part>.quarantine.jsonl           examples that cannot be read
    <part>.filtered.jsonl             some of the records that the source's settings leave out
    <part>.<tokens>.*                 see `solo.data.store.part_tokens`

The first layer, here, does not depend on the tokenizer. Files without content are not written.
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
_RECORDS_TOGETHER = 16  # records that ArrayRecord compresses, and so reads, together

Header = tuple[int, int, bool]
Select = Callable[[Record, Sequence[bytes], Sequence[tuple[int, int]]], Record | Filtered]


@dataclass(frozen=True)
class PartManifest:
    """What the first layer of a part holds.

    part         name of the reader's part
    examples     records, quarantined examples and filtered records
    records      records in `.records`
    images       entries of the image table
    dropped      which of them earlier parts hold, as packed bits in hexadecimal; "" if this part holds all of them
    quarantined  examples that cannot be read
    refused      the first few of them, for messages
    filtered     records that the source's settings leave out, by setting
    omitted      how many pieces of records the reader has left out, by what they are
    ignored      the first place of each key that the reader ignores
    inputs       stamp of every file of an image, also of one that is missing (`solo.data.store.inputs`)
    files        size and checksum of every file, by the end of its name
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
        """Returns the manifest of a part; None if there is none, or it has another format."""
        return read_manifest(cls, folder / f"{part}.json")

    @property
    def stored(self) -> np.ndarray:
        """Which entries of the image table have their file in this part, bool [images]."""
        if not self.dropped:
            return np.ones(self.images, bool)
        bits = np.frombuffer(bytes.fromhex(self.dropped), np.uint8)
        return np.unpackbits(bits, count=self.images) == 0

    def with_images(self, stored: np.ndarray, files: dict[str, FileSum]) -> PartManifest:
        """Returns the manifest of a part that holds other images."""
        dropped = "" if stored.all() else np.packbits(~stored).tobytes().hex()
        return replace(self, dropped=dropped, files=files)


class ImageTable(NamedTuple):
    """The m distinct images that a part's records name by number.

    digest  uint8 [m, 16]   BLAKE2b of the image file
    size    uint16 [m, 2]   width and height as stored
    turned  bool [m]        whether EXIF asks to swap them
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

    exact    uint64 [n]   of the turns, images by their content
    images   uint64 [n]   of the image files; equals `exact` for a record without images
    similar  uint64 [n]   perceptual hash of the only image, or a key of those of several; empty unless asked for
    single   bool [n]     whether the record has one image; empty as `similar`
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
    """Represents an image of a stored record without its bytes. `number` is its place in the part's table."""

    number: int = -1


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a part, with a `StoredImage` for each image. `example` counts the part's examples from 0."""

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
    """Opens a file for random access. Raises FileNotFoundError if there is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def new_image_file(path: Path) -> ArrayRecordWriter:
    """Returns a writer of images."""
    return ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # JPEG and PNG do not become smaller


def is_image_file(name: str) -> bool:
    """Returns whether a part's file, by its name or the end of it, holds images; see `solo.data.store.sharing`."""
    return name.endswith("images")


def stored_image(number: int) -> Image:
    """Returns the `StoredImage` of an image."""
    return StoredImage(b"", number=number)


def decode_record(data: bytes, image: Callable[[int], Image]) -> StoredRecord:
    """Returns an entry of `.records`; `image` returns the image of a number."""
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
    """Says why a record cannot be used."""


class PartWriter:
    """Writes the first layer of a part. Use it as a context manager: no file appears before `finish`.

    Args:
        folder: the source's `parts`; it must exist.
        fingerprint: names the files.
        part: name of the reader's part.
        check: returns (width, height, turned) of an image, or raises an OSError that says why it cannot be used. It is
            called once for each distinct image.
        stamp: returns what identifies the content of an image's file.
        select: returns the record to store, or why it is left out; see `solo.data.filters.Selection`.
        similar: keep perceptual hashes of images.
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
        self._headers: dict[bytes, Header | str] = {}  # or why the image cannot be used
        self._numbers: dict[bytes, int] = {}
        self._digests: list[bytes] = []
        self._select = select or (lambda record, digests, sizes: record)
        self._similar = similar
        self._looks: dict[bytes, int] = {}
        self._keys: dict[int, tuple[int, int, bool]] = {}  # of the records with images
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
        finally:  # a full disk may raise only on close
            self._files.discard()

    def add(self, example: Record | Unreadable | Ignored) -> StoredRecord | None:
        """Takes the reader's next example. Returns the record, if it can be used."""
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
            fingerprint: replaces the fingerprint that names the files.
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
        """Whether EXIF asks to swap the sides of each image so far, bool [m]."""
        return self._table().turned

    @property
    def amount(self) -> Amount:
        """What was added so far."""
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
        """Returns the entries in `RecordKeys` of a record with images: images, similar, single."""
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
        """Returns what the table holds of `RecordKeys`; records without images are identified by their content."""
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
        # ArrayRecord's writers must be closed before they are collected.
        for writer in (self._records, self._images):
            if writer is not None and writer.is_open():
                writer.close()
        self._quarantine.close()
        self._filtered.close()


def _exact(digests: np.ndarray) -> np.ndarray:
    """Returns the first 64 bits of digests, uint64 [n]; see `key_of`."""
    return digests[:, :8].copy().view(">u8").astype(np.uint64).ravel()


def _combined(digests: Sequence[bytes]) -> int:
    """Returns one key for several digests."""
    return key_of(hashlib.blake2b(b"".join(digests), digest_size=8).digest())


def _with_numbers(record: Record, numbers: list[int]) -> Record:
    images = iter(numbers)

    def numbered(content: tuple[str | Image, ...]) -> tuple[str | Image, ...]:
        return tuple(part if isinstance(part, str) else stored_image(next(images)) for part in content)

    return replace(record, turns=tuple(replace(turn, content=numbered(turn.content)) for turn in record.turns))


def _encode(stored: StoredRecord, digests: list[bytes]) -> tuple[bytes, bytes]:
    """Returns the record as `decode_record` reads it, and a digest of its content.

    Raises:
        UnicodeEncodeError: a text has lone surrogates.
    """
    record, place = stored.record, stored.record.place
    turns = _turns(record.turns)
    at = "null" if place is None else f"[{_json(place.file)},{'null' if place.line is None else place.line}]"
    data = f'{{"id":{_json(record.id)},"example":{stored.example},"place":{at},"turns":{turns}}}'.encode()
    # Images count by their content, not by their number.
    content = b"".join([_turns(record.turns, numbered=False).encode(), *digests]) if digests else turns.encode()
    return data, hashlib.blake2b(content, digest_size=_DIGEST).digest()


# The encoder is several times slower with lists and mappings than with the texts in them.
_json = json.JSONEncoder(ensure_ascii=False).encode


def _turns(turns: Sequence[Turn], numbered: bool = True) -> str:
    """Returns turns as JSON, with a number in place of each image: its own, or 0."""
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
