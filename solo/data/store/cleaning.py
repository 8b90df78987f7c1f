"""Removes the files of earlier preparations from a source's folder. It recognizes them by their names."""

from __future__ import annotations

import re
from pathlib import Path

from solo.data.store.description import Description

_PART_FILE = re.compile(r"[0-9a-f]{16}\.[\w.]+")
# Names that `PartFiles`, `assemble` and `write_whole` use until a file is complete. They contain the process id.
_UNFINISHED = re.compile(r"\..+\.\d+-[0-9a-f]{8}(\.partial)?")
_INDEX = re.compile(r"[0-9a-f]{16}")
_LEGACY = re.compile(r"shard-\d{5,}\.array_record|index\.npz")  # written by earlier versions


def remove_partial(source: Path) -> None:
    """Removes unfinished files of a killed process. No other process may be preparing the source."""
    for folder in (source, source / "parts", source / "index"):
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            if _UNFINISHED.fullmatch(path.name):
                _remove(path)


def remove_unused(source: Path, description: Description) -> None:
    """Removes part files and indexes that a prepared source no longer uses. No run may be reading the source."""
    used = {file for part in description.parts for file in part.files}
    used |= {f"{part.name}.{end}" for part in description.parts for end in ("json", f"{description.tokens}.json")}
    for path in (source / "parts").iterdir():
        if _PART_FILE.fullmatch(path.name) and path.name not in used:
            path.unlink()
    for path in (source / "index").iterdir():
        if _INDEX.fullmatch(path.name) and path.name != description.content:
            _remove(path)
    for path in source.iterdir():
        if _LEGACY.fullmatch(path.name):
            path.unlink()


def _remove(path: Path) -> None:
    """Removes a file, or a folder that contains only files."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
