"""Files that a user names for the output of a verb: a file that the verb did not write is not overwritten.

A written file says so in a line of its own, with a hash of its other lines: `# written by solo fit --config, sha256
0a1b2c3d4e5f`. The same option may overwrite it, unless it has been edited since. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.files import unwritable, write_whole

_ENDS = 4096  # bytes at either end of a file that are searched for the line
_COMMENTS = {".html": ("<!-- ", " -->"), ".htm": ("<!-- ", " -->"), ".hlo": ("// ", ""), ".tex": ("% ", "")}


def add_force(parser: argparse.ArgumentParser) -> None:
    """Declares `--force`, which every verb with an output has."""
    parser.add_argument(
        "--force", action="store_true", help="overwrite existing files, even if this command did not write them"
    )


def output(arguments: argparse.Namespace, option: str) -> Output | None:
    """Returns the file that an option names, or None if it is not given.

    To be called before the verb's work, which may take hours.

    Raises:
        FileExistsError, ValueError: it must not be written; see `Output.check` and `refuse_override`.
    """
    path = getattr(arguments, option.lstrip("-").replace("-", "_"))
    if path is None:
        return None
    refuse_override(option, path)
    found = Output(Path(path), f"solo {arguments.verb_name} {option}", arguments.force)
    found.check()
    return found


def refuse_override(option: str, path: str | Path) -> None:
    """Raises ValueError if the name of an output is an override, such as `stages.0.steps=50`, and no such file."""
    first, *_ = str(path).split("/")
    if "=" in first and not Path(path).exists():
        raise ValueError(
            f"{option} {path}: is this an override? {option} takes the name of what it writes, so put that between"
            f" them; for a name with '=', give its whole path: {Path(path).absolute()}"
        )


@dataclass(frozen=True)
class Output:
    """A file to write.

    command   what writes it, such as `solo fit --json`
    force     whether an existing file is overwritten, whoever wrote it
    """

    path: Path
    command: str
    force: bool = False

    @property
    def mark(self) -> str:
        """The words by which a file is recognised as written by the command."""
        return f"written by {self.command}"

    def check(self) -> None:
        """Returns if the file may be written.

        Raises:
            FileExistsError: it exists, and the command did not write it, or it was edited since.
            ValueError: it cannot be written.
        """
        if self._is_stream():
            return
        if reason := unwritable(self.path):
            raise ValueError(f"{self.command.split()[-1]} {self.path}: cannot be written: {reason}")
        if self.force or not self.path.exists():
            return
        content = self.path.read_bytes()
        if not content:
            return
        ends = content if len(content) <= 2 * _ENDS else content[:_ENDS] + b"\n" + content[-_ENDS:]
        pattern = rb"\b" + re.escape(self.mark).encode() + rb"(?:, sha256 ([0-9a-f]{12}))?"
        found = re.search(pattern, ends)
        if found is None:
            raise FileExistsError(
                f"{self.path} exists, and {self.command} did not write it; choose another name, or overwrite it with"
                " --force"
            )
        if found[1] and found[1].decode() != _digest(content, found[0]):
            raise FileExistsError(
                f"{self.path} was edited after {self.command} wrote it; choose another name, or overwrite it with"
                " --force"
            )

    def write_text(self, text: str, last: bool = False) -> None:
        """Writes text, with the mark as a comment in its first line (its second, after `#!` or a doctype) or its last.

        Raises:
            FileExistsError, ValueError: it must not be written; see `check`.
        """
        before, after = _COMMENTS.get(self.path.suffix, ("# ", ""))
        lines = text.splitlines(keepends=True)
        if last and lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        place = len(lines) if last else int(bool(lines) and lines[0].startswith(("#!", "<!")))
        self._write_signed("".join([*lines[:place], f"{before}{self.mark}{after}\n", *lines[place:]]))

    def write_json(self, value: Mapping[str, Any]) -> None:
        """Writes a JSON object, with the mark as the value of `file`.

        Raises:
            FileExistsError, ValueError: it must not be written; see `check`.
        """
        self._write_signed(json.dumps({"file": self.mark, **value}, indent=1) + "\n")

    def write_unmarked(self, text: str) -> None:
        """Writes text that has no place for a mark. An existing file is overwritten only with `force`.

        Raises:
            FileExistsError, ValueError: it must not be written; see `check`.
        """
        self._write(text.encode())

    def write_bytes(self, content: bytes) -> None:
        """Writes bytes that contain the mark near either end, such as the metadata of an image.

        Raises:
            FileExistsError, ValueError: it must not be written; see `check`.
        """
        self._write(content)

    def _write_signed(self, text: str) -> None:
        content = text.encode()
        mark = self.mark.encode()
        self._write(content.replace(mark, mark + f", sha256 {_digest(content, mark)}".encode(), 1))

    def _write(self, content: bytes) -> None:
        self.check()  # again: it may have appeared while the verb worked
        if self._is_stream():
            with self.path.open("wb") as file:
                file.write(content)
        else:
            write_whole(self.path.resolve(), content)  # a link stays a link

    def _is_stream(self) -> bool:
        """Whether it is a pipe or a device, such as /dev/stdout."""
        return self.path.exists() and not self.path.is_file() and not self.path.is_dir()


def _digest(content: bytes, mark: bytes) -> str:
    """Returns a hash of all lines but the one with the mark."""
    lines = content.splitlines(keepends=True)
    place = next(place for place, line in enumerate(lines) if mark in line)
    return hashlib.sha256(b"".join(lines[:place] + lines[place + 1 :])).hexdigest()[:12]
