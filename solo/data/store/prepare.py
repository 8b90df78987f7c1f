"""Prepares data once before training: makes the tokenizer, and shards and an index for every source.

    <data.folder>/tokenizer/                the files of `Tokenizer.save`, and made_from.json
    <data.folder>/sources/<name>/           see `solo.data.store.shards`
    <data.folder>/quarantine.jsonl          one {"source", "id", "reason"} per example that was left out

A part that exists is kept if it was made from the same settings. Each part appears whole or not at all. Settings are
compared, but not the files that they name: remove the folder to prepare changed files again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo.config import Config, ConfigError
from solo.data.images.geometry import too_thin
from solo.data.readers import Examples, Ignored, Unreadable, read
from solo.data.record import Record
from solo.data.store.access import TOKENIZER, changing, preparing, source_content
from solo.data.store.safety import check_folders, check_place, claim, replace_files, writing
from solo.data.store.shards import Description, PreparedSource, SourceWriter
from solo.data.text import Tokenizer, open_tokenizer, train_tokenizer
from solo.data.text.templates import Template, TextRun, make_template
from solo.data.vocabulary import check_tokens, configured_tokenizer
from solo.files import write_whole

_FORMAT = 2  # of prepared data, chat templates included; raise it to make older data again
_REFUSED_SHOWN = 3

Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Opened prepared data."""

    tokenizer: Tokenizer
    sources: dict[str, PreparedSource]

    @property
    def quarantined(self) -> int:
        """Number of examples that were left out, over all sources."""
        return sum(source.description.quarantined for source in self.sources.values())


def prepare(config: Config, report: Report | None = None) -> Prepared:
    """Makes the missing parts of a run's data and opens it. Calls `report` with a line for every part.

    Raises:
        ConfigError: a source or the tokenizer cannot be made; the message names it. Finished parts stay. Also if
            another process prepares the folder, or trains on data that would change, or if a file of the user's is in
            the way.
    """
    report = report or (lambda line: None)
    folder = Path(config.data.folder)
    for name in config.data.sources:
        _check_source(name, config)
    check_folders(config)
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_prepared(config):
            stack.enter_context(preparing(folder, report))
        return _prepare(config, report)


def _is_prepared(config: Config) -> bool:
    try:
        open_prepared(config)
    except ConfigError:
        return False
    return True


def _prepare(config: Config, report: Report) -> Prepared:
    folder = Path(config.data.folder)
    tokenizer = _prepare_tokenizer(config, report)
    make_template(tokenizer, config.sequence)
    for name in config.data.sources:
        _prepare_source(name, config, tokenizer, report)
    prepared = open_prepared(config)
    left_out = "".join(
        (source.folder / "quarantine.jsonl").read_text(encoding="utf-8") for source in prepared.sources.values()
    )
    whole = folder / "quarantine.jsonl"
    # Written only if it changes, because the runs of a sweep get here at the same time.
    if not whole.exists() or whole.read_text(encoding="utf-8") != left_out:
        write_whole(whole, left_out)
    return prepared


def open_prepared(config: Config) -> Prepared:
    """Opens what `prepare` made.

    Raises:
        ConfigError: a part is missing, or was made from other settings.
    """
    tokenizer = _open_tokenizer(config)
    if tokenizer is None:
        raise _unprepared("the tokenizer", config)
    for name in config.data.sources:
        made = Description.read(_source_folder(name, config))
        if made is None or made.fingerprint != _source_fingerprint(name, config, tokenizer):
            raise _unprepared(f"source {name!r}", config)
    return Prepared(tokenizer, {name: PreparedSource(_source_folder(name, config)) for name in config.data.sources})


def _unprepared(what: str, config: Config) -> ConfigError:
    return ConfigError(
        f"{what} is not in {config.data.folder}, or was made from other settings; run: solo prepare CONFIG"
    )


# ------------------------------------------------------------------------------------------- sources


def _source_folder(name: str, config: Config) -> Path:
    return Path(config.data.folder) / "sources" / name


def _source_fingerprint(name: str, config: Config, tokenizer: Tokenizer) -> str:
    source = config.data.sources[name].model_dump(mode="json")
    written = [config.sequence.template, config.sequence.system, config.image.exif]
    return _digest([_FORMAT, source, tokenizer.fingerprint, config.data.verify_images, written])


def _check_source(name: str, config: Config) -> None:
    """Finds faults of the config before any work is done."""
    if not re.fullmatch(r"[\w.-]*\w", name):
        raise ConfigError(f"source {name!r}: its name becomes a folder; use letters, digits, '_', '-' and '.'")
    source = config.data.sources[name]
    try:
        read(source.reader, source.options, source.limit)
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None


def _examples(name: str, config: Config) -> Examples:
    source = config.data.sources[name]
    try:
        yield from read(source.reader, source.options, source.limit)
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None


def _prepare_source(name: str, config: Config, tokenizer: Tokenizer, report: Report) -> None:
    folder, fingerprint = _source_folder(name, config), _source_fingerprint(name, config, tokenizer)
    made = Description.read(folder)
    if made is not None and made.fingerprint == fingerprint:
        report(f"{name}: {made.records:,} records, already prepared{_thin_images(folder, config)}")
        return
    started = time.monotonic()
    with changing(Path(config.data.folder), source_content(name), report), _replacing(folder) as partial:
        claim(partial, f"source {name!r}")
        made = _write_source(name, config, tokenizer, partial, fingerprint)
    report(
        f"{name}: {made.records:,} records, {made.images:,} images, {made.text_tokens:,} text tokens, "
        f"{made.quarantined:,} quarantined ({time.monotonic() - started:.1f} s){_thin_images(folder, config)}"
    )


