"""Files in a bucket: `gs://bucket/folder`, `s3://bucket/folder`, or another URL that fsspec can open."""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from solo.config import ConfigError
from solo.statuses import TransientError

_PATIENCE_SECONDS = 20.0  # the libraries retry for a minute if there is no network
_TRIES = 3  # on top of those of the libraries
_THREADS = 32  # they wait for the network
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of this machine
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_LOGIN = {
    "gcs": "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "log in with `aws configure`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}

_Found = TypeVar("_Found")


class BucketError(ConfigError, OSError):
    """A bucket cannot be reached, or a file in it is missing or damaged; the message says which."""


class BucketDownError(BucketError, TransientError):
    """A bucket does not answer as it should. A restart may help: networks fail for minutes."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Files below a URL, by their names relative to it. Pickles as the URL. Thread-safe.

    All methods raise `BucketError`.
    """

    url: str

    def connect(self) -> None:
        """Checks within seconds that the bucket exists and can be listed."""
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()

        def probe() -> None:
            try:
                self._probe()
                outcome.put(None)
            except BaseException as error:
                outcome.put(error)

        threading.Thread(target=probe, daemon=True).start()
        try:
            error = outcome.get(timeout=_PATIENCE_SECONDS)
        except Empty:
            raise BucketDownError(
                f"{self.url} does not answer within {_PATIENCE_SECONDS:.0f} s: is there a network?"
            ) from None
        if error is not None:
            raise error

    def check_writing(self) -> None:
        """Checks that files can be written and removed again."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.remove(name)

    def _probe(self) -> None:
        with self._errors(""):
            files, root = self._open()
            if not files.find(f"{root}/", maxdepth=1):  # s3fs finds nothing in a bucket that does not exist
                files.ls(root.partition("/")[0])

    def sizes(self, folder: str = "", deep: bool = True) -> dict[str, int]:
        """Returns the size in bytes of every file in a folder and, if `deep`, in the folders below it."""
        with self._errors(folder):
            files, root = self._open()
            depth = {} if deep else {"maxdepth": 1}
            # With a slash, since object stores know no folders: `a` is a prefix of `ab/c` too.
            found = files.find(f"{root}/{folder}".rstrip("/") + "/", detail=True, **depth)
            return {name.removeprefix(f"{root}/"): int(facts["size"]) for name, facts in found.items()}

    def folders(self) -> list[str]:
        """Returns the names of the folders directly below the URL."""
        with self._errors(""):
            files, root = self._open()
            try:
                found = [facts["name"] for facts in files.ls(root, detail=True) if facts["type"] == "directory"]
            except FileNotFoundError:
                return []
            return [name.rstrip("/").rpartition("/")[2] for name in found]

    def folders_with(self, name: str) -> list[str]:
        """Returns those folders directly below the URL that hold a file of this name."""
        folders = self.folders()
        sizes = side_by_side(lambda folder: self.size(f"{folder}/{name}"), folders)
        return [folder for folder, size in zip(folders, sizes, strict=True) if size is not None]

    def size(self, name: str) -> int | None:
        """Returns the size of a file in bytes; None if there is none."""
        with self._errors(name):
            files, root = self._open()
            try:
                return int(files.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def modified(self, name: str) -> float | None:
        """Returns when a file was written, in seconds since 1970 by the clock of the store; None if there is none."""
        with self._errors(name):
            files, root = self._open()
            try:
                facts = files.info(f"{root}/{name}")
            except FileNotFoundError:
                return None
            written = facts.get("mtime") or facts.get("LastModified")
            return None if written is None else float(written.timestamp())

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is none."""
        with self._errors(name):
            files, root = self._open()
            try:
                found: bytes = files.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            return found

    def write(self, name: str, content: bytes, new: bool = False) -> bool:
        """Writes a small file. Returns False if it must be `new` and another process has written it first."""
        with self._errors(name):
            files, root = self._open()
            try:
                files.pipe_file(f"{root}/{name}", content, **({"mode": "create"} if new else {}))
            except FileExistsError:
                return False
            return True

    def download(self, name: str, path: Path) -> None:
        """Copies a file to `path`, which should be a temporary name."""
        with self._errors(name):
            files, root = self._open()
            _again(lambda: files.get_file(f"{root}/{name}", str(path)))

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

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it."""
        with self._errors(name):
            files, root = self._open()
            files.rm(f"{root}/{name}", recursive=True)

    def move_folder(self, name: str, to: str) -> None:
        """Renames a folder. The store copies every file of it, without sending them over the network."""
        with self._errors(name):
            files, root = self._open()
            found = files.find(f"{root}/{name}/")
            side_by_side(lambda path: files.cp_file(path, f"{root}/{to}{path.removeprefix(f'{root}/{name}')}"), found)
            files.rm(f"{root}/{name}", recursive=True)

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
            if not denied:
                raise BucketDownError(f"{where} cannot be reached: {text}") from error
            advice = f"; {_LOGIN[extra]}" if extra in _LOGIN else ""
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
