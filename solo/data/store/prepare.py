"""Prepares data once before training: makes the tokenizer, and shards and an index for every source.

    <data.folder>/tokenizer/                the files of `Tokenizer.save`, and made_from.json
    <data.folder>/sources/<name>/           see `solo.data.store.assemble` and `solo.data.store.part`
    <data.folder>/quarantine.jsonl          one {"source", "id", "reason"} per example that was left out

A part that exists is kept if it was made from the same settings. Each part appears whole or not at all. Settings are
compared, but not the files that they name: remove the folder to prepare changed files again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.images.geometry import too_thin
from solo.data.readers import open_reader
from solo.data.store.access import TOKENIZER, changing, preparing, source_content
from solo.data.store.assemble import assemble
from solo.data.store.description import Description
from solo.data.store.part import read_records
from solo.data.store.safety import check_folders, claim, replace_files, writing
from solo.data.store.sharing import LostImagesError
from solo.data.store.source import PreparedSource
from solo.data.store.work import MadePart, PartJob, TokensJob, digest, prepare_part
from solo.data.text import Tokenizer, open_tokenizer, train_tokenizer
from solo.data.text.templates import make_template
from solo.data.vocabulary import check_tokens, configured_tokenizer
from solo.files import write_whole

FORMAT = 3  # of prepared data, chat templates included; raise it to make older data again

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
    return digest([FORMAT, source, config.data.verify_images, _tokens_fingerprint(config, tokenizer)])


def _tokens_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    return digest([FORMAT, tokenizer.fingerprint, config.sequence.template, config.sequence.system])


def _check_source(name: str, config: Config) -> None:
    """Finds faults of the config before any work is done."""
    if not re.fullmatch(r"[\w.-]*\w", name):
        raise ConfigError(f"source {name!r}: its name becomes a folder; use letters, digits, '_', '-' and '.'")
    source = config.data.sources[name]
    try:
        open_reader(source.reader, source.options, source.limit)
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None


def _prepare_source(name: str, config: Config, tokenizer: Tokenizer, report: Report) -> None:
    folder, fingerprint = _source_folder(name, config), _source_fingerprint(name, config, tokenizer)
    made = Description.read(folder)
    if made is not None and made.fingerprint == fingerprint:
        report(f"{name}: {made.records:,} records, already prepared{_thin_images(folder, config)}")
        return
    started = time.monotonic()
    tokens = TokensJob(
        str(Path(config.data.folder) / "tokenizer"), config.sequence, _tokens_fingerprint(config, tokenizer)
    )
    with changing(Path(config.data.folder), source_content(name), report):
        made = None
        while made is None:
            parts = [part.name for part in _parts(name, config, tokens)]
            with suppress(LostImagesError):  # the next round makes these parts again
                made = assemble(folder, name, parts, tokens.fingerprint, fingerprint)
    report(
        f"{name}: {made.records:,} records, {made.images:,} images, {made.text_tokens:,} text tokens, "
        f"{made.quarantined:,} quarantined ({time.monotonic() - started:.1f} s){_thin_images(folder, config)}"
    )


def _parts(name: str, config: Config, tokens: TokensJob | None) -> Iterator[MadePart]:
    """Makes and yields the parts of a source, one after another, until its limit is reached."""
    source = config.data.sources[name]
    options, folder = json.dumps(source.options, sort_keys=True), str(_source_folder(name, config))
    claim(Path(folder), f"source {name!r}")
    left = source.limit
    try:
        opened = open_reader(source.reader, source.options, source.limit)
        for part in opened.parts(config.data.records_per_shard, source.limit):
            if left == 0:
                return
            job = PartJob(folder, name, source.reader, options, part, left, config.data.verify_images, tokens)
            made = prepare_part(job)
            left = None if left is None else left - made.records.examples
            yield made
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {str(error).removeprefix(f'source {name!r}: ')}") from None


def _thin_images(folder: Path, config: Config) -> str:
    """Returns a note on images with a side that the geometry rounds down to zero, or an empty string."""
    index = PreparedSource(folder, check=False).index
    sizes = (index.image_sizes(config.image.exif, *block) for block in index.blocks())
    count = sum(int(too_thin(size[:, 0], size[:, 1], config.image).sum()) for size in sizes)
    return f"; {count:,} images are so thin that resizing leaves only one row of patches" if count else ""


# ----------------------------------------------------------------------------------------- tokenizer


def _tokenizer_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    settings = config.data.tokenizer
    if settings.path is not None:
        return digest([FORMAT, settings.path, settings.add_tokens, tokenizer.fingerprint])
    sources = {name: config.data.sources[name].model_dump(mode="json") for name in _training_sources(config)}
    return digest([FORMAT, settings.model_dump(mode="json"), sources, tokenizer.fingerprint])


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
    """Yields stored text, always from the source that has yielded the least so far, up to `max_characters` in total."""
    texts = {name: _stored_texts(name, config) for name in _training_sources(config)}
    given = dict.fromkeys(texts, 0)
    left = config.data.tokenizer.max_characters
    while given and left > 0:
        name = min(given, key=lambda name: given[name])
        found = next(texts[name], None)
        if found is None:
            del given[name]
            continue
        for text in found:
            usable = text[:left]
            given[name] += len(usable)
            left -= len(usable)
            yield usable


def _stored_texts(name: str, config: Config) -> Iterator[list[str]]:
    """Yields the texts of every record of a source."""
    for part in _parts(name, config, None):
        if part.records.records:
            for stored in read_records(_source_folder(name, config) / "parts", part.name):
                yield [text for turn in stored.record.turns for text in turn.content if isinstance(text, str)]