def _thin_images(folder: Path, config: Config) -> str:
    """Returns a note on images with a side that the geometry rounds down to zero, or an empty string."""
    sizes = PreparedSource(folder).index.image_sizes()
    count = int(too_thin(sizes[:, 0], sizes[:, 1], config.image).sum())
    return f"; {count:,} images are so thin that resizing leaves only one row of patches" if count else ""


def _write_source(name: str, config: Config, tokenizer: Tokenizer, folder: Path, fingerprint: str) -> Description:
    writer = SourceWriter(folder, config.data.records_per_shard, config.image.exif)
    template = make_template(tokenizer, config.sequence)
    refused: list[Unreadable] = []  # the first few, for the error message
    quarantined = 0
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        for example in _examples(name, config):
            if isinstance(example, Ignored):
                continue
            found = example if isinstance(example, Unreadable) else _add(example, writer, template, config)
            if found is not None:
                quarantined += 1
                refused += [found] if quarantined <= _REFUSED_SHOWN else []
                quarantine.write(json.dumps({"source": name, "id": found.id, "reason": found.reason}) + "\n")
    if not writer.records:
        examples = "".join(f"\n  {found.id}: {found.reason}" for found in refused)
        raise ConfigError(f"source {name!r}: no usable record; {quarantined:,} quarantined{examples}")
    return writer.finish(fingerprint, quarantined)


def _add(record: Record, writer: SourceWriter, template: Template, config: Config) -> Unreadable | None:
    """Writes a record, or returns why it cannot be used."""
    for number, image in enumerate(record.images(), start=1):
        try:
            _ = image.decode(config.image.exif) if config.data.verify_images else image.size(config.image.exif)
        except OSError as error:
            return Unreadable(record.id, f"image {number} cannot be read: {error}")
    try:
        parts = template.runs(record.turns)
        if not any(isinstance(part, TextRun) and part.supervised for part in parts):
            return Unreadable(record.id, "it has no assistant or text turn to learn from")
        writer.add(record, parts)
    except UnicodeEncodeError as error:
        return Unreadable(record.id, f"its text is not valid Unicode: {error}")
    except ValueError as error:
        return Unreadable(record.id, str(error))
    return None


# ----------------------------------------------------------------------------------------- tokenizer


def _tokenizer_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    settings = config.data.tokenizer
    if settings.path is not None:
        return _digest([_FORMAT, settings.path, settings.add_tokens, tokenizer.fingerprint])
    sources = {name: config.data.sources[name].model_dump(mode="json") for name in _training_sources(config)}
    return _digest([_FORMAT, settings.model_dump(mode="json"), sources, tokenizer.fingerprint])


def _open_tokenizer(config: Config) -> Tokenizer | None:
    """Returns the prepared tokenizer, or None if there is none or it was made from other settings."""
    folder = Path(config.data.folder) / "tokenizer"
    try:
        made = json.loads((folder / "made_from.json").read_text())
        tokenizer = open_tokenizer(folder)
    except (OSError, ValueError):
        return None
    matches = isinstance(made, dict) and made.get("fingerprint") == _tokenizer_fingerprint(config, tokenizer)
    return tokenizer if matches else None


def _prepare_tokenizer(config: Config, report: Report) -> Tokenizer:
    kept = _open_tokenizer(config)
    if kept is not None:
        check_tokens(kept, config)
        report(f"tokenizer: {kept.vocab_size:,} tokens, already prepared")
        return kept
    started, settings = time.monotonic(), config.data.tokenizer
    if settings.path is not None:
        tokenizer = configured_tokenizer(config)
    else:
        try:
            tokenizer = train_tokenizer(_texts(config), settings)
        except (OSError, ValueError) as error:
            raise error if isinstance(error, ConfigError) else ConfigError(f"data.tokenizer: {error}") from None
        check_tokens(tokenizer, config)
    folder, made = Path(config.data.folder), {"fingerprint": _tokenizer_fingerprint(config, tokenizer)}
    with changing(folder, TOKENIZER, report):
        replace_files(folder / "tokenizer", "made_from.json", tokenizer.save, made, "the tokenizer")
    report(f"tokenizer: {tokenizer.vocab_size:,} tokens ({time.monotonic() - started:.1f} s)")
    return tokenizer


def _training_sources(config: Config) -> tuple[str, ...]:
    return config.data.tokenizer.train_on or tuple(config.data.sources)


def _texts(config: Config) -> Iterator[str]:
    """Yields text, always from the source that has yielded the least so far, up to `max_characters` in total."""
    examples = {name: _examples(name, config) for name in _training_sources(config)}
    given = dict.fromkeys(examples, 0)
    left = config.data.tokenizer.max_characters
    while given and left > 0:
        name = min(given, key=lambda name: given[name])
        example = next(examples[name], None)
        if example is None:
            del given[name]
        elif isinstance(example, Record):
            for text in (part for turn in example.turns for part in turn.content if isinstance(part, str)):
                # Invalid Unicode is quarantined later. Here it only must not stop the training.
                usable = text[:left].encode(errors="ignore").decode()
                given[name] += len(usable)
                left -= len(usable)
                yield usable


# --------------------------------------------------------------------------------------------- files


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a path for a new folder, which replaces `path` if the block succeeds. Links to folders stay links."""
    check_place(path, str(path))
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    check_place(partial, str(partial))
    _remove(partial)  # left by a killed process
    try:
        yield partial
        _remove(path)
        partial.rename(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """Removes a folder that `check_place` has accepted."""
    if path.exists():
        shutil.rmtree(path)
