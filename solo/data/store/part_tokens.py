"""The second layer of a part: its tokens, made from the records of the first layer with one tokenizer and template.

<part>.<tokens>.json              `TokensManifest`, written last
<part>.<tokens>.tokens            the concatenated tokens of all texts, as little-endian integers
<part>.<tokens>.runs.npz          the part's section of the index, and checksums of the tokens
<part>.<tokens>.quarantine.jsonl  records that the template refuses
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from solo.data.readers import Unreadable
from solo.data.record import Image
from solo.data.store.checksums import BlockSums, FileSum
from solo.data.store.index import IMAGE, MOST_TOKENS, SUPERVISED_TEXT, joined_runs
from solo.data.store.part import PartManifest, StoredImage, StoredRecord
from solo.data.store.part_files import PartFiles, Quarantine, read_manifest, write_manifest
from solo.data.text import Tokenizer
from solo.data.text.templates import Runs, Template

_BATCH, _BATCH_CHARACTERS = 64, 1 << 20  # maximum records and characters per tokenizer call


@dataclass(frozen=True)
class TokensManifest:
    """The manifest of a part's second layer.

    records            records that have runs
    runs               runs of these records
    images             runs that are images
    text_tokens        tokens in `.tokens`
    supervised_tokens  tokens that the model learns to predict
    unknown_tokens     unknown tokens, which stand for characters that the vocabulary lacks
    width              bytes per token
    quarantined        records that the template refuses
    refused            the first few of them, for messages
    files              size and checksum of every file, by suffix
    """

    records: int
    runs: int
    images: int
    text_tokens: int
    supervised_tokens: int
    unknown_tokens: int
    width: int
    quarantined: int
    refused: list[str]
    files: dict[str, FileSum]

    @classmethod
    def read(cls, folder: Path, part: str, tokens: str) -> TokensManifest | None:
        """Returns the manifest of a part's tokens; None if it is missing or has another format."""
        return read_manifest(cls, folder / f"{part}.{tokens}.json")


def no_record(source: str, layers: Sequence[PartManifest | TokensManifest]) -> str:
    """Returns a description of why no record of a source is left."""
    filtered = Counter[str]()
    for layer in layers:
        filtered.update(layer.filtered if isinstance(layer, PartManifest) else {})
    counts = [f"{sum(layer.quarantined for layer in layers):,} quarantined"]
    counts += [f"{count:,} filtered by {key}" for key, count in filtered.most_common()]
    shown = [reason for layer in layers for reason in layer.refused][:3]
    return f"source {source!r}: no usable record; {', '.join(counts)}" + "".join(f"\n  {line}" for line in shown)


class PartRuns(NamedTuple):
    """A part's section of the index: the r runs of its n records.

    runs        uint32 [r]    as in `SourceIndex`, but image numbers refer to the part's table
    record_run  int64 [n+1]   record i has the runs [record_run[i], record_run[i+1]); none if the template refuses it
    sums        uint32 [b]    checksums of the blocks of `.tokens`
    """

    runs: np.ndarray
    record_run: np.ndarray
    sums: np.ndarray


def read_runs(folder: Path, part: str, tokens: str) -> PartRuns:
    """Returns a part's section of the index."""
    with np.load(folder / f"{part}.{tokens}.runs.npz") as arrays:
        return PartRuns(*(arrays[name] for name in PartRuns._fields))


def token_width(tokenizer: Tokenizer) -> int:
    """Returns the number of bytes per stored token for a vocabulary: 2 or 4."""
    return 2 if tokenizer.vocab_size <= 1 << 16 else 4


