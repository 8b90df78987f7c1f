"""Measures what pieces of long records cost: `python -m tests.benchmarks.long_records`.

The same 200 photographs as one record and as 200, and the same 10 MB of text as one record and as 2,000, are read over
16 steps. Prints seconds, and the memory that rises above what was there before. Target: a long record costs no more
than short ones of the same content.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.planning.stage_plan import StagePlan
from solo.data.record import Image, Record, Turn
from solo.data.rows.loader import RowSource
from solo.data.store.source import PreparedSource
from tests.benchmarks.mixtures import data_config, stage
from tests.data.fakes import CharacterTokenizer
from tests.data.store.parts import write_source

STEPS = 16
PHOTOGRAPHS = 200
TEXT = 10_000_000
IMAGE = ImageConfig(patch_size=32, max_side=512)
ROUNDS = 3


def photographs() -> list[Image]:
    """Returns JPEG files of 500 x 375 pixels, as smooth as photographs are."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(PHOTOGRAPHS):
        small = PillowImage.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375), PillowImage.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(Image(buffer.getvalue()))
    return found


def records(contents: list[list[str | Image]]) -> list[Record]:
    """Returns a document for each content."""
    return [Record(str(number), (Turn("text", tuple(content)),)) for number, content in enumerate(contents)]


def rows_of(source: PreparedSource, row_slots: int) -> RowSource:
    """Returns the rows of 16 steps."""
    plan = StagePlan(
        stage({"all": 1.0}, batch_rows=1, steps=STEPS, row_slots=row_slots),
        {"all": source.index},
        IMAGE,
        data_config({"all": source}),
        seed=0,
    )
    return RowSource(plan, {"all": source}, CharacterTokenizer(), IMAGE, range(1))


def seconds(source: PreparedSource, row_slots: int) -> float:
    """Returns the time of the 16 steps, with files that are not open yet."""
    rows = rows_of(PreparedSource(source.folder), row_slots)
    started = time.perf_counter()
    for number in range(STEPS):
        assert rows[number].attend.any()
    return time.perf_counter() - started


def peak(source: PreparedSource, row_slots: int) -> float:
    """Returns the megabytes that one step allocates at most."""
    rows = rows_of(source, row_slots)
    tracemalloc.start()
    _ = rows[0]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 1e6


def main() -> None:
    """Prints a table."""
    pictures = photographs()
    text = "The quick brown fox jumps over the lazy dog. " * (TEXT // 45)
    cut = TEXT // 2000
    sources = {
        "photographs": (
            records([[part for picture in pictures for part in (picture, "A view.")]]),
            records([[picture, "A view."] for picture in pictures]),
            4096,
        ),
        "text": (
            records([[text]]),
            records([[text[start : start + cut]] for start in range(0, len(text), cut)]),
            8192,
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (one, many, row_slots) in sources.items():
            long, short = write_source(Path(folder, name, "one"), one), write_source(Path(folder, name, "many"), many)
            pairs = [(seconds(long, row_slots), seconds(short, row_slots)) for _ in range(ROUNDS)]
            slow, fast = (min(column) for column in zip(*pairs, strict=True))
            print(
                f"{name}: {slow:.2f} s for {STEPS} steps as one record, {fast:.2f} s as {len(many)}: {slow / fast:.2f}"
                f" times; a step allocates {peak(long, row_slots):.0f} MB and {peak(short, row_slots):.0f} MB"
            )
    print(f"largest resident size: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
