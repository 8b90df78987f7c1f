"""Files of a part: written under temporary hidden names, and renamed once they are complete."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar

from solo.data.readers import Unreadable
from solo.data.record import Place
from solo.data.store.checksums import FileSum, fault, file_sum
from solo.files import json_line, write_whole

FORMAT = 5  # format version of parts; increase it to have older parts made again
SHOWN = 3  # quarantined examples that a manifest includes, for messages
PARTIAL = ".partial"

_Manifest = TypeVar("_Manifest")


class PartFiles:
    """The files `<folder>/<stem>.<end>` of one layer of a part. They appear when `keep` is called."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self.stem = folder, stem
        self._partial: dict[str, Path] = {}
        # Several processes may make the same part, so each writes its own files.
        self._mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def path(self, end: str) -> Path:
        """Returns the final path of a file."""
        return self.folder / f"{self.stem}.{end}"

    def new(self, end: str) -> Path:
        """Returns the temporary path of a file, for writing."""
        self._partial[end] = self.folder / f".{self.stem}.{end}.{self._mark}{PARTIAL}"
        return self._partial[end]

    def keep(self) -> dict[str, FileSum]:
        """Renames the files to their final names. Returns the size and checksum of each, by suffix."""
        sums = {end: file_sum(path) for end, path in sorted(self._partial.items())}
        for end in sums:
            self._partial.pop(end).replace(self.path(end))
        return sums

    def discard(self) -> None:
        """Deletes the files that were not kept."""
        for path in self._partial.values():
            path.unlink(missing_ok=True)
        self._partial.clear()


class Quarantine:
    """Writes one line per quarantined example: {"id", "reason", "file", "line", "example"}.

    `example` is the example's number in the part, from 0. Without quarantined examples, no file is written.

    Attributes:
        count: number of examples so far.
        shown: descriptions of the first few.
    """

    def __init__(self, files: PartFiles) -> None:
        self._files = files
        self._file: IO[str] | None = None
        self.count = 0
        self.shown: list[str] = []

    def add(self, found: Unreadable, example: int) -> None:
        """Writes a line."""
        if self._file is None:
            self._file = self._files.new("quarantine.jsonl").open("w", encoding="utf-8")
        place = found.place or Place("")
        line = {"id": found.id, "reason": found.reason, "file": place.file or None, "line": place.line}
        self._file.write(json_line(line | {"example": example}))
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append(f"{found.id}: {found.reason}")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def reason_kind(reason: str) -> str:
    """Returns a reason without its variable parts: names, quoted text and numbers."""
    kind = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*", "...", reason)
    return re.sub(r"\d[\d,.]*", "0", kind)


class FilteredFile:
    """Writes one line, as in `Quarantine`, per filtered record; at most `most` lines per setting.

    Attributes:
        counts: number of filtered records by setting.
    """

    def __init__(self, files: PartFiles, most: int = 100) -> None:
        self._files, self._most = files, most
        self._file: IO[str] | None = None
        self.counts: dict[str, int] = {}

    def add(self, name: str, place: Place | None, key: str, reason: str) -> None:
        """Counts a record and writes its line."""
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] > self._most:
            return
        if self._file is None:
            self._file = self._files.new("filtered.jsonl").open("w", encoding="utf-8")
        file, line = (None, None) if place is None else (place.file or None, place.line)
        self._file.write(json_line({"id": name, "filter": key, "reason": reason, "file": file, "line": line}))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def place_text(place: Place | None) -> str:
    """Returns `file:line`, or as much of it as is known."""
    if place is None:
        return ""
    return place.file if place.line is None else f"{place.file}:{place.line}"


def read_manifest(kind: type[_Manifest], path: Path) -> _Manifest | None:
    """Returns the manifest in a file; None if it is missing or has another format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            return None
        found["files"] = {end: FileSum(*value) for end, value in found["files"].items()}
        return kind(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def are_whole(folder: Path, stem: str, files: Mapping[str, FileSum]) -> bool:
    """Returns whether the files that a manifest names exist with the recorded sizes."""
    return all(fault(folder / f"{stem}.{end}", found) is None for end, found in files.items())


def write_manifest(path: Path, manifest: Any) -> None:
    """Atomically writes a dataclass as a manifest, which `read_manifest` reads."""
    values = {field.name: getattr(manifest, field.name) for field in fields(manifest)}  # `asdict` copies every stamp
    write_whole(path, json.dumps({"format": FORMAT, **values}) + "\n")
