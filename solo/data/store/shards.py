"""A prepared source on disk: shards of records, their index, and a description.

<source>/shard-00000.array_record ...   `Record.to_bytes`, `records_per_shard` in each but the last
<source>/index.npz                      `SourceIndex`
<source>/quarantine.jsonl               one {"source", "id", "reason"} per example that was left out
<source>/source.json                    `Description`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from solo.data.record import Exif, Image, Record
from solo.data.store.index import SUPERVISED_TEXT, TEXT, IndexBuilder, SourceIndex
from solo.data.text.templates import TextRun

_OPEN_SHARDS = 256  # a source may have more shards than a process may have open files


@dataclass(frozen=True, slots=True)
class Description:
    """The content of `source.json`. Token counts exclude image delimiters and row tokens.

    fingerprint       hash of everything that the content was made from (`solo.data.store.prepare`)
    quarantined       examples that were left out
    supervised_tokens text tokens that the model learns to predict
    """

    fingerprint: str
    records: int
    records_per_shard: int
    quarantined: int
    images: int
    text_tokens: int
    supervised_tokens: int

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """Returns the description in a source's folder; None if it is missing or has another format."""
        try:
            return cls(**json.loads((folder / "source.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


class SourceWriter:
    """Writes records into an empty folder, in the order in which they come.

    Attributes:
        records: number of records written so far.
    """

    def __init__(self, folder: Path, records_per_shard: int, exif: Exif = "apply") -> None:
        self._folder = folder
        self._records_per_shard = records_per_shard
        self._index = IndexBuilder(exif)
        self.records = 0
        self._shard: ArrayRecordWriter | None = None

    def add(self, record: Record, parts: Sequence[TextRun | Image]) -> None:
        """Appends a record, whose runs are `parts`.

        Raises:
            OSError: the header of one of its images cannot be read; nothing is written.
            UnicodeEncodeError: its text has lone surrogates; nothing is written.
        """
        data = record.to_bytes()
        self._index.add(parts)
        if self.records % self._records_per_shard == 0:
            self._close_shard()
            path = _shard_path(self._folder, self.records // self._records_per_shard)
            self._shard = ArrayRecordWriter(str(path), "group_size:1")
        assert self._shard is not None
        self._shard.write(data)
        self.records += 1

    def finish(self, fingerprint: str, quarantined: int) -> Description:
        """Writes the index and then the description, which marks the source as complete."""
        self._close_shard()
        index = self._index.build()
        index.save(self._folder / "index.npz")
        learned = index.run_kind == SUPERVISED_TEXT
        text = learned | (index.run_kind == TEXT)
        description = Description(
            fingerprint=fingerprint,
            records=self.records,
            records_per_shard=self._records_per_shard,
            quarantined=quarantined,
            images=int((~text).sum()),
            text_tokens=int(index.run_size[text, 0].sum()),
            supervised_tokens=int(index.run_size[learned, 0].sum()),
        )
        (self._folder / "source.json").write_text(json.dumps(asdict(description), indent=2) + "\n")
        return description

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


class PreparedSource:
    """A prepared source with random access. Opens shards when they are first needed, and keeps them open.

    Thread-safe. Pickles as the name of its folder.

    Raises:
        FileNotFoundError: the folder holds no prepared source.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        description = Description.read(self.folder)
        if description is None:
            raise FileNotFoundError(f"{self.folder} holds no prepared source")
        self.description = description
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return self.description.records

    @cached_property
    def index(self) -> SourceIndex:
        """The runs of every record."""
        return SourceIndex.load(self.folder / "index.npz")

    def read(self, number: int) -> Record:
        """Returns record `number`, from 0. Raises IndexError outside the source."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {self.folder}, which has {len(self)}")
        shard, place = divmod(number, self.description.records_per_shard)
        return Record.from_bytes(self._shard(shard).read([place])[0])

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        return ArrayRecordReader(str(_shard_path(self.folder, shard)), "readahead_buffer_size:0")

    def __reduce__(self) -> tuple[type[PreparedSource], tuple[Path]]:
        return PreparedSource, (self.folder,)


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05}.array_record"
