"""The plan of a launch, which is printed or executed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
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
            raise ValueError(f"{self.path}: the text must end with a newline and not contain {_MARK}")


@dataclass(frozen=True)
class Command:
    """A command to run from the repository's root.

    why       a short reason
    may_fail  whether the next command runs even if this one fails
    """

    argv: tuple[str, ...]
    why: str = ""
    may_fail: bool = False

    def __str__(self) -> str:
        return shlex.join(self.argv)


def tail(files: str, lines: int, absent: str, why: str = "") -> Command:
    """Returns the command that shows the end of files, or prints a message if there are none yet.

    Args:
        files: a path or a glob, quoted for the shell.
        lines: number of lines of each file.
        absent: the message if there is no such file.
        why: see `Command`.
    """
    absent = shlex.quote(f"launch: {absent}")
    return Command(
        ("sh", "-c", f'set -- {files}; if [ -e "$1" ]; then tail -n {lines} "$@"; else echo {absent}; fi'), why
    )


@dataclass(frozen=True)
class Watch:
    """The commands that `solo launch watch` uses for a run whose machines do not return by themselves.

    state           prints the state of the machines
    ended           prints the exit status of a run that has ended, and fails until then
    steps           prints the paths of complete checkpoints
    delete, create  release the machines, and request them again
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
    """The actions of a launch.

    run       name of the launch: a DNS label
    runs      folders of the runs; they distinguish this launch from another one of the same name
    taken     prints something if an earlier launch of this name is still queued or running
    files     files to write first
    commands  commands to run afterwards, in order, until one fails
    status, logs, stop  commands of the later verbs
    watch     set if the run must be watched; the last command then starts the watch
    notes     comments for the user
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
    runs: tuple[str, ...] = ()
    taken: Command | None = None

    def all_files(self) -> Iterator[File]:
        """Yields the files, and the record that the later verbs read."""
        yield from self.files
        record: dict[str, Any] = {"run": self.run, "target": self.target, "runs": self.runs}
        record |= {verb: [_written(each) for each in getattr(self, verb)] for verb in _VERBS}
        watch = self.watch and {
            name: _written(part) if isinstance(part, Command) else part for name, part in vars(self.watch).items()
        }
        yield File(str(FOLDER / self.run / "plan.json"), json.dumps({**record, "watch": watch}, indent=1) + "\n")

    def script(self) -> str:
        """Returns the plan as a shell script that does the same as `execute`."""
        parts = ["#!/bin/bash", "set -e", *(f"# {note}" for note in self.notes)]
        if self.taken:
            parts.append(
                f'if [ -n "$({self.taken} 2> /dev/null)" ]; then\n'
                f"  echo {shlex.quote(f'launch: {self._still()}')} >&2\n  exit 2\nfi"
            )
        for file in self.all_files():
            path = shlex.quote(file.path)
            parts.append(f"mkdir -p {shlex.quote(str(Path(file.path).parent))}")
            parts.append(f"cat > {path} <<'{_MARK}'\n{file.text}{_MARK}")
        return "\n".join([*parts, *map(_line, self.commands)]) + "\n"

    def execute(self, run: Callable[[Command], int] | None = None) -> int:
        """Write the files and run the commands. Returns the status of the command that failed, or 0.

        Raises:
            ConfigError: an earlier launch of this name is still queued or running, or a program is not installed.
        """
        if self.taken and answers(self.taken):
            raise ConfigError(self._still())
        for file in self.all_files():
            path = Path(file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
        return run_all(self.commands, run)

    def check_name(self) -> None:
        """Raises ConfigError if the files of this launch would replace those of a launch of other runs."""
        path = FOLDER / self.run / "plan.json"
        try:
            earlier = json.loads(path.read_text()).get("runs")
        except (OSError, ValueError):
            return
        if earlier and set(earlier).isdisjoint(self.runs):
            raise ConfigError(
                f"{path.parent}/ holds the launch of {', '.join(earlier)}; choose another name for this one with --as"
            )

    def _still(self) -> str:
        return (
            f"the launch {self.run} is queued, running, or has not been removed, and would read the new files; see"
            f" `solo launch status {self.run}`, end it with `solo launch stop {self.run} --yes`, or choose another name"
            " with --as"
        )


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns a file of `templates/` with each @NAME@ replaced. Replacements are not applied to inserted values."""
    text = resources.files("solo.launch").joinpath(f"templates/{template}").read_text()
    return re.sub(rf"@({'|'.join(values)})@", lambda match: values[match[1]], text)


def show(commands: Sequence[Command]) -> str:
    """Returns commands as lines of a shell script."""
    return "".join(_line(command) + "\n" for command in commands)


def run_all(commands: Sequence[Command], run: Callable[[Command], int] | None = None) -> int:
    """Run commands in order until one fails that must not fail. Returns its status, or 0."""
    for command in commands:
        status = (run or _run)(command)
        if status and not command.may_fail:
            return status
    return 0


def answers(command: Command) -> bool:
    """Returns whether a command prints anything. Raises ConfigError if its program is not installed."""
    try:
        done = subprocess.run(command.argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ConfigError(f"{command.argv[0]} is not installed; it is needed to run: {command}") from None
    return bool(done.stdout.strip())


def load_record(run: str) -> Mapping[str, Any]:
    """Returns the record of a launch: `status`, `logs` and `stop` as Commands, `watch` as a Watch or None.

    Raises:
        ConfigError: no such launch was made from this folder.
    """
    path = FOLDER / run / "plan.json"
    try:
        record = json.loads(path.read_text())
        commands = {verb: tuple(_read(each) for each in record[verb]) for verb in _VERBS}
        watch = record["watch"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; launch {run} again to write it") from None
    except OSError:
        known = sorted(found.parent.name for found in FOLDER.glob("*/plan.json"))
        raise ConfigError(f"no launch {run!r} in {FOLDER}/; there are: {', '.join(known) or 'none'}") from None
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
        raise ConfigError(f"{command.argv[0]} is not installed; it is needed to run: {command}") from None
