"""Files that appear whole or not at all. Standard library only: every part of the package may write with it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str) -> None:
    """Write a file as UTF-8, and its folder where there is none, whoever else writes it at the moment.

    Who reads it finds what was there before or all of the content, also where this process is killed or fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is this call's own, and hidden, so that no pattern of files takes it for one of them.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
