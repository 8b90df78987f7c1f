"""Finds the newest intact checkpoint of a run, for training, inference and launches.

A checkpoint may be damaged after it was committed: a machine stops before its disk has stored everything, a copy is
interrupted, or a file is removed. This module checks everything that does not require reading the arrays: the commit
markers, the metadata, and the size of every file, which process 0 records once a save is complete. It only needs the
standard library, except for checkpoints in a bucket.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from solo.files import COMMIT_MARKER, complete_checkpoints, is_remote, write_whole

METADATA = "_CHECKPOINT_METADATA"
ITEM_METADATA = "_METADATA"
SIZES = "file_sizes.json"
# Appended to the name of a checkpoint that cannot be read. Its files are kept.
DAMAGED = ".damaged"


class _UnreadableError(Exception):
    """A file of a checkpoint cannot be read. If the bucket cannot be reached, BucketError is raised instead."""


def position_of(checkpoint: Path) -> dict[str, Any]:
    """Returns the JSON of a checkpoint's `Progress`. Raises ValueError or OSError if its metadata is damaged."""
    try:
        return _position(_json(checkpoint, METADATA))
    except _UnreadableError as error:
        raise ValueError(str(error)) from None


def fault(checkpoint: Path) -> str | None:
    """Returns a fault of a checkpoint that can be found without reading its arrays; None if there is none.

    Raises:
        solo.storage.BucketError: the checkpoint is in a bucket that cannot be reached.
    """
    try:
        found = _sizes(checkpoint)
        if COMMIT_MARKER not in found:
            return f"it is incomplete: {COMMIT_MARKER} is missing"
        metadata = _json(checkpoint, METADATA)
        _position(metadata)
        for item in metadata.get("item_handlers") or {}:
            if f"{item}/{COMMIT_MARKER}" not in found:
                return f"{item}/{COMMIT_MARKER} is missing"
            _json(checkpoint, f"{item}/{ITEM_METADATA}")
        # Without it, the run was killed right after the save.
        sizes: dict[str, int] = _json(checkpoint, SIZES) if SIZES in found else {}
    except _UnreadableError as error:
        return str(error)
    for name, size in sizes.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != size:
            return f"{name} has {found[name]:,} bytes instead of {size:,}"
    return None


def _position(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("custom_metadata"), dict):
        raise _UnreadableError(f"{METADATA} lacks the position of the run")
    return metadata["custom_metadata"]


def _json(checkpoint: Path, name: str) -> Any:
    try:
        if is_remote(checkpoint):
            from solo.storage import Bucket

            content = Bucket(str(checkpoint)).read(name)
            if content is None:
                raise _UnreadableError(f"{name} cannot be read: it is missing")
            return json.loads(content)
        return json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except OSError as error:
        if is_remote(checkpoint):
            raise
        raise _UnreadableError(f"{name} cannot be read: {error}") from None
    except ValueError as error:
        raise _UnreadableError(f"{name} cannot be read: {error}") from None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Returns the size in bytes of every file of a checkpoint."""
    if is_remote(checkpoint):
        from solo.storage import Bucket

        return Bucket(str(checkpoint)).sizes()
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def record_sizes(checkpoint: Path) -> None:
    """Records the size of every file of a complete checkpoint, for `fault`. Errors of the file system are ignored."""
    with contextlib.suppress(OSError):
        sizes = _sizes(checkpoint)
        sizes.pop(SIZES, None)
        if COMMIT_MARKER not in sizes:
            return
        text = json.dumps(sizes) + "\n"
        if is_remote(checkpoint):
            from solo.storage import Bucket

            Bucket(str(checkpoint)).write(SIZES, text.encode())
        else:
            write_whole(checkpoint / SIZES, text)


def newest_whole(folder: Path, below: int | None = None) -> tuple[Path | None, list[str]]:
    """Finds the newest checkpoint without a `fault` among those in a run's `checkpoints`.

    Args:
        folder: `checkpoints` of a run.
        below: only checkpoints of earlier steps than this.

    Returns:
        Its folder or None, and a message for every newer checkpoint that was skipped.
    """
    passed: list[str] = []
    for checkpoint in reversed(complete_checkpoints(folder)):
        if below is not None and int(checkpoint.name) >= below:
            continue
        found = fault(checkpoint)
        if found is None:
            return checkpoint, passed
        passed.append(f"checkpoint {checkpoint} is damaged and was skipped: {found}")
    return None, passed


def set_aside(checkpoint: Path) -> Path | None:
    """Renames a damaged checkpoint, so that its step can be saved again. Returns its new path.

    Returns None if it cannot be renamed, as on some mounts of buckets. It then counts as incomplete.
    """
    for number in range(100):
        aside = checkpoint.with_name(f"{checkpoint.name}{DAMAGED}{number or ''}")
        if not aside.exists():
            try:
                if is_remote(checkpoint):
                    from solo.storage import Bucket

                    Bucket(str(checkpoint.parent)).move_folder(checkpoint.name, aside.name)
                    return aside
                return checkpoint.rename(aside)
            except OSError:
                break
    with contextlib.suppress(OSError):
        (checkpoint / COMMIT_MARKER).unlink(missing_ok=True)
    return None
