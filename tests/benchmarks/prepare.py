"""Preparing against a plain parallel loop that reads and checks the same files: `python -m tests.benchmarks.prepare`.

The loop parses the lines, and reads and decodes the images, in as many processes; it writes nothing. Both run in turn,
and the time that their processes take to start counts for both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from solo.config import Config, parse_config
from solo.data.images.check import ALL_IMAGES
from solo.data.store.prepare import prepare
from solo.data.store.work import check_image
from solo.data.store.workers import available_cores

RECORDS_OF_A_PART = 256


def photographs(folder: Path, count: int) -> Path:
    """Writes JPEG files of 640 x 480 and a conversation on each."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        small = PillowImage.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8))
        small.resize((640, 480), PillowImage.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is noise {number}."}]
        lines.append(json.dumps({"id": str(number), "image": f"{number}.jpg", "conversations": turns}) + "\n")
    (folder / "all.jsonl").write_text("".join(lines))
    return folder / "all.jsonl"


def config(lines: Path, folder: Path) -> Config:
    """Returns a config that prepares the conversations into a folder."""
    source = {"reader": "llava", "options": {"path": str(lines), "images": str(lines.parent / "images")}}
    tokenizer = {"vocab_size": 320}
    data = {"folder": str(folder), "tokenizer": tokenizer, "records_per_shard": RECORDS_OF_A_PART}
    return parse_config(
        {
            "name": "benchmark",
            "data": {**data, "sources": {"photographs": source}},
            "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32},
        }
    )


def check(lines: list[str], folder: str) -> int:
    """Reads and decodes the images of some lines. Returns their number."""
    from solo.data.record import Image

    for text in lines:
        check_image(Image((Path(folder) / json.loads(text)["image"]).read_bytes()), ALL_IMAGES)
    return len(lines)


def plain_loop(lines: Path, workers: int) -> float:
    """Returns the seconds that the loop takes."""
    began = time.perf_counter()
    read = lines.read_text().splitlines()
    pieces = [read[start : start + RECORDS_OF_A_PART] for start in range(0, len(read), RECORDS_OF_A_PART)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = sum(pool.map(check, pieces, [str(lines.parent / "images")] * len(pieces)))
    assert done == len(read)
    return time.perf_counter() - began


def preparation(lines: Path, folder: Path, workers: int) -> float:
    """Returns the seconds that preparing takes."""
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    prepare(config(lines, folder), workers=workers)
    return time.perf_counter() - began


def main() -> None:
    """Print the speed of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lines = photographs(Path(temporary) / "input", options.images)
        pairs = []
        for _ in range(options.rounds):
            loop = plain_loop(lines, options.workers)
            pairs.append((loop, preparation(lines, Path(temporary) / "data", options.workers)))
            print(
                f"plain loop {options.images / loop:,.0f} images/s, solo prepare {options.images / pairs[-1][1]:,.0f}"
                f" images/s: {loop / pairs[-1][1]:.1%}",
                flush=True,
            )
        print(f"median of {len(pairs)}: {statistics.median(loop / ours for loop, ours in pairs):.1%} of the plain loop")


if __name__ == "__main__":
    main()
