"""One input of the fuzzer, made from its name and number alone."""

from __future__ import annotations

import shutil
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from tests.fuzz.checks import Found, check_image, check_preparation, check_source
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.seeds import Seed, all_seeds, image_seeds, tfds_seed
from tests.fuzz.sources import Source, make_source

IMAGES = "image-"
TFDS = ("tfds", "auto-tfds")
PREPARED_EVERY = 20  # one in so many inputs is prepared too


@dataclass(frozen=True, order=True)
class Case:
    """An input: the seed and a number, from which its changes follow."""

    seed: str
    number: int

    def __str__(self) -> str:
        return f"{self.seed}:{self.number}"


@lru_cache(maxsize=1)
def _seeds() -> dict[str, Seed]:
    return all_seeds()


@lru_cache(maxsize=1)
def _tfds() -> Seed:
    return tfds_seed()


@lru_cache(maxsize=1)
def _images() -> dict[str, list[bytes]]:
    return image_seeds()


def names(tfds: bool = True) -> list[str]:
    """Returns the names of all seeds."""
    return [*_seeds(), *(TFDS if tfds else ()), *(IMAGES + kind for kind in _images())]


def reader_of(name: str) -> str:
    """Returns what a seed tests: a reader, or the decoding of images."""
    if name.startswith(IMAGES):
        return "images"
    return name if name == "tfds" else "auto" if name in TFDS else _seeds()[name].reader


def write(case: Case, folder: Path) -> Source | bytes:
    """Makes an input in a folder, which is emptied. Returns the source, or an image file."""
    random = Random(str(case))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if case.seed.startswith(IMAGES):
        data = mutate_bytes(random.choice(_images()[case.seed.removeprefix(IMAGES)]), random)
        (folder / "image").write_bytes(data)
        return data
    seed = _tfds() if case.seed in TFDS else _seeds()[case.seed]
    if case.seed == "auto-tfds":
        seed = Seed("auto", ({"path": seed.options[0]["path"]},), seed.files, seed.main)
    return make_source(seed, folder / "source", random)


def run(case: Case, folder: Path, tokenizer: Path) -> Found:
    """Makes an input in a folder, and checks what must hold of it. An error that leaves a reader is a fault."""
    found = Found()
    try:
        made = write(case, folder)
        if isinstance(made, bytes):
            check_image(made, found)
            return found
        check_source(made, found)
        if case.number % PREPARED_EVERY == 0:
            check_preparation(made, folder, tokenizer, found)
    except Exception:
        found.faults.append(traceback.format_exc())
    return found
