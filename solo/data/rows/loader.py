"""The batches of one host, prefetched by threads or worker processes.

Grain is used only for prefetching. Every host computes the same plan, which assigns documents to batches, and reads
only its own rows. There is no iterator state to save: a loader can start at any step, on any number of hosts.

Grain is imported lazily, because it imports jax if that is installed, and nothing else in `solo.data` does. Worker
processes import jax too, but never use a device.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from solo.batch import Batch
from solo.config import ConfigError, DataConfig, ImageConfig, SequenceConfig
from solo.data.images.patches import require_decoder
from solo.data.planning.stage_plan import Chunk, StagePlan
from solo.data.record import Image
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import PATCH, Document, encode
from solo.data.store.source import Piece
from solo.data.text import Tokenizer
from solo.data.text.templates import TextRun
from solo.files import append_json_line
from solo.statuses import TransientError

_log = logging.getLogger(__name__)
_PLAIN = SequenceConfig()
_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")  # Grain's error message


class Source(Protocol):
    """The part of `solo.data.store.source.PreparedSource` that the loader needs."""

    def id(self, number: int) -> str:
        """Returns the id of record `number`, from 0."""
        ...

    def whole(self, number: int) -> list[TextRun | Image]:
        """Returns all runs of record `number`."""
        ...

    def chunk(self, number: int, start: int, stop: int, image: ImageConfig) -> Piece:
        """Returns the slots [start, stop) of record `number`."""
        ...


class RowSource:
    """A host's rows with random access: with n rows per batch, item i is row i % n of step i // n.

    Args:
        plan: the packing plan, which assigns documents to rows.
        sources: sources of the plan's mixture, in mixture order.
        tokenizer: provides the image delimiter tokens. Text was tokenized when the sources were prepared.
        image: patch size, tiles and delimiters of images.
        rows: the host's rows of every batch.
        start_step: step of item 0.
        quarantine: file to which one JSON line is appended for every document that cannot be read.
        sequence: positions and sliding window.
        steps_before: steps of the run before this stage; lines of `quarantine` contain the run's step, from 1.

    Raises:
        ConfigError: the libraries of `image.decoder` are not installed.
    """

    def __init__(
        self,
        plan: StagePlan,
        sources: Mapping[str, Source],
        tokenizer: Tokenizer,
        image: ImageConfig,
        rows: range,
        start_step: int = 0,
        quarantine: Path | None = None,
        sequence: SequenceConfig = _PLAIN,
        steps_before: int = 0,
    ) -> None:
        require_decoder(image)
        self._steps_before = steps_before
        self._sequence = sequence
        self._plan, self._sources, self._tokenizer, self._image = plan, dict(sources), tokenizer, image
        self._names = list(sources)
        self._rows, self._start_step, self._quarantine = rows, start_step, quarantine

    def __len__(self) -> int:
        return max(self._plan.num_steps - self._start_step, 0) * len(self._rows)

    def __getitem__(self, item: int) -> Batch:
        """Returns a row without the B axis. If a document cannot be read, its slots stay empty."""
        step, row = divmod(int(item), len(self._rows))
        step += self._start_step
        chunks = self._plan.row(step, self._rows[row])
        documents = [(self._document(chunk, step), chunk.source) for chunk in chunks]
        readable = [(document, source) for document, source in documents if document is not None]
        pad = self._tokenizer.special.pad
        average = self._plan.stage.loss.average
        return assemble_row(readable, self._plan.shape, self._image, pad, self._sequence, average)

    def __repr__(self) -> str:
        return f"RowSource(stage={self._plan.stage.name!r}, rows={self._rows}, start_step={self._start_step})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickles in a worker process, which then ignores SIGTERM: schedulers send it to all processes of a job."""
        self.__dict__.update(state)
        if multiprocessing.parent_process() is not None:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _document(self, chunk: Chunk, step: int) -> Document | None:
        # One bad document must not end a long run, so it is only recorded in the quarantine file.
        try:
            return read_document(self._sources[self._names[chunk.source]], chunk, self._tokenizer, self._image)
        except Exception as error:
            self._report(chunk, error, step)
            return None

    def _report(self, chunk: Chunk, error: Exception, step: int) -> None:
        if self._quarantine is None:
            return
        name = self._names[chunk.source]
        known = _id(self._sources[name], chunk.record)
        line = {
            "source": name,
            "id": chunk.record if known is None else known,
            "reason": f"{type(error).__name__}: {error}",
            "step": self._steps_before + step + 1,
        }
        try:
            append_json_line(self._quarantine, line)
        except OSError as failure:
            _log.warning("cannot write to %s (%s): %s", self._quarantine, failure, line)


def read_document(source: Source, chunk: Chunk, tokenizer: Tokenizer, image: ImageConfig) -> Document:
    """Reads and encodes a chunk.

    Raises:
        ValueError: the document does not match the plan.
        Exception: the chunk cannot be read for any other reason.
    """
    if chunk.stop - chunk.start == chunk.length:
        document = encode(source.whole(chunk.record), tokenizer, image)
        length = len(document.tokens)
    else:
        piece = source.chunk(chunk.record, chunk.start, chunk.stop, image)
        encoded = encode(piece.parts, tokenizer, image, piece.images, piece.first_image)
        document, length = encoded.chunk(piece.skip, piece.skip + chunk.stop - chunk.start), piece.length
    _check(length, document, chunk)
    return document


