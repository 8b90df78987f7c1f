"""The tokenizer of a data folder: a configured one with added tokens, or one that is trained on stored records.

<data.folder>/tokenizer/made_from.json   fingerprint; stamps of the configured files, or the parts used for training
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from solo.config import Config, ConfigError
from solo.data.store.access import PATIENCE_SECONDS, TOKENIZER, Report, changing
from solo.data.store.bucket import local_folder
from solo.data.store.checksums import FileSum
from solo.data.store.inputs import Check, changed, stamp
from solo.data.store.part import read_records
from solo.data.store.part_files import FORMAT
from solo.data.store.publishing import publish_tokenizer
from solo.data.store.safety import replace_files
from solo.data.store.work import digest
from solo.data.text import Tokenizer, open_tokenizer, train_tokenizer
from solo.data.vocabulary import check_tokens, configured_tokenizer
from solo.files import write_whole

RECORD = "made_from.json"
_SUFFIXES = (".json", ".model", ".txt", ".jinja")  # not the weights of a repository


class TrainingPart(NamedTuple):
    """A part that may train the tokenizer: its fingerprint, and the size and checksum of its records, if it has any.

    The fingerprint alone is not enough: a record is left out if its image is missing, and the fingerprint does not
    show that.
    """

    name: str
    records: FileSum | None

    @property
    def key(self) -> str:
        """Key that identifies the records."""
        return self.name if self.records is None else f"{self.name}-{self.records.crc:08x}"


Parts = Mapping[str, Sequence[TrainingPart]]  # by source


def tokenizer_folder(config: Config) -> Path:
    """Returns the folder of the prepared tokenizer."""
    return local_folder(config) / "tokenizer"


def training_sources(config: Config) -> tuple[str, ...]:
    """Returns the sources whose text trains the tokenizer; empty if the tokenizer is configured."""
    if config.data.tokenizer.path is not None:
        return ()
    return config.data.tokenizer.train_on or tuple(config.data.sources)


def open_made(config: Config) -> Tokenizer | None:
    """Returns the prepared tokenizer; None if it is missing or was made from other settings."""
    try:
        tokenizer = open_tokenizer(tokenizer_folder(config))
    except (OSError, ValueError):
        return None
    return tokenizer if _record(config).get("fingerprint") == _fingerprint(config, tokenizer) else None


def replaced(config: Config, check: Check) -> str | None:
    """Returns a description of the first file of the configured tokenizer that has changed; None if none has."""
    return changed(_record(config).get("inputs") or {}, check)


def make_configured(config: Config, report: Report) -> Tokenizer:
    """Prepares the tokenizer of `data.tokenizer.path`.

    Raises:
        ConfigError: it cannot be read or lacks a token; or a run is using the prepared tokenizer, which would change.
    """
    tokenizer, check = configured_tokenizer(config), config.data.input_check
    made = {"inputs": {path: list(stamp(path, check)) for path in _files(str(config.data.tokenizer.path))}}
    _save(config, tokenizer, made, report)
    return tokenizer


def was_trained_on(config: Config, parts: Parts) -> bool:
    """Returns whether training on these parts would give the prepared tokenizer."""
    found = _record(config).get("trained_on")
    if not isinstance(found, dict) or set(found) != set(parts):
        return False
    for name, used in found.items():
        names = [part.key for part in parts[name]]
        if names[: len(used["parts"])] != used["parts"] or (used["all"] and len(names) > len(used["parts"])):
            return False
    return True


def train(config: Config, parts: Parts, report: Report) -> Tokenizer:
    """Trains the tokenizer on the stored records of its sources, and saves it.

    Raises:
        ConfigError: there is too little text, or a token is missing; or a run is using the prepared tokenizer, which
            would change.
    """
    texts = Texts(config, parts)
    try:
        tokenizer = train_tokenizer(iter(texts), config.data.tokenizer)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"data.tokenizer: {error}") from None
    check_tokens(tokenizer, config)
    _save(config, tokenizer, {"trained_on": texts.used()}, report)
    return tokenizer


class Texts:
    """Iterates over stored text, up to `max_characters`, always from the source that has contributed least so far."""

    def __init__(self, config: Config, parts: Parts) -> None:
        # The user chooses the order of `train_on`; the order of the sources in a config file has no meaning.
        order = config.data.tokenizer.train_on or sorted(parts)
        self._config, self._parts = config, {name: parts[name] for name in order}
        self._opened = dict.fromkeys(self._parts, 0)
        self._ended = dict.fromkeys(self._parts, False)

    def __iter__(self) -> Iterator[str]:
        texts = {name: self._records(name) for name in self._parts}
        given = dict.fromkeys(texts, 0)
        left = self._config.data.tokenizer.max_characters
        while given and left > 0:
            name = min(given, key=lambda name: given[name])
            found = next(texts[name], None)
            if found is None:
                self._ended[name] = True
                del given[name]
                continue
            for text in found:
                usable = text[:left]
                given[name] += len(usable)
                left -= len(usable)
                yield usable

    def used(self) -> dict[str, Any]:
        """Returns, for each source, the parts that were read, and whether those are all of its parts."""
        return {
            name: {"parts": [part.key for part in parts[: self._opened[name]]], "all": self._ended[name]}
            for name, parts in self._parts.items()
        }

    def _records(self, name: str) -> Iterator[list[str]]:
        folder = local_folder(self._config) / "sources" / name / "parts"
        for part in self._parts[name]:
            self._opened[name] += 1
            for stored in read_records(folder, part.name) if part.records else ():
                yield [text for turn in stored.record.turns for text in turn.content if isinstance(text, str)]


def _fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    settings = config.data.tokenizer
    if settings.path is not None:
        return digest([FORMAT, settings.path, settings.add_tokens, tokenizer.fingerprint])
    sources = {name: config.data.sources[name].model_dump(mode="json") for name in training_sources(config)}
    return digest([FORMAT, settings.model_dump(mode="json"), sources, tokenizer.fingerprint])


def _record(config: Config) -> dict[str, Any]:
    try:
        found = json.loads((tokenizer_folder(config) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(config: Config, tokenizer: Tokenizer, made: dict[str, Any], report: Report) -> None:
    """Saves the tokenizer. Fails if it would change the prepared tokenizer while a run is using it."""
    kept, folder = open_made(config), tokenizer_folder(config)
    made = {"fingerprint": _fingerprint(config, tokenizer), **made}
    if kept is not None and kept.fingerprint == tokenizer.fingerprint:
        write_whole(folder / RECORD, json.dumps({**made, "files": _record(config).get("files")}) + "\n")
        publish_tokenizer(folder.parent)
        return
    with changing(local_folder(config), TOKENIZER, report, PATIENCE_SECONDS):
        if made.items() <= _record(config).items():  # another host has saved it in the meantime
            return
        replace_files(folder, RECORD, tokenizer.save, made, "the tokenizer")
        publish_tokenizer(folder.parent)


def _files(path: str) -> list[str]:
    """Returns the files that `open_tokenizer` may read: those of a folder, or those next to a file."""
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    found = (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(_SUFFIXES))
    return sorted({file for file in found if os.path.isfile(file)} | ({path} if os.path.isfile(path) else set()))
