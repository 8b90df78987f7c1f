"""The steps of a preparation: parts, tokenizer, tokens, index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from solo.config import Config, ConfigError
from solo.data.store import tokenizer as tokenizers
from solo.data.store.access import changing, source_content
from solo.data.store.assemble import assemble
from solo.data.store.bucket import local_folder
from solo.data.store.cleaning import remove_partial, remove_unused
from solo.data.store.description import Description
from solo.data.store.duplicates import duplicates
from solo.data.store.inputs import Inputs
from solo.data.store.mirror import Mirror
from solo.data.store.opened import changed_inputs, fingerprint, source_folder, tokens_fingerprint
from solo.data.store.progress import Watcher
from solo.data.store.publishing import begin, publish_source
from solo.data.store.safety import claim
from solo.data.store.schedule import SourceSchedule
from solo.data.store.sharing import LostImagesError
from solo.data.store.source import PreparedSource
from solo.data.store.summary import left_aside, quarantine_lines, summary
from solo.data.store.work import MadePart, PartJob, TokensJob
from solo.data.text import Tokenizer
from solo.data.text.templates import make_template
from solo.data.vocabulary import check_tokens
from solo.files import write_whole

Make = Callable[[Sequence[PartJob], str], list[MadePart]]


class Preparation:
    """A preparation with work to do.

    Args:
        config: the run's config.
        watcher: shows lines.
        make: makes the parts of independent jobs.
        stack: holds the locks that keep runs from reading the sources, until it is closed. None: only parts are made,
            and other processes may work on the sources too.
    """

    def __init__(self, config: Config, watcher: Watcher, make: Make, stack: ExitStack | None) -> None:
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

    def first_round(self) -> list[PartJob]:
        """Returns the jobs that several processes may share: most of the work, but not always all of it."""
        tokenizer = self.open_tokenizer()
        unready = [name for name in self._config.data.sources if not self._is_ready(name, tokenizer)]
        tokens = None if tokenizer is None else self.tokens(tokenizer)
        return [job for name in unready for job in self._schedule(name).jobs(tokens)]

    def open_tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer, after preparing it if it is configured; None if it has yet to be trained."""
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
        """Makes the parts of sources, including their tokens if the tokenizer is known."""
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
        """Returns the settings that tokenize the records of all sources."""
        config = self._config
        folder = str(tokenizers.tokenizer_folder(config))
        return TokensJob(folder, config.sequence, tokens_fingerprint(config, tokenizer))

    def _schedule(self, name: str) -> SourceSchedule:
        """Starts the work on a source, and keeps runs from reading it."""
        config, folder = self._config, source_folder(name, self._config)
        claim(folder, f"source {name!r}")
        lock = changing(local_folder(config), source_content(name), self._say)
        if self._stack is None:
            with lock:  # no run may read the source
                begin(folder)
        elif name not in self._changing:
            self._stack.enter_context(lock)
            self._changing.add(name)
            remove_partial(folder)
            begin(folder)
        schedule = SourceSchedule(name, config, folder)
        if name not in self._schedules:
            for note in schedule.notes:
                self._say(f"{name}: {note}")
        self._schedules[name] = schedule
        # Stamps are taken before the files are read, so a file that changes in between is noticed the next time.
        self._inputs[name] = Inputs.of(
            schedule.parts, config.data.sources[name].options, config.data.records_per_shard, config.data.input_check
        )
        return schedule

    def _is_ready(self, name: str, tokenizer: Tokenizer | None) -> bool:
        if tokenizer is None:
            return False
        made = Description.read(source_folder(name, self._config))
        if made is None or made.fingerprint != fingerprint(name, self._config, tokenizer):
            return False
        try:
            PreparedSource(source_folder(name, self._config))
        except ConfigError as error:
            self._say(f"{name}: {error}")
            return False
        return changed_inputs(name, self._config, made) is None

    def _trained(self, kept: Tokenizer | None, names: Sequence[str]) -> Tokenizer:
        parts = {name: self._training_parts(name) for name in names}
        if kept is not None and tokenizers.was_trained_on(self._config, parts):
            self._say(f"tokenizer: {kept.vocab_size:,} tokens, already prepared")
            return kept
        if not any(records for each in parts.values() for _, records in each):
            raise ConfigError("\n".join(self._schedules[name].emptiness() for name in names))
        began = time.monotonic()
        tokenizer = tokenizers.train(self._config, parts, self._say)
        make_template(tokenizer, self._config.sequence)
        self._say(f"tokenizer: {tokenizer.vocab_size:,} tokens ({time.monotonic() - began:.1f} s)")
        return tokenizer

    def _training_parts(self, name: str) -> list[tokenizers.TrainingPart]:
        if name in self._schedules:
            found = self._schedules[name].made
            return [tokenizers.TrainingPart(made.name, made.records.files.get("records")) for made in found]
        made = Description.read(source_folder(name, self._config))
        assert made is not None
        return [tokenizers.TrainingPart(part.name, part.files.get(f"{part.name}.records")) for part in made.parts]

    def _assemble(self, name: str, tokenizer: Tokenizer) -> None:
        config, folder = self._config, source_folder(name, self._config)
        tokens, made_from = tokens_fingerprint(config, tokenizer), fingerprint(name, config, tokenizer)
        description = None
        while description is None:
            made = self._schedules[name].made
            try:
                parts = [part.name for part in made]
                excluded = duplicates(folder, parts, tokens, config.data.sources[name])
                description = assemble(folder, name, parts, tokens, made_from, excluded)
            except LostImagesError:
                self.make_parts([name], tokenizer)
        self._inputs[name].write(folder, description.content)
        publish_source(folder, description)
        remove_unused(folder, description)
        source = PreparedSource(folder, check=False)
        self._say(summary(name, source, config, time.monotonic() - self._started))
        for line in (*quarantine_lines(source), *left_aside(name, [part.records for part in made])):
            self._say(line)

    def _write_quarantine(self) -> None:
        folder = local_folder(self._config)
        files = [source_folder(name, self._config) / "quarantine.jsonl" for name in self._config.data.sources]
        write_whole(folder / "quarantine.jsonl", "".join(file.read_text(encoding="utf-8") for file in files))
        if (mirror := Mirror.of(self._config)) is not None:
            mirror.upload(folder / "quarantine.jsonl")
