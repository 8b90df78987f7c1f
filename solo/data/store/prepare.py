"""Prepares data before training: the tokenizer, and the parts and the index of every source.

    <data.folder>/tokenizer/          the files of `Tokenizer.save`, and made_from.json
    <data.folder>/sources/<name>/     see `solo.data.store.part`, `.assemble` and `.inputs`
    <data.folder>/quarantine.jsonl    one {"source", "id", "reason", "file", "line"} per example that was left out

What was made from the same settings and inputs is kept, part by part, also after a kill. The bytes depend neither on
the number of processes nor on interruptions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.readers import AUTO, open_reader
from solo.data.store import tokenizer as tokenizers
from solo.data.store.access import Report, changing, preparing, source_content
from solo.data.store.assemble import assemble
from solo.data.store.cleaning import remove_partial, remove_unused
from solo.data.store.description import Description
from solo.data.store.inputs import Inputs, changed, parts_digest
from solo.data.store.maker import Maker
from solo.data.store.part import PartManifest
from solo.data.store.part_files import FORMAT
from solo.data.store.progress import Watcher
from solo.data.store.safety import check_folders, claim, writing
from solo.data.store.schedule import SourceSchedule, list_parts
from solo.data.store.sharing import LostImagesError
from solo.data.store.source import PreparedSource
from solo.data.store.summary import left_aside, quarantine_lines, summary
from solo.data.store.work import MadePart, PartJob, TokensJob, digest
from solo.data.text import Tokenizer
from solo.data.text.templates import make_template
from solo.data.vocabulary import check_tokens
from solo.files import write_whole

Make = Callable[[Sequence[PartJob], str], list[MadePart]]


@dataclass(frozen=True)
class Prepared:
    """Opened prepared data."""

    tokenizer: Tokenizer
    sources: dict[str, PreparedSource]

    @property
    def quarantined(self) -> int:
        """Number of examples that were left out because they cannot be used, over all sources."""
        return sum(source.description.quarantined for source in self.sources.values())


@dataclass(frozen=True)
class _Says(Watcher):
    """Shows only lines that stay."""

    report: Report

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self.report(line)


def prepare(
    config: Config, report: Report | None = None, *, workers: int | None = None, watcher: Watcher | None = None
) -> Prepared:
    """Makes what is missing of a run's data, or was made from other settings or inputs, and opens it.

    Args:
        config: of the run.
        report: called with a line for the tokenizer and for every source.
        workers: processes at most; default: one for each core, once there is work for more than two seconds.
        watcher: shows lines and progress, in place of `report`.

    Raises:
        ConfigError: a source or the tokenizer cannot be made; the message names it. Finished parts stay. Also if
            another process prepares the folder, or trains on data that would change, or if a file of the user's is in
            the way.
        PartError: a process died over a part, or a reader failed.
    """
    watcher = watcher or (_Says(report) if report else Watcher())
    check(config)
    ready = _ready(config)
    if ready is not None:
        _say_ready(config, ready, watcher.say)
        return ready
    folder = Path(config.data.folder)
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(preparing(folder, watcher.say))
        alone = 0.0 if workers else ALONE_SECONDS
        _Preparation(config, watcher, Maker(workers, alone, watcher).make, stack).run()
    return open_prepared(config)


ALONE_SECONDS = 2.0


def check(config: Config) -> None:
    """Finds faults of the config before any work is done. Raises ConfigError."""
    for name, source in config.data.sources.items():
        if not re.fullmatch(r"[\w.-]*\w", name):
            raise ConfigError(f"source {name!r}: its name becomes a folder; use letters, digits, '_', '-' and '.'")
        if source.reader == AUTO:
            continue  # its inputs decide, which may be absent where its data is prepared
        try:
            open_reader(source.reader, source.options, source.limit)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error}") from None
    check_folders(config)


def open_prepared(config: Config, inputs: bool = False) -> Prepared:
    """Opens what `prepare` made.

    Args:
        config: of the run.
        inputs: also compare the inputs with what they were. Inputs that are absent were prepared elsewhere.

    Raises:
        ConfigError: something is missing or damaged, or was made from other settings or inputs.
    """
    tokenizer = tokenizers.open_made(config)
    if tokenizer is None:
        raise _unprepared("the tokenizer", config)
    if inputs and (why := tokenizers.replaced(config, config.data.input_check)):
        raise ConfigError(f"the tokenizer: {why} since it was prepared; run: solo prepare CONFIG")
    for name in config.data.sources:
        made = Description.read(source_folder(name, config))
        if made is None or made.fingerprint != _fingerprint(name, config, tokenizer):
            raise _unprepared(f"source {name!r}", config)
        if inputs and (why := _changed_inputs(name, config, made)):
            raise ConfigError(f"source {name!r}: {why} since it was prepared; run: solo prepare CONFIG")
    return Prepared(tokenizer, {name: PreparedSource(source_folder(name, config)) for name in config.data.sources})


def source_folder(name: str, config: Config) -> Path:
    """Returns the folder of a prepared source."""
    return Path(config.data.folder) / "sources" / name


def _unprepared(what: str, config: Config) -> ConfigError:
    return ConfigError(
        f"{what} is not in {config.data.folder}, or was made from other settings; run: solo prepare CONFIG"
    )


def _ready(config: Config) -> Prepared | None:
    try:
        return open_prepared(config, inputs=True)
    except ConfigError:
        return None


def _say_ready(config: Config, ready: Prepared, say: Report) -> None:
    check_tokens(ready.tokenizer, config)
    say(f"tokenizer: {ready.tokenizer.vocab_size:,} tokens, already prepared")
    for name, source in ready.sources.items():
        say(summary(name, source, config, None))


def _settings(name: str, config: Config) -> str:
    """Returns a digest of all that the parts of a source depend on, apart from its inputs."""
    return digest([FORMAT, config.data.sources[name].model_dump(mode="json"), config.data.verify_images])


def _fingerprint(name: str, config: Config, tokenizer: Tokenizer) -> str:
    return digest([_settings(name, config), _tokens_fingerprint(config, tokenizer)])


def _tokens_fingerprint(config: Config, tokenizer: Tokenizer) -> str:
    return digest([FORMAT, tokenizer.fingerprint, config.sequence.template, config.sequence.system])


def _changed_inputs(name: str, config: Config, made: Description) -> str | None:
    """Returns in words what has changed of the inputs of a prepared source; None if nothing has."""
    mode = config.data.input_check
    if mode == "none":
        return None
    folder = source_folder(name, config)
    inputs = Inputs.read(folder)
    if inputs is None or inputs.content != made.content or inputs.check != mode:
        return "it is not known whether its inputs are the same"
    if why := changed(inputs.files, mode):
        return why
    if inputs.files and not inputs.any_exists():
        return None
    if inputs.folders_changed() and parts_digest(list_parts(name, config, inputs.size)) != inputs.parts:
        return "files were added, removed or renamed"
    for part in made.parts:
        manifest = PartManifest.read(folder / "parts", part.name)
        if manifest is not None and (why := changed(manifest.inputs, mode)):
            return why
    return None


class _Preparation:
    """One call of `prepare` that has something to do.

    Args:
        config: of the run.
        watcher: shows lines.
        make: makes the parts of jobs that do not depend on each other.
        stack: keeps locks until the end.
    """

    def __init__(self, config: Config, watcher: Watcher, make: Make, stack: ExitStack) -> None:
        self._config, self._say, self._make, self._stack = config, watcher.say, make, stack
        self._schedules: dict[str, SourceSchedule] = {}
        self._inputs: dict[str, Inputs] = {}
        self._changing: set[str] = set()
        self._started = time.monotonic()

    def run(self) -> None:
        """Makes everything that is missing."""
        tokenizer = self.open_tokenizer()
        trained = tokenizers.training_sources(self._config)
        unready = [name for name in self._config.data.sources if not self._is_ready(name, tokenizer)]
        first = (
            unready
            if tokenizer is not None
            else sorted({*unready, *trained}, key=list(self._config.data.sources).index)
        )
        self.make_parts(first, tokenizer)
        if trained and (tokenizer is None or set(first) & set(trained)):
            before, tokenizer = tokenizer, self._trained(tokenizer, trained)
            if before is None or before.fingerprint != tokenizer.fingerprint:
                unready = [name for name in self._config.data.sources if not self._is_ready(name, tokenizer)]
                self.make_parts(unready, tokenizer)
        assert tokenizer is not None
        for name in unready:
            self._assemble(name, tokenizer)
        self._write_quarantine()

    def open_tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer, prepared if it is configured; None if it is still to be trained."""
        config = self._config
        kept = tokenizers.open_made(config)
        if config.data.tokenizer.path is not None:
            if kept is None or tokenizers.replaced(config, config.data.input_check):
                kept = tokenizers.make_configured(config, self._say)
                self._say(f"tokenizer: {kept.vocab_size:,} tokens")
            else:
                self._say(f"tokenizer: {kept.vocab_size:,} tokens, already prepared")
        if kept is not None:
            check_tokens(kept, config)
            make_template(kept, config.sequence)
        return kept

    def make_parts(self, names: Iterable[str], tokenizer: Tokenizer | None) -> None:
        """Makes the parts of sources; their tokens too if the tokenizer is known."""
        tokens = None if tokenizer is None else self.tokens(tokenizer)
        schedules = {name: self._schedule(name) for name in names}
        while True:
            rounds = {name: jobs for name, each in schedules.items() if (jobs := each.jobs(tokens))}
            if not rounds:
                return
            made = iter(self._make([job for jobs in rounds.values() for job in jobs], "preparing"))
            for name, jobs in rounds.items():
                schedules[name].take([next(made) for _ in jobs])

    def tokens(self, tokenizer: Tokenizer) -> TokensJob:
        """Returns how the records of all sources become tokens."""
        config = self._config
        folder = str(tokenizers.tokenizer_folder(config))
        return TokensJob(folder, config.sequence, _tokens_fingerprint(config, tokenizer))

    def _schedule(self, name: str) -> SourceSchedule:
        """Begins with a source, and keeps runs from reading it."""
        config, folder = self._config, source_folder(name, self._config)
        claim(folder, f"source {name!r}")
        if name not in self._changing:
            self._stack.enter_context(changing(Path(config.data.folder), source_content(name), self._say))
            self._changing.add(name)
        remove_partial(folder)
        schedule = SourceSchedule(name, config, folder)
        self._schedules[name] = schedule
        for note in schedule.notes:
            self._say(f"{name}: {note}")
        # Before the files are read: one that changes meanwhile is noticed the next time.
        self._inputs[name] = Inputs.of(
            schedule.parts, config.data.sources[name].options, config.data.records_per_shard, config.data.input_check
        )
        return schedule

    def _is_ready(self, name: str, tokenizer: Tokenizer | None) -> bool:
        if tokenizer is None:
            return False
        made = Description.read(source_folder(name, self._config))
        if made is None or made.fingerprint != _fingerprint(name, self._config, tokenizer):
            return False
        try:
            PreparedSource(source_folder(name, self._config))
        except ConfigError as error:
            self._say(f"{name}: {error}")
            return False
        return _changed_inputs(name, self._config, made) is None

    def _trained(self, kept: Tokenizer | None, names: Sequence[str]) -> Tokenizer:
        parts = {name: self._part_names(name) for name in names}
        if kept is not None and tokenizers.was_trained_on(self._config, parts):
            self._say(f"tokenizer: {kept.vocab_size:,} tokens, already prepared")
            return kept
        began = time.monotonic()
        tokenizer = tokenizers.train(self._config, parts, self._say)
        make_template(tokenizer, self._config.sequence)
        self._say(f"tokenizer: {tokenizer.vocab_size:,} tokens ({time.monotonic() - began:.1f} s)")
        return tokenizer

    def _part_names(self, name: str) -> list[tuple[str, int]]:
        if name in self._schedules:
            return [(made.name, made.records.records) for made in self._schedules[name].made]
        made = Description.read(source_folder(name, self._config))
        assert made is not None
        return [(part.name, part.records) for part in made.parts]

    def _assemble(self, name: str, tokenizer: Tokenizer) -> None:
        config, folder = self._config, source_folder(name, self._config)
        tokens, fingerprint = _tokens_fingerprint(config, tokenizer), _fingerprint(name, config, tokenizer)
        description = None
        while description is None:
            made = self._schedules[name].made
            try:
                description = assemble(folder, name, [part.name for part in made], tokens, fingerprint)
            except LostImagesError:
                self.make_parts([name], tokenizer)
        self._inputs[name].write(folder, description.content)
        remove_unused(folder, description)
        source = PreparedSource(folder, check=False)
        self._say(summary(name, source, config, time.monotonic() - self._started))
        for line in (*quarantine_lines(source), *left_aside(name, [part.records for part in made])):
            self._say(line)

    def _write_quarantine(self) -> None:
        folder = Path(self._config.data.folder)
        files = [source_folder(name, self._config) / "quarantine.jsonl" for name in self._config.data.sources]
        write_whole(folder / "quarantine.jsonl", "".join(file.read_text(encoding="utf-8") for file in files))
