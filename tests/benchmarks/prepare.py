"""The speed of preparing: `python -m tests.benchmarks.prepare`, or with `--text`.

Photographs: against a plain parallel loop that reads and checks the same files. The loop parses the lines, and reads
and decodes the images, in as many processes; it writes nothing. Both run in turn, and the time that their processes
take to start counts for both.

Text: captions of about 60 characters in a JSONL file, with a BPE vocabulary of 20,000 tokens, on one core: against the
tokenizer's batch call alone, in processor time, because that does not count what other programs of the machine do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image as PillowImage

from solo.config import Config, parse_config
from solo.data.images.check import ALL_IMAGES
from solo.data.store.prepare import prepare
from solo.data.store.work import check_image
from solo.data.store.workers import available_cores

RECORDS_OF_A_PART = 256


def photographs(folder: Path, count: int) -> Path:
    """Writes JPEG files of 500 x 375 and a conversation on each."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        small = PillowImage.fromarray(random.integers(0, 256, (38, 50, 3), np.uint8))
        small.resize((500, 375), PillowImage.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is noise {number}."}]
        lines.append(json.dumps({"id": str(number), "image": f"{number}.jpg", "conversations": turns}) + "\n")
    (folder / "all.jsonl").write_text("".join(lines))
    return folder / "all.jsonl"


def config(lines: Path, folder: Path) -> Config:
    """Returns a config that prepares the conversations into a folder."""
    source = {"reader": "llava", "options": {"path": str(lines), "images": str(lines.parent / "images")}}
    tokenizer = {"vocab_size": 320}
    data = {"folder": str(folder), "tokenizer": tokenizer, "records_per_shard": RECORDS_OF_A_PART}
    return _config({**data, "sources": {"photographs": source}})


def _config(data: dict[str, Any], **sections: Any) -> Config:
    model = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32}
    return parse_config({"name": "benchmark", "data": data, "model": model, **sections})


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


def captions(count: int) -> list[str]:
    """Returns captions of made-up words, few of which are frequent, as in a language."""
    random = np.random.default_rng(0)
    consonants = "bcdfghklmnprstw"
    vowels = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "an", "en", "in", "on", "un", "ar", "er", "is")
    pieces = [first + second for first in consonants for second in vowels]
    words = ["".join(random.choice(pieces, length)) for length in random.choice([1, 1, 2, 2, 3], 30_000)]
    frequency = 1 / np.arange(1, len(words) + 1)
    drawn = random.choice(len(words), (count, 11), p=frequency / frequency.sum())
    lengths = random.integers(8, 12, count)
    return [
        " ".join(words[word] for word in row[:length]).capitalize() + "."
        for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True)
    ]


def train_tokenizer(texts: list[str], folder: Path) -> Path:
    """Writes a byte-level BPE tokenizer of 20,000 tokens."""
    level = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = level(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=20_000, special_tokens=["<s>", "</s>"], initial_alphabet=level.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def text_seconds(lines: Path, tokenizer: Path, folder: Path) -> float:
    """Returns the processor seconds of preparing captions in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    source = {"reader": "text", "options": {"path": str(lines)}}
    data = {"folder": str(folder), "tokenizer": {"path": str(tokenizer)}, "sources": {"captions": source}}
    plain = {"begin_token": None, "end_token": None, "row_token": None}
    config = _config(data, sequence={"template": "solo_pretrain"}, image=plain)
    began = time.process_time()
    prepare(config, workers=1)
    return time.process_time() - began


def tokenizer_seconds(texts: list[str], tokenizer: Path) -> float:
    """Returns the processor seconds that the tokenizer's batch call takes for the same captions."""
    made = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    began = time.process_time()
    for start in range(0, len(texts), 128):
        for found in made.encode_batch_fast(texts[start : start + 128], add_special_tokens=False):
            found.ids  # noqa: B018 - makes the list
    return time.process_time() - began


def time_text(count: int, rounds: int) -> None:
    """Print the records that one core prepares in a second of its time."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    texts = captions(count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = train_tokenizer(texts[:100_000], folder / "tokenizer")
        (folder / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for _ in range(rounds):
            alone = tokenizer_seconds(texts, tokenizer)
            ours = text_seconds(folder / "all.jsonl", tokenizer, folder / "data")
            print(
                f"solo prepare {count / ours:,.0f} records/s and core ({ours / count * 1e6:.1f} us), tokenizer alone"
                f" {count / alone:,.0f} ({alone / count * 1e6:.1f} us)",
                flush=True,
            )


def main() -> None:
    """Print the speed of preparing, and what it is measured against."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="store_true", help="captions instead of photographs")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.text:
        time_text(options.captions, options.rounds)
        return
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
