"""Preparation on several machines: numbered hosts, or the workers of an Apache Beam pipeline.

The machines share `data.folder`. Each makes parts with the same function as a single machine would, so the bytes are
the same. An ordinary preparation then does the rest: training a tokenizer, the parts that contain limits, and the
indexes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from solo.config import Config, ConfigError
from solo.data.store.access import BusyError, preparing, preparing_shard
from solo.data.store.bucket import local_folder
from solo.data.store.maker import Maker
from solo.data.store.opened import Prepared
from solo.data.store.preparation import Preparation
from solo.data.store.prepare import check, prepare, ready
from solo.data.store.progress import Watcher
from solo.data.store.safety import writing
from solo.data.store.work import MadePart, PartJob, digest, prepare_part

_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Shard:
    """The share of one of several hosts: every `count`-th part, starting with part `index` (from 0)."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses `i/n`, with i from 0. Raises ConfigError if it is not a valid shard."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigError(f"--shard {text}: expected i/n, with i from 0 to n - 1, such as 0/8 and 7/8")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def prepare_shard(config: Config, shard: Shard, workers: int | None, watcher: Watcher) -> Prepared | None:
    """Makes the parts of a shard. The host that finishes last also does the rest.

    Args:
        config: the run's config, the same on all hosts.
        shard: this host's shard.
        workers: maximum number of processes; None: one per core.
        watcher: shows lines and progress.

    Returns:
        The prepared data, or None if other shards are not finished.

    Raises:
        ConfigError: see `prepare`; also if another process is preparing this shard or the whole folder.
        PartError: see `prepare`.
    """
    check(config)
    if (found := ready(config, watcher.say)) is not None:
        return found
    folder = local_folder(config)
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(preparing(folder, watcher.say, shared=True))
        stack.enter_context(preparing_shard(folder, str(shard), watcher.say))
        maker = stack.enter_context(Maker(workers, 0.0, watcher))
        jobs = Preparation(config, watcher, maker.make, None).first_round()
        marks = folder / ".locks" / f"shards-{_digest(jobs)}-{shard.count}"
        maker.make(jobs[shard.index :: shard.count], f"shard {shard}")
        marks.mkdir(exist_ok=True)
        (marks / str(shard.index)).touch()
        left = shard.count - len(list(marks.iterdir()))
    if left:
        watcher.say(f"shard {shard} is done; {left:,} others are not. The last one joins them, as does solo prepare")
        return None
    prepared = _finish(config, workers, watcher)
    if prepared is not None:
        with suppress(OSError):
            for mark in marks.iterdir():
                mark.unlink()
            marks.rmdir()
    return prepared


def _finish(config: Config, workers: int | None, watcher: Watcher) -> Prepared | None:
    """Does the rest if all shards are finished and no other host is doing it."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return prepare(config, workers=workers, watcher=watcher)
        except BusyError as error:
            if time.monotonic() > end:
                watcher.say(f"all shards are done; {error}")
                return None
            time.sleep(0.5)


def prepare_with_beam(config: Config, options: Sequence[str], watcher: Watcher) -> Prepared:
    """Makes the parts in an Apache Beam pipeline, and does the rest in this process.

    Args:
        config: the run's config. Its inputs and `data.folder` must have the same paths on all workers.
        options: pipeline options, as on the command line: `--runner=FlinkRunner`.
        watcher: shows lines and progress.

    Raises:
        ConfigError: see `prepare`; also if Apache Beam is not installed or an option is unknown.
        PartError: see `prepare`.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ConfigError("Apache Beam is not installed: pip install 'solo-vlm[beam]'") from None
    check(config)
    if (found := ready(config, watcher.say)) is not None:
        return found
    folder = local_folder(config)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with preparing(folder, watcher.say):
            jobs = Preparation(config, watcher, _no_parts, None).first_round()
            watcher.say(f"{len(jobs):,} parts are made by Apache Beam")
            with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(_make)
    return prepare(config, watcher=watcher)


def _make(job: PartJob) -> str:
    """Makes a part. If that fails, the preparation that follows reports the reason."""
    with suppress(ConfigError, OSError):
        return prepare_part(job).name
    return ""


def _no_parts(jobs: Sequence[PartJob], what: str) -> list[MadePart]:
    raise AssertionError("only the jobs are wanted")


def _digest(jobs: Sequence[PartJob]) -> str:
    named = [[job.source, job.reader, job.options, job.part.name, job.limit] for job in jobs]
    return digest([*named, jobs[0].tokens.fingerprint if jobs and jobs[0].tokens else None])
