"""Sources in memory, and a tokenizer with one token per character, so that tests can write out every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image as PillowImage

from solo.config import ImageConfig, SequenceConfig
from solo.data.readers import read
from solo.data.record import Image, Record, Turn, encode_png
from solo.data.rows.document import encode, runs
from solo.data.store.index import IndexBuilder, SourceIndex
from solo.data.store.source import Piece
from solo.data.text import SpecialTokens, Tokenizer
from solo.data.text.templates import TextRun

IMAGE = ImageConfig(patch_size=4, max_side=32)
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<vision>", "</vision>", "<vrow_sep>"]
SPECIAL += ["<|system|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>"]


class CharacterTokenizer(Tokenizer):
    """Token 100 + code point for every character; special tokens, in the order of `SPECIAL`, from 1 on."""

    special = SpecialTokens(bos=1, eos=2, pad=4)
    special_ids = frozenset(range(1, len(SPECIAL) + 1))
    vocab_size = 100 + 0x110000
    fingerprint = "characters"

    def encode(self, text: str) -> list[int]:
        return [100 + ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token - 100) for token in ids if token not in self.special_ids)

    def find(self, token: str) -> int | None:
        return SPECIAL.index(token) + 1 if token in SPECIAL else None

    def token(self, token_id: int) -> str:
        return SPECIAL[token_id - 1] if token_id in self.special_ids else chr(token_id - 100)

    def extended(self, tokens: Sequence[str]) -> CharacterTokenizer:
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        raise NotImplementedError


class MemorySource:
    """A prepared source whose records are in memory; those in `broken` cannot be read."""

    def __init__(
        self,
        records: Sequence[Record],
        broken: Mapping[int, Exception] | None = None,
        sequence: SequenceConfig = SequenceConfig(),  # noqa: B008 - frozen
    ) -> None:
        self._records, self._broken = list(records), dict(broken or {})
        self.runs = [runs(record.turns, CharacterTokenizer(), config=sequence) for record in self._records]
        builder = IndexBuilder()
        for found in self.runs:
            builder.add(found)
        self.index: SourceIndex = builder.build()

    def __len__(self) -> int:
        return len(self._records)

    def replace(self, number: int, record: Record) -> None:
        """Replaces a record after the source was indexed."""
        self._records[number], self.runs[number] = record, runs(record.turns, CharacterTokenizer())

    def id(self, number: int) -> str:
        if number in self._broken:
            raise self._broken[number]
        return self._records[number].id

    def whole(self, number: int) -> list[TextRun | Image]:
        if number in self._broken:
            raise self._broken[number]
        return self.runs[number]

    def chunk(self, number: int, start: int, stop: int, image: ImageConfig) -> Piece:
        """Returns the whole record, of which `start` slots are skipped."""
        parts = self.whole(number)
        length = len(encode(parts, CharacterTokenizer(), image).tokens)
        return Piece(parts, start, length, 0, len(self._records[number].images()))


def read_records(name: str, limit: int | None = None, /, **options: Any) -> list[Record]:
    """Returns the first `limit` records of a reader, all of which are readable."""
    found = list(read(name, options, limit))
    assert all(isinstance(example, Record) for example in found)
    return cast(list[Record], found)


def image_records(count: int, seed: int, name: str = "image") -> list[Record]:
    """A picture of 2-6 x 2-6 patches, a question of 2-8 characters, an answer of 1-6."""
    random = np.random.default_rng(seed)
    records = []
    for number in range(count):
        rows, columns, question, answer = random.integers((2, 2, 2, 1), (7, 7, 9, 7))
        side = IMAGE.patch_size
        pixels = random.integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)
        picture = encode_png(PillowImage.fromarray(pixels))
        turns = (Turn("user", (picture, "q" * question)), Turn("assistant", ("a" * answer,)))
        records.append(Record(f"{name}-{number}", turns))
    return records


def text_records(count: int, seed: int, shortest: int = 5, longest: int = 60) -> list[Record]:
    """Documents of `shortest` to `longest` characters."""
    lengths = np.random.default_rng(seed).integers(shortest, longest + 1, count)
    return [Record(f"text-{number}", (Turn("text", ("t" * length,)),)) for number, length in enumerate(lengths)]


def two_sources(count: int = 120) -> dict[str, MemorySource]:
    """Pictures with questions, and plain text."""
    return {"pictures": MemorySource(image_records(count, 0)), "text": MemorySource(text_records(count, 1))}
