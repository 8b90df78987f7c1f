"""A file of predictions: JSON lines that are appended while a model answers, so that a later call can continue.

Its first line, of kind `settings`, describes the model and how it was asked. Every other line, of kind `prediction`, is
one answer. While answers are missing, the lines are in the order of answering, and scores that need all answers (those
of captions) are null. When it is complete, the file is rewritten in the benchmark's order, with all scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from solo.config import ConfigError
from solo.files import JsonLinesFile, json_line, read_json_lines, write_whole

Images = Literal["shown", "removed", "blanked"]

_NAMES = {
    "weights": "other weights",
    "config": "another architecture, image geometry, template or tokenizer",
    "max_new_tokens": "another max_new_tokens",
    "images": "other images (shown, removed or blanked)",
    "task": "another task",
    "convention": "another convention",
}


@dataclass(frozen=True)
class Settings:
    """The settings that determine the answers of a file.

    task            name of the benchmark
    convention      whose prompt and scoring it follows
    images          shown, removed, or blanked
    max_new_tokens  maximum length of an answer
    weights         see `weights_digest`
    config          see `config_digest`
    model           how the user named the model; only informative
    """

    task: str
    convention: str
    images: Images
    max_new_tokens: int
    weights: str
    config: str
    model: str

    def differences(self, line: Mapping[str, Any]) -> list[str]:
        """Returns in words what differs in the settings of a file."""
        mine = asdict(self)
        return [
            f"{words} ({line.get(key)!r}, now {mine[key]!r})"
            for key, words in _NAMES.items()
            if line.get(key) != mine[key]
        ]


class Predictions:
    """The predictions of one model on one benchmark, in a file.

    Args:
        path: the file; it is created with the first answer.
        settings: settings of this call.
        force: write over predictions of other settings.

    Raises:
        ConfigError: the file holds predictions of other settings, or is not a file of predictions.
    """

    def __init__(self, path: Path, settings: Settings, force: bool = False):
        self._path, self._settings = path, settings
        stored, lines = read_predictions(path)
        if stored is None and not force and path.exists() and path.read_bytes().strip():
            raise ConfigError(f"{path} exists and is not a file of predictions; --force writes over it")
        others = [] if stored is None else settings.differences(stored)
        if stored is not None and others and not force:
            raise ConfigError(
                f"{path} holds predictions of {stored.get('model')}, made with {'; '.join(others)}; choose another"
                " folder (--output), or --force to write over them"
            )
        self._fresh = stored is None or bool(others)
        self.known = {} if self._fresh else {line["key"]: line for line in lines}

    def check(self, digests: Mapping[str, str], force: bool) -> None:
        """Compares the prompts of known answers with those of this call.

        Args:
            digests: digests of this call's prompts, by key.
            force: discard answers to other prompts.

        Raises:
            ConfigError: an answer is to another prompt.
        """
        stored = {key: line["prompt_digest"] for key, line in self.known.items()}
        changed = [key for key, digest in stored.items() if digests.get(key, digest) != digest]
        if changed and not force:
            raise ConfigError(
                f"{self._path}: {len(changed):,} answers are to other prompts than the benchmark's files, or another"
                f" --context, give now, the first to {changed[0]!r}; choose another folder (--output), or --force to"
                " answer these again"
            )
        for key in changed:
            del self.known[key]

    def open(self) -> JsonLinesFile:
        """Returns the file to append to. Writes the first line if it is missing."""
        if self._fresh:
            write_whole(self._path, json_line(self._first_line()))
            self._fresh = False
        return JsonLinesFile(self._path)

    def finish(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Writes the file again: these lines in this order, then known answers to other questions.

        Returns:
            the number of answers to other questions.
        """
        complete = {line["key"]: line for line in lines}
        kept = [line for key, line in self.known.items() if key not in complete]
        content = "".join(map(json_line, [self._first_line(), *complete.values(), *kept])).encode()
        if not self._path.exists() or self._path.read_bytes() != content:
            write_whole(self._path, content)
        return len(kept)

    def _first_line(self) -> dict[str, Any]:
        return {"kind": "settings", **asdict(self._settings)}


def read_predictions(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Returns the settings of a file, or None if it has none, and its predictions. Damaged lines are skipped.

    If a key occurs twice, the last line is used.
    """
    lines, _ = read_json_lines(path)
    settings = next((line for line in lines if line.get("kind") == "settings"), None)
    found = {
        line["key"]: line
        for line in lines
        if line.get("kind") == "prediction"
        and isinstance(line.get("key"), str)
        and isinstance(line.get("answer"), str)
        and isinstance(line.get("prompt_digest"), str)
    }
    return settings, list(found.values())


def prediction_files(place: Path) -> Sequence[Path]:
    """Returns a file of predictions, or those of a folder."""
    return sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
