"""Which checkpoint of a run is the newest whole one. Training, inference and launches ask here.

A checkpoint may be damaged after it was committed: a machine stops before its disk has stored everything, a copy ends
halfway, somebody removes a file. What can be seen without reading the arrays is checked: the commit markers, the
metadata, and the size of every file, which process 0 records once a save is complete. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from solo.files import COMMIT_MARKER, complete_checkpoints, write_whole

METADATA = "_CHECKPOINT_METADATA"
ITEM_METADATA = "_METADATA"
SIZES = "file_sizes.json"
# Appended to the name of a checkpoint that cannot be read. Its files are kept.
DAMAGED = ".damaged"


def position_of(checkpoint: Path) -> dict[str, Any]:
    """Returns the JSON of a checkpoint's `Progress`. Raises ValueError or OSError if its metadata is damaged."""
    found = json.loads((checkpoint / METADATA).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("custom_metadata"), dict):
        raise ValueError(f"{METADATA} lacks the position of the run")
    return found["custom_metadata"]


def fault(checkpoint: Path) -> str | None:
    """Returns what is wrong with a checkpoint, as far as its arrays need not be read; None if nothing is."""
    try:
        if not (checkpoint / COMMIT_MARKER).is_file():
            return f"it was not written to its end: {COMMIT_MARKER} is missing"
        position_of(checkpoint)
        items = json.loads((checkpoint / METADATA).read_text(encoding="utf-8")).get("item_handlers") or {}
    except (OSError, ValueError) as error:
        return f"{METADATA} cannot be read: {error}"
    for item in items:
        if not (checkpoint / item / COMMIT_MARKER).is_file():
            return f"{item}/{COMMIT_MARKER} is missing"
        try:
            json.loads((checkpoint / item / ITEM_METADATA).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{item}/{ITEM_METADATA} cannot be read: {error}"
    try:
        sizes = json.loads((checkpoint / SIZES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # the run was killed right after the save
    except (OSError, ValueError) as error:
        return f"{SIZES} cannot be read: {error}"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def record_sizes(checkpoint: Path) -> None:
    """Records the size of every file of a complete checkpoint. Without it, `fault` notices less; nothing is raised."""
    with contextlib.suppress(OSError):
        files = [path for path in sorted(checkpoint.rglob("*")) if path.name != SIZES and path.is_file()]
        sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
        if (checkpoint / COMMIT_MARKER).is_file():
            write_whole(checkpoint / SIZES, json.dumps(sizes) + "\n")


def newest_whole(folder: Path, below: int | None = None) -> tuple[Path | None, list[str]]:
    """Finds the newest checkpoint without a `fault` among those in a run's `checkpoints`.

    Args:
        folder: `checkpoints` of a run.
        below: only checkpoints of earlier steps than this.

    Returns:
        Its folder or None, and a message for every newer one that is passed over.
    """
    passed: list[str] = []
    for checkpoint in reversed(complete_checkpoints(folder)):
        if below is not None and int(checkpoint.name) >= below:
            continue
        found = fault(checkpoint)
        if found is None:
            return checkpoint, passed
        passed.append(f"checkpoint {checkpoint} is damaged and passed over: {found}")
    return None, passed


def set_aside(checkpoint: Path) -> Path | None:
    """Renames a damaged checkpoint, so that its step can be saved again; returns its new name, or None on failure."""
    for number in range(100):
        aside = checkpoint.with_name(f"{checkpoint.name}{DAMAGED}{number or ''}")
        if not aside.exists():
            try:
                return checkpoint.rename(aside)
            except OSError:
                return None
    return None
