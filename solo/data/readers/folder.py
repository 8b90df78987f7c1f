"""Image classification folders, `<path>/<class>/<image>`: ImageNet as SOLO's first stage reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from solo.config import ConfigError
from solo.data.readers.registry import Examples, Unreadable, reader
from solo.data.record import Image, Record, Turn


@reader("folder")
def folder(
    path: str,
    form: Literal["caption", "question"] = "caption",
    template: str = "{name}",
    question: str = "What is in the image?",
) -> Examples:
    """Yields every file in every class folder, both sorted. Hidden files are skipped.

    The class's name, with `_` and `-` as spaces, replaces `{name}` in `template`. A file outside the class
    folders has no class and is unreadable.
    """
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(f"reader 'folder': {path} is not a folder")
    if "{name}" not in template:
        raise ConfigError(f"reader 'folder': template {template!r} lacks {{name}}")
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield Unreadable(entry.name, "it is in no class folder")
            continue
        text = template.replace("{name}", entry.name.replace("_", " ").replace("-", " "))
        for file in sorted(entry.rglob("*")):
            if file.is_dir() or file.name.startswith("."):
                continue
            name = str(file.relative_to(root))
            try:
                image = Image(file.read_bytes())
            except OSError as error:
                yield Unreadable(name, f"cannot read the file: {error.strerror}")
                continue
            if form == "caption":
                yield Record(name, (Turn("text", (image, text)),))
            else:
                yield Record(name, (Turn("user", (image, question)), Turn("assistant", (text,))))