class TokensWriter:
    """Writes the second layer of a part. Use it as a context manager: no file appears before `finish`.

    Args:
        folder: the source's `parts` folder.
        part: fingerprint of the part.
        tokens: fingerprint of tokenizer and template.
        template: converts records to runs.
        width: bytes per token.
    """

    def __init__(self, folder: Path, part: str, tokens: str, template: Template, width: int) -> None:
        self._files = PartFiles(folder, f"{part}.{tokens}")
        self._template, self._width, self._tokens_name = template, width, tokens
        self._file: IO[bytes] | None = None
        self._quarantine = Quarantine(self._files)
        self._sums = BlockSums()
        self._waiting: list[StoredRecord] = []
        self._characters = 0
        self._runs, self._ends = array("I"), array("q", [0])
        self._tokens = self._unknown = 0

    def __enter__(self) -> TokensWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._files.discard()

    def add(self, stored: StoredRecord) -> None:
        """Adds the part's next record. A record that the template refuses is quarantined and has no runs."""
        self._waiting.append(stored)
        for turn in stored.record.turns:
            for part in turn.content:
                if isinstance(part, str):
                    self._characters += len(part)
        if len(self._waiting) == _BATCH or self._characters >= _BATCH_CHARACTERS:
            self._tokenize()

    def _tokenize(self) -> None:
        """Tokenizes the pending records and writes their tokens."""
        waiting, self._waiting, self._characters = self._waiting, [], 0
        batch = self._template.batch_runs([stored.record.turns for stored in waiting])
        tokens: list[int] = []
        for stored, runs in zip(waiting, batch, strict=True):
            try:
                if isinstance(runs, ValueError):
                    raise runs
                tokens += self._add(runs)
            except ValueError as error:
                reason = f"its text is not valid Unicode: {error}" if isinstance(error, UnicodeError) else str(error)
                record = stored.record
                self._quarantine.add(Unreadable(record.id, reason, record.place), stored.example)
            self._ends.append(len(self._runs))
        self._write(tokens)

    def finish(self, turned: np.ndarray, part: str | None = None) -> TokensManifest:
        """Writes the runs and then the manifest, which marks the layer as complete.

        Args:
            turned: bool [m], from the part's image table.
            part: another fingerprint of the part to name the files.
        """
        self._tokenize()
        self._files.stem = f"{part}.{self._tokens_name}" if part else self._files.stem
        runs = np.array(self._runs, np.uint32)
        kinds, values = runs >> 30, runs & MOST_TOKENS
        image = kinds == IMAGE
        runs[image] += turned[values[image]].astype(np.uint32) << np.uint32(30)
        if len(self._ends) > 1:
            with self._files.new("runs.npz").open("wb") as file:
                np.savez_compressed(file, runs=runs, record_run=np.array(self._ends), sums=self._sums.sums())
        self._close()
        manifest = TokensManifest(
            records=int(np.count_nonzero(np.diff(self._ends))),
            runs=len(runs),
            images=int(image.sum()),
            text_tokens=self._tokens,
            supervised_tokens=int(values[kinds == SUPERVISED_TEXT].sum()),
            unknown_tokens=self._unknown,
            width=self._width,
            quarantined=self._quarantine.count,
            refused=self._quarantine.shown,
            files=self._files.keep(),
        )
        write_manifest(self._files.path("json"), manifest)
        return manifest

    def _add(self, runs: Runs) -> list[int]:
        """Adds the runs of a record. Returns its tokens."""
        found, tokens, learned = joined_runs(runs, _stored), list[int](), False
        for run in runs:
            if not isinstance(run, Image):
                tokens += run.tokens
                learned = learned or run.supervised
        if not learned:
            raise ValueError("it has no assistant or text turn to learn from")
        self._runs.extend(found)
        return tokens

    def _write(self, tokens: list[int]) -> None:
        if not tokens:
            return
        if self._file is None:
            self._file = self._files.new("tokens").open("wb")
        held = np.array(tokens, f"<u{self._width}")
        if self._template.unknown is not None:
            self._unknown += int(np.count_nonzero(held == self._template.unknown))
        data = held.tobytes()
        self._sums.add(data)
        self._file.write(data)
        self._tokens += len(tokens)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._quarantine.close()


def _stored(image: Image) -> tuple[int, bool]:
    """Returns an image's number in the part's table, and False: `finish` sets which images are turned."""
    assert isinstance(image, StoredImage)
    return image.number, False


def as_tokens(data: bytes, width: int) -> np.ndarray:
    """Returns bytes of a `.tokens` file as tokens, uint16 or uint32."""
    return np.frombuffer(data, f"<u{width}")
