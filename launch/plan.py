"""The one object that is shown and carried out."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo.config import ConfigError

FOLDER = Path("launches")
_MARK = "END_OF_FILE"
_OR_NOT = " || true"
_VERBS = ("status", "logs", "stop")


@dataclass(frozen=True)
class File:
    """A text file to write. Its text ends with a newline."""

    path: str
    text: str

    def __post_init__(self) -> None:
        if not self.text.endswith("\n") or _MARK in self.text:
            raise ValueError(f"{self.path}: a file ends with a newline and does not hold {_MARK}")


@dataclass(frozen=True)
class Command:
    """A command to run, from the repository's root.

    why       in a few words
    may_fail  whether the next one is run all the same
    """

    argv: tuple[str, ...]
    why: str = ""
    may_fail: bool = False

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True)
class Watch:
    """How `launch watch` follows a run whose machines do not come back by themselves.

    state    prints the state of the machines
    ended    prints the exit status of a run that is over, and fails before
    steps    prints the paths of the checkpoints that were written whole
    delete, create   take the machines away, and ask for them anew
    """

    state: Command
    ended: Command
    steps: Command
    delete: Command
    create: Command
    max_restarts: int
    max_idle_restarts: int


@dataclass(frozen=True)
class Plan:
    """What a launch does.

    run       its name among launches: a DNS label
    files     to write first
    commands  to run then, in order; the first that fails ends it
    status, logs, stop   commands of the later verbs
    watch     where somebody must watch: the last command is that watch then
    notes     for the reader, not carried out
    """

    run: str
    target: str
    files: tuple[File, ...]
    commands: tuple[Command, ...]
    status: tuple[Command, ...]
    logs: tuple[Command, ...]
    stop: tuple[Command, ...]
    watch: Watch | None = None
    notes: tuple[str, ...] = field(default=())

    def all_files(self) -> Iterator[File]:
        """The files, and the record that the later verbs read."""
        yield from self.files
        record: dict[str, Any] = {"run": self.run, "target": self.target}
        record |= {verb: [_written(each) for each in getattr(self, verb)] for verb in _VERBS}
        watch = self.watch and {
            name: _written(part) if isinstance(part, Command) else part for name, part in vars(self.watch).items()
        }
        yield File(str(FOLDER / self.run / "plan.json"), json.dumps({**record, "watch": watch}, indent=1) + "\n")

    def script(self) -> str:
        """All of it as a shell script, which does what `execute` does."""
        parts = ["#!/bin/bash", "set -e", *(f"# {note}" for note in self.notes)]
        for file in self.all_files():
            path = shlex.quote(file.path)
            parts.append(f"mkdir -p {shlex.quote(str(Path(file.path).parent))}")
            parts.append(f"cat > {path} <<'{_MARK}'\n{file.text}{_MARK}")
        return "\n".join([*parts, *map(_line, self.commands)]) + "\n"

    def execute(self, run: Callable[[Command], int] | None = None) -> int:
        """Write the files and run the commands. Returns the status of the one that failed, or 0."""
        for file in self.all_files():
            path = Path(file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
        return run_all(self.commands, run)


def show(commands: Sequence[Command]) -> str:
    """Commands as lines of a shell script."""
    return "".join(_line(command) + "\n" for command in commands)


def run_all(commands: Sequence[Command], run: Callable[[Command], int] | None = None) -> int:
    """Run commands in order until one fails that may not. Returns its status, or 0."""
    for command in commands:
        status = (run or _run)(command)
        if status and not command.may_fail:
            return status
    return 0


def load_record(run: str) -> Mapping[str, Any]:
    """What a launch left for the later verbs: `status`, `logs`, `stop` as Commands, `watch` as a Watch or None.

    Raises:
        ConfigError: there was no such launch from this folder.
    """
    path = FOLDER / run / "plan.json"
    try:
        record = json.loads(path.read_text())
    except OSError:
        known = sorted(found.parent.name for found in FOLDER.glob("*/plan.json"))
        raise ConfigError(f"no launch {run!r} in {FOLDER}/; there are: {', '.join(known) or 'none'}") from None
    commands = {verb: tuple(_read(each) for each in record[verb]) for verb in _VERBS}
    watch = record["watch"]
    if watch is not None:
        settings: dict[str, Any] = {
            name: _read(part) if isinstance(part, str) else part for name, part in watch.items()
        }
        watch = Watch(**settings)
    return {**record, **commands, "watch": watch}


def _written(command: Command) -> str:
    return f"{command}{_OR_NOT if command.may_fail else ''}"


def _read(line: str) -> Command:
    return Command(tuple(shlex.split(line.removesuffix(_OR_NOT))), may_fail=line.endswith(_OR_NOT))


def _line(command: Command) -> str:
    return (f"# {command.why}\n" if command.why else "") + _written(command)


def _run(command: Command) -> int:
    try:
        return subprocess.run(command.argv).returncode
    except FileNotFoundError:
        raise ConfigError(f"there is no {command.argv[0]} here, which is needed to run: {command}") from None