def _check(length: int, document: Document, chunk: Chunk) -> None:
    """Raises ValueError if a document does not match the plan, because it might not fit its row."""
    is_patch = document.tokens == PATCH
    found = length, int(is_patch.sum()), int((~is_patch).sum()), int(document.supervised[1:].sum())
    planned = chunk.length, *chunk.needs
    if found != planned:
        raise ValueError(
            f"slots, patches, text tokens and targets are {found}, but the index says {planned}; the index was made "
            "from other data or with another tokenizer, so prepare the data again"
        )


class WorkerError(TransientError):
    """A worker process of the loader was killed or crashed."""


class RowBatches:
    """Iterates over the rows of a source in batches, prefetched by threads or worker processes.

    Call `close` at the end, or use `with`.

    Args:
        source: rows with random access and a length.
        batch_rows: rows per batch.
        data: numbers of worker processes and prefetched batches.
    """

    def __init__(self, source: Any, batch_rows: int, data: DataConfig) -> None:
        self._batches: Any = _prefetched(source, batch_rows, data)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            batch: Batch = next(self._batches)
        except RuntimeError as error:
            found = _DIED.search(str(error))
            if found is None:
                raise
            raise WorkerError(
                f"a process that reads data ended unexpectedly, with exit code {found[1]}. Systems kill processes when"
                " they run out of memory: lower data.worker_processes or data.prefetch_batches. The same command"
                " resumes from the last checkpoint"
            ) from None
        return batch

    def close(self) -> None:
        """Stops threads and worker processes. Required even after the last batch; no more batches follow."""
        if hasattr(self._batches, "close"):
            self._batches.close()
        # Grain's iterators print errors if they are garbage collected only at interpreter exit.
        self._batches = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Loader(RowBatches):
    """Iterates over a host's batches of the steps start_step .. num_steps - 1.

    Args:
        plan: plan of the stage.
        sources: sources of the stage's mixture, in mixture order.
        tokenizer: provides the image delimiter tokens. Text was tokenized when the sources were prepared.
        image: patch size, tiles and delimiters of images.
        data: numbers of worker processes and prefetched batches.
        process_index: index h of this host, which reads the rows [h * B / n, (h + 1) * B / n) of every batch.
        process_count: number n of hosts.
        start_step: first step, counted within the stage.
        quarantine: file to which one JSON line {"source", "id", "reason", "step"} is appended for every document that
            cannot be read; its slots stay empty. `id` is the record's number if the record itself is unreadable.
        sequence: positions and sliding window.
        steps_before: steps of the run before this stage; `step` in `quarantine` counts the run's steps from 1.

    Raises:
        ConfigError: batch_rows is not a multiple of the hosts, or the sources are not those of the mixture.
    """

    def __init__(
        self,
        plan: StagePlan,
        sources: Mapping[str, Source],
        tokenizer: Tokenizer,
        image: ImageConfig,
        data: DataConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
        quarantine: Path | None = None,
        sequence: SequenceConfig = _PLAIN,
        steps_before: int = 0,
    ) -> None:
        if tuple(sources) != plan.stage.sources:
            raise ConfigError(
                f"stage {plan.stage.name!r} mixes {list(plan.stage.sources)}, but was given {list(sources)}"
            )
        local, left = divmod(plan.stage.batch_rows, process_count)
        if left:
            raise ConfigError(
                f"stage {plan.stage.name!r}: batch_rows {plan.stage.batch_rows} is not a multiple of the "
                f"{process_count} hosts"
            )
        rows = range(process_index * local, (process_index + 1) * local)
        source = RowSource(plan, sources, tokenizer, image, rows, start_step, quarantine, sequence, steps_before)
        super().__init__(source, local, data)


def _prefetched(source: Any, batch_rows: int, data: DataConfig) -> Any:
    """Returns a Grain iterator over stacked batches."""
    import grain

    dataset = grain.MapDataset.source(source).batch(batch_rows, batch_fn=stack)
    threads = min(data.prefetch_batches, os.cpu_count() or 1)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=data.prefetch_batches)
    batches = dataset.to_iter_dataset(reading)
    if data.worker_processes:
        from absl import flags

        # Grain passes absl flags to its workers, which fails if they were not parsed; normally absl.app parses them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        per_worker = -(-data.prefetch_batches // data.worker_processes)
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.worker_processes, per_worker_buffer_size=per_worker)
        )
    return iter(batches)


def batch_record_ids(plan: StagePlan, sources: Mapping[str, Source], step: int) -> list[dict[str, Any]]:
    """Returns {"source", "record", "id"} for every document of a batch, over the rows of all hosts.

    `id` is None if the record cannot be read.
    """
    names = list(sources)
    chunks = sorted({(chunk.source, chunk.record) for row in plan.rows(step) for chunk in row})
    return [
        {"source": names[source], "record": record, "id": _id(sources[names[source]], record)}
        for source, record in chunks
    ]


def _id(source: Source, record: int) -> str | None:
    try:
        return source.id(record)
    except Exception:
        return None
