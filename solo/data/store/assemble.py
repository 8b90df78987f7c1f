"""Joins the parts of a source into an index and a description.

Tokens are not read. Images are read only if parts share some (`solo.data.store.sharing`).

    index/<content>/runs.npy, record_run.npy, image_size.npy   `SourceIndex`
    index/<content>/tokens_before.npy  int64 [ceil(N / 64)]  text tokens before every 64th record
    index/<content>/token_sums.npy     uint32 [B]            checksums of the blocks of all token files
    index/<content>/parts.npy          int64 [P+1, 4]        records, tokens, stored images and entries of token_sums
                                                             before each part
    index/<content>/excluded.npy       int64 [E, 2]          for each excluded record, in order: its number among all
                                                             records of the parts, and the tokens of all excluded
                                                             records up to and including it
    quarantine.jsonl                   one line per quarantined example, with its source
    filtered.jsonl                     a sample of the filtered records, up to 100 per part and setting
    source.json                        `Description`, written last

The output is deterministic: the same parts give the same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from solo.config import ConfigError
from solo.data.store.checksums import BLOCK, file_sum
from solo.data.store.description import Description, PartEntry
from solo.data.store.index import IMAGE, MOST_IMAGES, MOST_TOKENS, SUPERVISED_TEXT, SourceIndex
from solo.data.store.part import ImageTable, PartManifest, read_table
from solo.data.store.part_files import PARTIAL, reason_kind
from solo.data.store.part_tokens import PartRuns, TokensManifest, no_record, read_runs
from solo.data.store.sharing import SharedImages, remove_copies, share_images
from solo.files import json_line, write_whole

TOKENS_EVERY = 64  # records between two entries of `tokens_before`
_NO_RECORDS = np.zeros(0, np.int64)


def assemble(
    folder: Path,
    source: str,
    parts: Sequence[str],
    tokens: str,
    fingerprint: str,
    excluded: np.ndarray = _NO_RECORDS,
) -> Description:
    """Makes a prepared source from complete parts.

    Args:
        folder: the source's folder, with its parts in `parts`.
        source: the source's name, for messages and `quarantine.jsonl`.
        parts: fingerprints of the parts, in record order.
        tokens: fingerprint of tokenizer and template.
        fingerprint: fingerprint of everything that the source is made from.
        excluded: sorted numbers, int64 [n], of records to leave out, such as duplicates. Numbering runs over the
            records of all parts, including records that the template refuses.

    Raises:
        ConfigError: a part is incomplete, or no record is left.
        LostImagesError: some parts must be made again, because they dropped images that no other part holds any more.
    """
    made = [_Part.read(folder / "parts", part, tokens) for part in parts]
    shared = share_images(folder / "parts", parts, [part.first for part in made])
    made = [replace(part, first=first) for part, first in zip(made, shared.manifests, strict=True)]
    content = _digest([*parts, tokens], excluded)
    partial = folder / "index" / f".{content}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}"
    partial.mkdir(parents=True)
    try:
        index, left_out = _write_index(partial, source, made, shared, excluded)
        sums = {path.name: file_sum(path) for path in sorted(partial.iterdir())}
        _replace(partial, folder / "index" / content)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    quarantined = sum(part.first.quarantined + part.second.quarantined for part in made)
    reasons = _write_quarantine(folder, source, made)
    _write_filtered(folder, source, made)
    images, text, supervised = _totals(index)
    description = Description(
        fingerprint=fingerprint,
        content=content,
        tokens=tokens,
        width=max(part.second.width for part in made),
        examples=sum(part.first.examples for part in made),
        records=len(index),
        quarantined=quarantined,
        reasons=reasons,
        filtered=_filtered(made, left_out),
        images=images,
        distinct_images=len(index.image_size),
        text_tokens=text,
        supervised_tokens=supervised,
        unknown_tokens=sum(part.second.unknown_tokens for part in made),
        parts=[part.entry(tokens) for part in made],
        index=sums,
    )
    description.write(folder)
    remove_copies(folder / "parts", parts, shared.manifests)
    return description


@dataclass(frozen=True)
class _Part:
    """A complete part."""

    folder: Path
    name: str
    tokens: str
    first: PartManifest
    second: TokensManifest

    @classmethod
    def read(cls, folder: Path, name: str, tokens: str) -> _Part:
        first, second = PartManifest.read(folder, name), TokensManifest.read(folder, name, tokens)
        if first is None or second is None:
            raise ConfigError(f"part {name} in {folder} is not complete; run: solo prepare CONFIG")
        return cls(folder, name, tokens, first, second)

    def table(self) -> ImageTable:
        return read_table(self.folder, self.name)

    @property
    def blocks(self) -> int:
        return -(-self.second.text_tokens * self.second.width // BLOCK)

    def runs(self) -> PartRuns:
        return read_runs(self.folder, self.name, self.tokens)

    def entry(self, tokens: str) -> PartEntry:
        files = {f"{self.name}.{end}": found for end, found in self.first.files.items()}
        files |= {f"{self.name}.{tokens}.{end}": found for end, found in self.second.files.items()}
        return PartEntry(self.name, self.first.part, self.first.records, files)


def _write_index(
    folder: Path, source: str, parts: Sequence[_Part], shared: SharedImages, excluded: np.ndarray
) -> tuple[SourceIndex, int]:
    """Writes the arrays of the index. Returns the index and the number of excluded records that have runs."""
    before = np.zeros((len(parts) + 1, 4), np.int64)
    sizes = [(part.first.records, part.second.text_tokens, part.first.stored.sum(), part.blocks) for part in parts]
    np.cumsum(np.asarray(sizes, np.int64).reshape(-1, 4), axis=0, out=before[1:])
    np.save(folder / "parts.npy", before)
    if before[-1, 2] > MOST_IMAGES:
        raise ConfigError(f"source {source!r} has {before[-1, 2]:,} images; the most is {MOST_IMAGES:,}: divide it")
    bounds = np.searchsorted(excluded, before[:, 0])
    dropped = [
        excluded[first:last] - start for first, last, start in zip(bounds[:-1], bounds[1:], before[:-1, 0], strict=True)
    ]
    kept = [_kept(part, drop) for part, drop in zip(parts, dropped, strict=True)]
    records, runs = (sum(column) for column in zip((0, 0), *kept, strict=True))
    if not records:
        raise ConfigError(no_record(source, [layer for part in parts for layer in (part.first, part.second)]))
    index = SourceIndex(
        _new(folder / "runs.npy", (runs,), np.uint32),
        _new(folder / "record_run.npy", (records + 1,), np.uint32 if runs < 1 << 32 else np.int64),
        _new(folder / "image_size.npy", (int(before[-1, 2]), 2), np.uint16),
    )
    sums = _new(folder / "token_sums.npy", (int(before[-1, 3]),), np.uint32)
    index.record_run[0] = 0
    gone: list[np.ndarray] = []
    record = run = 0
    for place, (part, drop) in enumerate(zip(parts, dropped, strict=True)):
        if not part.first.records:
            continue
        piece = part.runs()
        sums[before[place, 3] : before[place + 1, 3]] = piece.sums
        lengths, piece_tokens = np.diff(piece.record_run), _tokens_of_records(piece)
        out = lengths == 0
        out[drop] = True
        gone.append(np.stack([before[place, 0] + np.flatnonzero(out), piece_tokens[out]], axis=1))
        values = piece.runs[np.repeat(~out, lengths)]
        image = values >> 30 >= IMAGE
        if part.first.images:
            numbers = shared.number[shared.first[place] : shared.first[place + 1]]
            values[image] = values[image] & ~np.uint32(MOST_IMAGES) | numbers[values[image] & MOST_IMAGES]
            index.image_size[before[place, 2] : before[place + 1, 2]] = part.table().size[part.first.stored]
        count = int((~out).sum())
        index.runs[run : run + len(values)] = values
        index.record_run[record + 1 : record + count + 1] = run + np.cumsum(lengths[~out])
        record, run = record + count, run + len(values)
    missing = np.concatenate([np.zeros((0, 2), np.int64), *gone])
    missing[:, 1] = np.cumsum(missing[:, 1])
    np.save(folder / "excluded.npy", missing)
    np.save(folder / "tokens_before.npy", _tokens_before(index))
    for array in (index.runs, index.record_run, index.image_size, sums):
        if isinstance(array, np.memmap):
            array.flush()
    return index, sum(part.second.records for part in parts) - records


def _kept(part: _Part, drop: np.ndarray) -> tuple[int, int]:
    """Returns the numbers of records and of runs of a part that are kept."""
    if not len(drop):
        return part.second.records, part.second.runs
    lengths = np.diff(part.runs().record_run)[drop]
    return part.second.records - int(np.count_nonzero(lengths)), part.second.runs - int(lengths.sum())


def _tokens_of_records(piece: PartRuns) -> np.ndarray:
    tokens = np.where(piece.runs >> 30 < IMAGE, piece.runs & MOST_TOKENS, 0).astype(np.int64)
    return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens)])[piece.record_run])


def _tokens_before(index: SourceIndex) -> np.ndarray:
    found, total = [_NO_RECORDS], 0
    for start, stop in index.blocks(TOKENS_EVERY << 10):
        tokens = np.where(index.run_kinds(start, stop) == IMAGE, 0, index.run_values(start, stop))
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens)]) + total
        ends = index.record_run[start:stop:TOKENS_EVERY].astype(np.int64) - int(index.record_run[start])
        found.append(sums[ends])
        total = int(sums[-1])
    return np.concatenate(found)


def _totals(index: SourceIndex) -> tuple[int, int, int]:
    """Returns the numbers of image runs, text tokens and supervised tokens."""
    images = text = supervised = 0
    for start, stop in index.blocks():
        kinds, values = index.run_kinds(start, stop), index.run_values(start, stop)
        images += int((kinds == IMAGE).sum())
        text += int(values[kinds != IMAGE].sum())
        supervised += int(values[kinds == SUPERVISED_TEXT].sum())
    return images, text, supervised


def _new(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Returns a new memory-mapped array. An empty array cannot be mapped, so it is written immediately."""
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _replace(partial: Path, final: Path) -> None:
    """Renames a folder. If another process was faster, its folder is kept, because it holds the same bytes."""
    if not final.exists():
        try:
            partial.rename(final)
            return
        except OSError:  # some bucket mounts can rename files but not folders
            final.mkdir(exist_ok=True)
    for path in list(partial.iterdir()):
        path.replace(final / path.name)


