"""A folder of a bucket: `gs://bucket/folder`, `s3://bucket/folder`, or another URL that fsspec can open."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from solo.config import Config, ConfigError
from solo.data.readers.paths import is_remote
from solo.data.store.checksums import FileSum, fault

_PATIENCE_SECONDS = 20.0  # the libraries retry for a minute if there is no network
_TRIES = 3  # on top of those of the libraries
_THREADS = 32  # they wait for the network
_READ = 1 << 20
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of this machine
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_LOGIN = {
    "gcs": "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "log in with `aws configure`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}

_Found = TypeVar("_Found")


def local_folder(config: Config) -> Path:
    """Returns `data.folder`, or the folder on this machine that mirrors it if it is a URL (`Mirror`)."""
    url = config.data.folder
    if not is_remote(url):
        return Path(url)
    cache = config.data.cache or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "solo")
    name = hashlib.sha256(Bucket.of(config).url.encode()).hexdigest()[:16]
    return Path(cache).expanduser().absolute() / f"prepared-{name}"


class BucketError(ConfigError, OSError):
    """A bucket cannot be reached, or a file in it is missing or damaged; the message says which."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Files below a URL, by their names relative to it. Pickles as the URL. Thread-safe.

    All methods raise `BucketError`.
    """

    url: str

    @classmethod
    def of(cls, config: Config) -> Bucket:
        """Returns the bucket of a remote `data.folder`."""
        return cls(config.data.folder.rstrip("/"))

    def connect(self) -> None:
        """Checks within seconds that the bucket can be listed."""
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()

        def probe() -> None:
            try:
                self.sizes("tokenizer")
                outcome.put(None)
            except BaseException as error:
                outcome.put(error)

        threading.Thread(target=probe, daemon=True).start()
        try:
            error = outcome.get(timeout=_PATIENCE_SECONDS)
        except Empty:
            raise BucketError(
                f"{self.url} does not answer within {_PATIENCE_SECONDS:.0f} s: is there a network?"
            ) from None
        if error is not None:
            raise error

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Returns the size in bytes of every file in a folder and the folders below it."""
        with self._errors(folder):
            files, root = self._open()
            # With a slash, since object stores know no folders: `a` is a prefix of `ab/c` too.
            found = files.find(f"{root}/{folder}".rstrip("/") + "/", detail=True)
            return {name.removeprefix(f"{root}/"): int(facts["size"]) for name, facts in found.items()}

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if there is none."""
        with self._errors(name):
            files, root = self._open()
            try:
                return int(files.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is none."""
        with self._errors(name):
            files, root = self._open()
            try:
                found: bytes = files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            return found

    def download(self, name: str, path: Path, expected: FileSum | None = None) -> None:
        """Copies a file to `path`, which should be a temporary name, and checks it."""
        if expected is not None and (size := self.size(name)) != expected.size:
            raise BucketError(self._wrong_size(name, size, expected))
        with self._errors(name):
            files, root = self._open()
            _again(lambda: files.get_file(f"{root}/{name}", str(path)))
        if expected is not None and fault(path, expected, whole=True) is not None:
            raise BucketError(self._damaged(name))

    def upload(self, name: str, path: Path) -> None:
        """Copies a local file into the bucket. Readers see the old file or the complete new one."""
        with self._errors(name):
            files, root = self._open()
            _again(lambda: files.put_file(str(path), f"{root}/{name}"))

    def remove(self, name: str) -> None:
        """Removes a file."""
        with self._errors(name):
            files, root = self._open()
            files.rm_file(f"{root}/{name}")

    def faults(self, folder: str, files: dict[str, FileSum], contents: bool = False) -> Iterator[str]:
        """Describes what is wrong with files in a folder.

        Args:
            folder: that contains them.
            files: their names, sizes and checksums.
            contents: compare the checksums, which reads all of them; otherwise the sizes alone.
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

    def _open(self) -> tuple[Any, str]:
        """Returns fsspec's file system, which is made once a process and thread, and the folder in it."""
        import fsspec

        files, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return files, root.rstrip("/")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turns the errors of all libraries into one that names the file and says what to do."""
        where = f"{self.url}/{name}".rstrip("/")
        extra = _EXTRAS.get(self.url.partition("://")[0].lower(), "")
        try:
            yield
        except ConfigError:
            raise
        except ImportError as error:
            what = f"pip install 'solo-vlm[{extra}]'" if extra else str(error)
            raise BucketError(f"{self.url}: a library is missing: {what}") from None
        except FileNotFoundError as error:
            raise BucketError(f"{where} or its bucket does not exist: {error}") from None
        except Exception as error:  # each store has its own classes
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            text = str(error) or type(error).__name__
            denied = isinstance(error, PermissionError) or "credential" in text.lower() or "anonymous" in text.lower()
            advice = f"; {_LOGIN[extra]}" if denied and extra in _LOGIN else ""
            raise BucketError(f"{where} cannot be reached: {text}{advice}") from error


def side_by_side(work: Callable[[Any], _Found], items: Sequence[Any]) -> list[_Found]:
    """Returns the result for each item. The calls wait for the network at the same time."""
    if not items:
        return []
    with ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
        return list(pool.map(work, items))


def _again(transfer: Callable[[], object]) -> None:
    """Transfers a file, a few times if the network fails."""
    for tries_left in reversed(range(_TRIES)):
        try:
            transfer()
            return
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception as error:  # each store has its own classes
            if not tries_left or (isinstance(error, OSError) and error.errno in _DISK):
                raise
            time.sleep(0.5 * 4 ** (_TRIES - tries_left - 1))
