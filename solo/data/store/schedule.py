"""Schedules the parts of a source: all of them, or as many as its limit needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from solo.config import Config, ConfigError
from solo.data.filters import Selection
from solo.data.images.check import ImageCheck
from solo.data.readers import Chosen, Part, Reader, choose_reader, open_reader
from solo.data.store.bucket import local_folder
from solo.data.store.part_tokens import no_record
from solo.data.store.safety import refuse_inside
from solo.data.store.work import MadePart, PartJob, TokensJob

_REFUSED_AT_LEAST = 100  # fewer unusable examples never stop a source


class SourceSchedule:
    """The parts of a source, in rounds.

    The jobs of a round are independent. Without a limit there is a single round. With a limit, a round contains the
    parts that will probably be needed, and the part that contains the limit is made again so that it ends there.

    Args:
        name: name of the source.
        config: the run's config.
        folder: folder of the prepared source.

    Raises:
        ConfigError: the source cannot be read.

    Attributes:
        notes: lines for the user before the source is read: the chosen reader and why, the classes.
        parts: all parts of the source, in order.
        made: the parts that have been made so far, in order. It is complete once `jobs` returns an empty list.
    """

    def __init__(self, name: str, config: Config, folder: Path) -> None:
        source = config.data.sources[name]
        self.name, self._config, self._folder = name, config, folder
        chosen, opened = _open(name, config)
        self.notes = [f"read by {chosen.reader!r}, because {chosen.why}"] if chosen.why else []
        self.parts = _list_parts(name, config, opened, config.data.records_per_shard)
        self.notes += [about] if (about := opened.about()) else []
        self.made: list[MadePart] = []
        self._limit, self._most = source.limit, config.data.max_quarantined
        self._template = PartJob(
            folder=str(folder),
            source=name,
            reader=chosen.reader,
            options=json.dumps(chosen.options, sort_keys=True),
            part=Part(""),
            images=ImageCheck.of(config),
            check=config.data.input_check,
            selection=Selection.of(source),
            similar=source.deduplicate == "similar_images",
        )

    def jobs(self, tokens: TokensJob | None) -> list[PartJob]:
        """Returns the jobs of the next round; an empty list if the source is complete.

        Args:
            tokens: how to tokenize records; None while the tokenizer is unknown.
        """
        left = self._left()
        waiting = self.parts[len(self.made) :] if left != 0 else []
        if left is not None and waiting:
            waiting = waiting[: max(1, left // self._examples_of_a_part())]
        return [replace(self._template, part=part, limit=left, tokens=tokens) for part in waiting]

    def take(self, outcomes: Sequence[MadePart]) -> None:
        """Adds the finished parts of a round, in the order of its jobs.

        Raises:
            ConfigError: too many examples are unusable.
        """
        for made in outcomes:
            left = self._left()
            if left is not None and made.records.examples > left:
                break  # the next round makes this part again, cut at the limit
            self.made.append(made)
        self._check_quarantined()

    def emptiness(self) -> str:
        """Returns a description of why the parts so far contain no records."""
        return no_record(self.name, [made.records for made in self.made])

    def _left(self) -> int | None:
        return None if self._limit is None else self._limit - sum(made.records.examples for made in self.made)

    def _examples_of_a_part(self) -> int:
        if not self.made:
            return self._config.data.records_per_shard
        return max(1, sum(made.records.examples for made in self.made) // len(self.made))

    def _check_quarantined(self) -> None:
        examples = sum(made.records.examples for made in self.made)
        refused = sum(made.records.quarantined for made in self.made)
        if refused < _REFUSED_AT_LEAST or refused <= self._most * examples:
            return
        shown = [line for made in self.made for line in made.records.refused][:3]
        raise ConfigError(
            f"source {self.name!r}: {refused:,} of the {examples:,} examples read so far cannot be used, more than the"
            f" share of {self._most:g} that data.max_quarantined allows:" + "".join(f"\n  {line}" for line in shown)
        )


def list_parts(name: str, config: Config, size: int | None = None) -> list[Part]:
    """Returns the parts of a source.

    Args:
        name: name of the source.
        config: the run's config.
        size: examples per part; default: `data.records_per_shard`.

    Raises:
        ConfigError: the source cannot be read, or reads files that preparation writes.
    """
    return _list_parts(name, config, _open(name, config)[1], size or config.data.records_per_shard)


def _open(name: str, config: Config) -> tuple[Chosen, Reader]:
    """Opens a source. Returns the chosen reader with its options, and the opened reader."""
    source = config.data.sources[name]
    try:
        chosen = choose_reader(source.reader, source.options)
        return chosen, open_reader(chosen.reader, chosen.options, source.limit)
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None


def _list_parts(name: str, config: Config, opened: Reader, size: int) -> list[Part]:
    try:
        parts = list(opened.parts(size, config.data.sources[name].limit))
    except ConfigError as error:
        raise ConfigError(f"source {name!r}: {error}") from None
    folder = local_folder(config)
    refuse_inside(
        folder,
        sorted({file for part in parts for file in part.files}),
        f"data.sources.{name}",
        False,
        config.data.folder,
    )
    return parts