def _filtered(parts: Sequence[_Part], excluded: int) -> dict[str, int]:
    """Returns the number of filtered records by setting."""
    counts = Counter({"deduplicate": excluded} if excluded else {})
    for part in parts:
        counts.update(part.first.filtered)
    return dict(sorted(counts.items()))


def _write_filtered(folder: Path, source: str, parts: Sequence[_Part]) -> None:
    lines = []
    for part in parts:
        if part.first.filtered:
            text = (part.folder / f"{part.name}.filtered.jsonl").read_text(encoding="utf-8")
            lines += [json_line({"source": source} | json.loads(line)) for line in text.splitlines()]
    if lines:
        write_whole(folder / "filtered.jsonl", "".join(lines))
    else:
        (folder / "filtered.jsonl").unlink(missing_ok=True)


def _write_quarantine(folder: Path, source: str, parts: Sequence[_Part]) -> dict[str, int]:
    """Writes the quarantined examples. Returns their number by kind of reason, most frequent first."""
    lines, reasons = [], Counter[str]()
    for part in parts:
        for line in _quarantine_lines(part):
            reasons[reason_kind(line["reason"])] += 1
            lines.append(json_line({"source": source, **line}))
    write_whole(folder / "quarantine.jsonl", "".join(lines))
    return dict(reasons.most_common())


def _quarantine_lines(part: _Part) -> Iterator[dict[str, Any]]:
    """Yields the quarantine lines of both layers in example order."""
    layers = (
        (part.first.quarantined, part.name),
        (part.second.quarantined, f"{part.name}.{part.tokens}"),
    )
    read = [
        map(json.loads, (part.folder / f"{stem}.quarantine.jsonl").read_text(encoding="utf-8").splitlines())
        for count, stem in layers
        if count
    ]
    for line in heapq.merge(*read, key=lambda line: line["example"]):
        del line["example"]
        yield line


def _digest(names: Sequence[str], excluded: np.ndarray) -> str:
    found = hashlib.blake2b(json.dumps(names).encode(), digest_size=8)
    found.update(np.ascontiguousarray(excluded, np.int64).tobytes())
    return found.hexdigest()
