"""Prepares data before training: the tokenizer, and the parts and the index of every source.

    <data.folder>/tokenizer/          the files of `Tokenizer.save`, and made_from.json
    <data.folder>/sources/<name>/     see `solo.data.store.part`, `.assemble` and `.inputs`
    <data.folder>/quarantine.jsonl    one {"source", "id", "reason", "file", "line"} per quarantined example

Parts made from the same settings and inputs are reused, even if the process was killed. The output is deterministic:
its bytes depend neither on the number of processes nor on interruptions.
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
    """Reports lines, but shows no progress."""

    report: Report

    def say(self, line: str) -> None:
        """See `Watcher`."""
        self.report(line)


def prepare(
    config: Config, report: Report | None = None, *, workers: int | None = None, watcher: Watcher | None = None
) -> Prepared:
    """Prepares the data of a run if it is missing or was made from other settings or inputs, and opens it.

    Args:
        config: the run's config.
        report: called with a line for the tokenizer and for every source.
        workers: maximum number of processes; default: one per core, once there is work for more than two seconds.
        watcher: shows lines and progress, in place of `report`.

    Raises:
        ConfigError: a source or the tokenizer cannot be made; the message names it, and finished parts are kept. Also
            if another process is preparing the folder, if a run is training on data that would change, or if a file
            that solo did not make is in the way.
        PartError: a process died while making a part, or a reader failed.
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
    """Checks the config before any work is done. Raises ConfigError if it cannot be prepared."""
    for name, source in config.data.sources.items():
        if not re.fullmatch(r"[\w.-]*\w", name):
            raise ConfigError(f"source {name!r}: its name becomes a folder; use letters, digits, '_', '-' and '.'")
        if source.reader == AUTO:
            continue  # `auto` needs the inputs, which may be absent where the data is already prepared
        try:
            open_reader(source.reader, source.options, source.limit)
        except ConfigError as error:
            raise ConfigError(f"source {name!r}: {error}") from None
    check_folders(config)
    if (mirror := Mirror.of(config)) is not None:
        mirror.bucket.connect()


def ready(config: Config, say: Report) -> Prepared | None:
    """Returns and reports the prepared data if there is nothing left to do; otherwise returns None."""
    try:
        found = open_prepared(config, inputs=True)
    except ConfigError:
        return None
    check_tokens(found.tokenizer, config)
    say(f"tokenizer: {found.tokenizer.vocab_size:,} tokens, already prepared")
    for name, source in found.sources.items():
        say(summary(name, source, config, None))
    return found
