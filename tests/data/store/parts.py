"""Prepared sources in which every token is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from solo.config import SequenceConfig
from solo.data.images.check import ALL_IMAGES
from solo.data.readers import Ignored, Unreadable
from solo.data.record import Record
from solo.data.store.assemble import assemble
from solo.data.store.part import PartWriter
from solo.data.store.part_tokens import TokensWriter
from solo.data.store.source import PreparedSource
from solo.data.store.work import check_image
from solo.data.text.templates import make_template
from tests.data.fakes import CharacterTokenizer

Example = Record | Unreadable | Ignored


def write_part(
    folder: Path, name: str, examples: Sequence[Example], sequence: SequenceConfig | None = None, width: int = 4
) -> str:
    """Writes a part of a source. Returns its name."""
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    template = make_template(CharacterTokenizer(), sequence or SequenceConfig())
    with (
        PartWriter(parts, name, f"all:{name}", lambda image: check_image(image, ALL_IMAGES)) as writer,
        TokensWriter(parts, name, "tok", template, width) as tokens,
    ):
        for example in examples:
            stored = writer.add(example)
            if stored is not None:
                tokens.add(stored)
        writer.finish()
        tokens.finish(writer.turned)
    return name


def write_source(
    folder: Path,
    *parts: Sequence[Example],
    excluded: Sequence[int] = (),
    sequence: SequenceConfig | None = None,
    width: int = 4,
) -> PreparedSource:
    """Writes and opens a source of these parts, which are named a, b, ..."""
    names = [write_part(folder, chr(97 + number), part, sequence, width) for number, part in enumerate(parts)]
    assemble(folder, "test", names, "tok", "settings", np.asarray(excluded, np.int64))
    return PreparedSource(folder)
