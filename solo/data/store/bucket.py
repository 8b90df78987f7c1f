"""A bucket of prepared data. The sizes and checksums of its files are known."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from solo import storage
from solo.config import Config
from solo.data.store.checksums import FileSum, fault
from solo.files import cache_folder, is_remote
from solo.storage import BucketError, side_by_side

__all__ = ["Bucket", "BucketError", "local_folder", "side_by_side"]

_READ = 1 << 20


def local_folder(config: Config) -> Path:
    """Returns `data.folder`; if it is a URL, the local folder that mirrors it (`Mirror`)."""
    url = config.data.folder
    if not is_remote(url):
        return Path(url)
    cache = Path(config.data.cache).expanduser().absolute() if config.data.cache else cache_folder()
    return cache / f"prepared-{hashlib.sha256(Bucket.of(config).url.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Bucket(storage.Bucket):
    """A bucket whose files are verified by size and checksum. All methods raise `BucketError`."""

    @classmethod
    def of(cls, config: Config) -> Bucket:
        """Returns the bucket of a remote `data.folder`."""
        return cls(config.data.folder.rstrip("/"))

    def download(self, name: str, path: Path, expected: FileSum | None = None) -> None:
        """Downloads a file to `path`, which should be a temporary name, and verifies it."""
        if expected is not None and (size := self.size(name)) != expected.size:
            raise BucketError(self._wrong_size(name, size, expected))
        storage.Bucket.download(self, name, path)
        if expected is not None and fault(path, expected, whole=True) is not None:
            raise BucketError(self._damaged(name))

    def faults(self, folder: str, files: dict[str, FileSum], contents: bool = False) -> Iterator[str]:
        """Yields a description of each missing or damaged file in a folder.

        Args:
            folder: folder that contains the files.
            files: expected size and checksum of each file, by name.
            contents: also compare the checksums, which reads every file; otherwise compare only the sizes.
        """
        sizes = self.sizes(folder)
        for file, expected in files.items():
            name = f"{folder}/{file}"
            if sizes.get(name) != expected.size:
                yield self._wrong_size(name, sizes.get(name), expected)
            elif contents and self._crc(name) != expected.crc:
                yield self._damaged(name)

    def _crc(self, name: str) -> int:
        with self._errors(name):
            files, root = self._open()
            crc = 0
            with files.open(f"{root}/{name}", "rb") as file:
                while data := file.read(_READ):
                    crc = zlib.crc32(data, crc)
            return crc

    def _wrong_size(self, name: str, size: int | None, expected: FileSum) -> str:
        if size is None:
            return f"{self.url}/{name} is missing"
        return f"{self.url}/{name} has {size:,} bytes, but {expected.size:,} were written"

    def _damaged(self, name: str) -> str:
        return f"{self.url}/{name} is damaged: its checksum differs from that of what was written"
