"""The mirror of a bucket: a folder on this machine, with the layout of a local data folder.

If the prepared data is in a bucket, all work uses the mirror in place of a local `data.folder`:

- Opening and preparing first download the small files: descriptions, indexes, the tokenizer, manifests.
- The data files of a part are downloaded when they are first read. Once their total size exceeds
  `data.cache_gigabytes`, the least recently used ones are deleted. A file that is open stays readable.
- Preparing uploads each part as soon as it is finished, and `source.json` last (`publishing`). Files that a
  `source.json` in the bucket has named are never deleted from the bucket, because a run elsewhere may read them.

Any number of processes may use a mirror at the same time.

    <mirror>/.mirror.json   {"url", "bytes"}: the mirrored bucket and the maximum size of the cache
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from solo.config import Config, ConfigError
from solo.data.store.access import TOKENIZER, lock_file, source_content
from solo.data.store.bucket import Bucket, BucketError, local_folder, side_by_side
from solo.data.store.checksums import FileSum, fault
from solo.data.store.description import Description
from solo.data.store.safety import claim
from solo.files import is_remote, write_whole
from solo.locks import hold

SETTINGS = ".mirror.json"
RECORD = "made_from.json"  # the last file written to the tokenizer's folder
_DATA = (".records", ".images", ".tokens")  # suffixes of the files that are downloaded when read
_COPYING = ".copy"
_LEFT_SECONDS = 86_400.0  # an older partial download was left by a killed process
_COPIES = 64  # simultaneous downloads of all processes on this machine

_Opened = TypeVar("_Opened")


def open_file(path: Path, expected: FileSum, opened: Callable[[Path], _Opened]) -> _Opened:
    """Opens a file of a part. A file in a bucket is downloaded first, unless it is already here.

    Args:
        path: `<data folder>/sources/<name>/parts/<file>`.
        expected: size and checksum of the file.
        opened: opens a local file.

    Raises:
        OSError: the file cannot be downloaded or opened.
    """
    mirror = Mirror.around(path.parent.parent)
    return opened(path) if mirror is None else mirror.open_file(path, expected, opened)


def cache_note(config: Config, descriptions: Iterable[Description]) -> str | None:
    """Returns a warning if the cache is too small for a run's data; None if it is large enough or without a bucket."""
    if not is_remote(config.data.folder):
        return None
    files = (file for each in descriptions for part in each.parts for file in part.files.items())
    size = sum(found.size for name, found in files if name.endswith(_DATA))
    if size <= config.data.cache_gigabytes * 1e9:
        return None
    return (
        f"the data takes {size / 1e9:,.1f} GB, more than data.cache_gigabytes {config.data.cache_gigabytes:g}: parts"
        f" are copied from {config.data.folder} again and again"
    )


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror. Methods that use the bucket raise `BucketError`.

    folder  local folder
    bucket  mirrored bucket
    limit   maximum total size of part files in bytes
    """

    folder: Path
    bucket: Bucket
    limit: int

    @classmethod
    def of(cls, config: Config) -> Mirror | None:
        """Returns the mirror of `data.folder`, creating it if it is missing; None for a local folder."""
        if not is_remote(config.data.folder):
            return None
        mirror = cls(local_folder(config), Bucket.of(config), int(config.data.cache_gigabytes * 1e9))
        mirror.settle()
        return mirror

    @classmethod
    def around(cls, source: Path) -> Mirror | None:
        """Returns the mirror that contains the folder of a source; None for a local data folder."""
        try:
            found = json.loads((source.parent.parent / SETTINGS).read_text(encoding="utf-8"))
            return cls(source.parent.parent, Bucket(found["url"]), found["bytes"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def settle(self) -> None:
        """Creates the folder: this object may have been pickled on another machine."""
        text = json.dumps({"url": self.bucket.url, "bytes": self.limit}) + "\n"
        path = self.folder / SETTINGS
        try:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_whole(path, text)
        except OSError as error:
            raise ConfigError(f"data.cache: {self.folder} cannot be written: {error.strerror}") from None

    def pull(self, sources: Iterable[str]) -> None:
        """Downloads what is needed to open sources and the tokenizer, unless a preparation here is changing it."""
        self.bucket.connect()
        with self._reading(TOKENIZER) as free:
            if free:
                self._pull_tokenizer()
        for name in sources:
            with self._reading(source_content(name)) as free:
                if free:
                    self._pull_source(self.folder / "sources" / name)

    def pull_manifests(self, source: Path) -> None:
        """Downloads the missing small files of a source's parts."""
        paths = [source / "parts" / name for name in self.sizes(source / "parts")]
        side_by_side(self.fetch, [path for path in paths if path.suffix not in _DATA and not path.exists()])

    def sizes(self, folder: Path) -> dict[str, int]:
        """Returns the size in bytes of every file of a folder in the bucket, by its name in the folder."""
        name = self._name(folder)
        return {file.removeprefix(f"{name}/"): size for file, size in self.bucket.sizes(name).items()}

    def upload(self, path: Path) -> None:
        """Uploads a file of the mirror."""
        self.bucket.upload(self._name(path), path)

    def has(self, path: Path) -> bool:
        """Returns whether the bucket contains a file of the mirror."""
        return self.bucket.size(self._name(path)) is not None

    def remove(self, path: Path) -> None:
        """Deletes a file of the mirror from the bucket."""
        self.bucket.remove(self._name(path))

    def url(self, path: Path) -> str:
        """Returns the URL in the bucket of a file of the mirror."""
        return f"{self.bucket.url}/{self._name(path)}"

    def fetch(self, path: Path, expected: FileSum | None = None) -> None:
        """Downloads a file from the bucket."""
        partial = self._copy(path, expected)
        partial.replace(path)

    def open_file(self, path: Path, expected: FileSum, opened: Callable[[Path], _Opened]) -> _Opened:
        """See `open_file`."""
        for _ in range(2):
            with self._locked("cache", fcntl.LOCK_SH):
                if self._is_here(path, expected):
                    os.utime(path)
                    return opened(path)
            with self._locked(f"copy-{zlib.crc32(path.name.encode()) % _COPIES}", fcntl.LOCK_EX):
                if self._is_here(path, expected):  # by another process meanwhile
                    continue
                partial = self._copy(path, expected)
                with self._locked("cache", fcntl.LOCK_EX):
                    self._make_room(expected.size)
                    partial.replace(path)
                    return opened(path)
        raise BucketError(f"{path} disappears; is data.cache too small?")

    def keep_within_limit(self) -> None:
        """Deletes local part files that the bucket also contains, if the total size exceeds the limit."""
        with self._locked("cache", fcntl.LOCK_EX):
            self._make_room(0)

    def faults(self, source: Path, files: dict[str, FileSum], contents: bool = False) -> Iterator[str]:
        """Yields the faults of a source's part files in the bucket; see `Bucket.faults`."""
        return self.bucket.faults(self._name(source / "parts"), files, contents)

    def _make_room(self, size: int) -> None:
        """Deletes local files until `size` more bytes fit. A file that is not in the bucket is never deleted."""
        found = []
        for folder in (self.folder / "sources").glob("*/parts"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if entry.name.endswith(_COPYING) and entry.stat().st_mtime < time.time() - _LEFT_SECONDS:
                            os.unlink(entry)
                        elif entry.name.endswith(_DATA) and not entry.name.startswith("."):
                            found.append((entry.stat().st_mtime_ns, entry.stat().st_size, Path(entry.path)))
        size += sum(each for _, each, _ in found)
        for _, freed, path in sorted(found):
            if size <= self.limit:
                return
            if self.bucket.size(self._name(path)) == freed:
                path.unlink(missing_ok=True)
                size -= freed

    def _pull_tokenizer(self) -> None:
        place = self.folder / "tokenizer"
        record = self.bucket.read(f"tokenizer/{RECORD}")
        here = place / RECORD
        if record is None:
            for name in [*listed(here.read_bytes() if here.exists() else b"{}"), RECORD]:
                (place / name).unlink(missing_ok=True)
            return
        names = listed(record)
        if here.exists() and here.read_bytes() == record and all((place / name).exists() for name in names):
            return
        claim(place, "the tokenizer")
        for name in names:
            self.fetch(place / name)
        write_whole(here, record.decode())

    def _pull_source(self, source: Path) -> None:
        here = source / "source.json"
        text = self.bucket.read(self._name(here))
        if text is None:
            here.unlink(missing_ok=True)  # it was never uploaded, or was deleted from the bucket
            return
        claim(source, f"source {source.name!r}")
        if not here.exists() or here.read_bytes() != text:
            here.unlink(missing_ok=True)
            for name in ("quarantine.jsonl", "filtered.jsonl", "inputs.json"):
                (source / name).unlink(missing_ok=True)
                if self.has(source / name):
                    self.fetch(source / name)
            write_whole(here, text.decode())
        description = Description.read(source)
        if description is None:
            return  # written by another version of solo
        folder = description.index_folder(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name, expected in description.index.items():
            if fault(folder / name, expected, whole=True) is not None:
                self.fetch(folder / name, expected)

    def _copy(self, path: Path, expected: FileSum | None) -> Path:
        """Downloads a file to a temporary path, and returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_COPYING}")
        try:
            self.bucket.download(self._name(path), partial, expected)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial

    def _is_here(self, path: Path, expected: FileSum) -> bool:
        return fault(path, expected) is None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    @contextmanager
    def _reading(self, content: str) -> Iterator[bool]:
        with hold(lock_file(self.folder, content), shared=True) as held:
            yield held

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        """Waits for a lock. Other processes hold it only briefly, or while they copy a file."""
        path = lock_file(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, kind)
            yield


def listed(record: bytes) -> list[str]:
    """Returns the files listed in a tokenizer's record."""
    try:
        names = json.loads(record).get("files") or []
        return [name for name in names if Path(name).name == name]
    except (ValueError, AttributeError, TypeError):
        return []
