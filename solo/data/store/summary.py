"""The lines that preparation prints about a source: its content, and the examples left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from solo.config import Config
from solo.data.images.geometry import too_thin
from solo.data.store.part import PartManifest
from solo.data.store.part_files import reason_kind
from solo.data.store.source import PreparedSource

_REASONS_SHOWN = 5


def summary(name: str, source: PreparedSource, config: Config, seconds: float | None) -> str:
    """Returns a line about a source; `seconds` is None if it was already prepared."""
    made = source.description
    if seconds is None:
        return f"{name}: {made.records:,} records, already prepared{_thin_images(source, config)}"
    filtered = sum(made.filtered.values())
    by_setting = ", ".join(f"{key} {count:,}" for key, count in sorted(made.filtered.items()))
    left_out = f"{made.quarantined:,} quarantined" + (f", {filtered:,} filtered ({by_setting})" if filtered else "")
    unknown = f" ({made.unknown_tokens:,} for unknown characters)" if made.unknown_tokens else ""
    return (
        f"{name}: {made.records:,} records, {made.images:,} images, {made.text_tokens:,} text tokens{unknown},"
        f" {left_out} of {made.examples:,} read ({seconds:.1f} s){_thin_images(source, config)}"
    )


def quarantine_lines(source: PreparedSource) -> Iterator[str]:
    """Yields a line for each of the most frequent reasons why examples were quarantined."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    with (source.folder / "quarantine.jsonl").open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            kind = reason_kind(line["reason"])
            counts[kind] += 1
            if kind not in first:
                place = f"{line['file']}:{line['line']}" if line["line"] else line["file"]
                first[kind] = f"{line['id']}: {line['reason']}" + (f" ({place})" if place else "")
    for kind, count in counts.most_common(_REASONS_SHOWN):
        yield f"  {count:,} left out, such as {_printable(first[kind])}"
    if len(counts) > _REASONS_SHOWN:
        rest = sum(count for _, count in counts.most_common()[_REASONS_SHOWN:])
        yield f"  {rest:,} left out for other reasons; see {source.folder}/quarantine.jsonl"


def left_aside(name: str, parts: Sequence[PartManifest]) -> Iterator[str]:
    """Yields a line for each kind of piece that the reader omitted from records, and for each key that it ignored."""
    omitted: Counter[str] = Counter()
    for part in parts:
        omitted.update(part.omitted)
    for what, count in omitted.most_common():
        yield f"  {count:,} {what} are left out of records of {name}"
    places: dict[str, str] = {}
    for part in parts:
        for key, place in part.ignored.items():
            places.setdefault(key, place)
    for key, place in places.items():
        yield f"  key {key!r} of {name} is not read" + (f"; it is first in {_printable(place)}" if place else "")


def _printable(text: str) -> str:
    """Returns a text that every terminal can print. A file name may contain bytes that are not valid characters."""
    return text.encode(errors="backslashreplace").decode()


def _thin_images(source: PreparedSource, config: Config) -> str:
    """Returns a note about images with a side that the geometry rounds down to zero; empty if there are none."""
    index = source.index
    sizes = (index.image_sizes(config.image.exif, *block) for block in index.blocks())
    count = sum(int(too_thin(size[:, 0], size[:, 1], config.image).sum()) for size in sizes)
    return f"; {count:,} images are so thin that resizing leaves only one row of patches" if count else ""
