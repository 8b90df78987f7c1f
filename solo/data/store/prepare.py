"""Prepares data before training: the tokenizer, and the parts and the index of every source.

    <data.folder>/tokenizer/          the files of `Tokenizer.save`, and made_from.json
    <data.folder>/sources/<name>/     see `solo.data.store.part`, `.assemble` and `.inputs`
    <data.folder>/quarantine.jsonl    one {"source", "id", "reason", "file", "line"} per example that was left out

Parts made from the same settings and inputs are kept, also after a kill. The bytes depend neither on
the number of processes nor on interruptions.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass

from solo.config import Config, ConfigError
from solo.data.readers import AUTO, open_reader
from solo.data.store.access import Report, preparing
from solo.data.store.bucket import local_folder
from solo.data.store.maker import Maker
from solo.data.store.mirror import Mirror
from solo.data.store.opened import Prepared, open_prepared
from solo.data.store.preparation import Preparation
from solo.data.store.progress import Watcher
from solo.data.store.safety import check_folders, writing
from solo.data.store.summary import summary
from solo.data.vocabulary import check_tokens

__all__ = ["Prepared", "check", "open_prepared", "prepare", "ready"]

ALONE_SECONDS = 2.0


@dataclass(frozen=True)
class _Says(Watcher):
    """Reports lines; shows no progress."""

    report: Report

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self.report(line)


def prepare(
    config: Config, report: Report | None = None, *, workers: int | None = None, watcher: Watcher | None = None
) -> Prepared:
    """Prepares the data of a run that is missing or was made from other settings or inputs, and opens it.

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
    if (found := ready(config, watcher.say)) is not None:
        return found
    folder = local_folder(config)
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(preparing(folder, watcher.say))
        alone = 0.0 if workers else ALONE_SECONDS
        maker = stack.enter_context(Maker(workers, alone, watcher))
        Preparation(config, watcher, maker.make, stack).run()
    return open_prepared(config)


def check(config: Config) -> None:
    """Checks the config before any work is done. Raises ConfigError."""
    for name, source in config.data.sources.items():
        if not re.fullmatch(r"[\w.-]*\w", name):
            raise ConfigError(f"source {name!r}: its name becomes a folder; use letters, digits, '_', '-' and '.'")
        if source.reader == AUTO:
            continue  # decided by its inputs, which may be absent where its data is prepared
        try:
            open_reader(source.reader, source.options, source.limit)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error}") from None
    check_folders(config)
    if (mirror := Mirror.of(config)) is not None:
        mirror.bucket.connect()


def ready(config: Config, say: Report) -> Prepared | None:
    """Returns the prepared data, and reports it, if nothing remains to be done; otherwise None."""
    try:
        found = open_prepared(config, inputs=True)
    except ConfigError:
        return None
    check_tokens(found.tokenizer, config)
    say(f"tokenizer: {found.tokenizer.vocab_size:,} tokens, already prepared")
    for name, source in found.sources.items():
        say(summary(name, source, config, None))
    return found
