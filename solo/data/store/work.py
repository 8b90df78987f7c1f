"""The work of one part, as a function of a small job: the same in this process, in another, or on another machine."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo.config import ConfigError, SequenceConfig
from solo.data.readers import Examples, Ignored, Part, open_reader
from solo.data.record import Image
from solo.data.store.index import check_sides
from solo.data.store.part import Header, PartManifest, PartWriter, read_records, read_table
from solo.data.store.part_tokens import TokensManifest, TokensWriter, token_width
from solo.data.text import open_tokenizer
from solo.data.text.templates import Template, make_template


@dataclass(frozen=True, slots=True)
class TokensJob:
    """How records become tokens.

    tokenizer    folder of the prepared tokenizer
    sequence     template and system turn
    fingerprint  of both
    """

    tokenizer: str
    sequence: SequenceConfig
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PartJob:
    """All that a process needs to make a part.

    folder         of the source
    source         name of the source, for messages
    reader         name of the reader
    options        its options, as JSON, so that the job is hashable
    part           what to read
    limit          examples to take at most
    verify_images  decode every image; otherwise read its header alone
    tokens         None while the tokenizer is not known: it may be trained on the records
    """

    folder: str
    source: str
    reader: str
    options: str
    part: Part
    limit: int | None = None
    verify_images: bool = True
    tokens: TokensJob | None = None

    @property
    def fingerprint(self) -> str:
        """Names the files of the part: it differs if the first layer could."""
        stamps = [_stamp(file) for file in self.part.files]
        named = [self.reader, self.options, self.part.name, self.part.span, stamps, self.limit, self.verify_images]
        return digest(named)

    @property
    def parts(self) -> Path:
        """The folder of the files."""
        return Path(self.folder) / "parts"


class MadePart(NamedTuple):
    """A part that is there: its fingerprint, and what it holds. `tokens` is None if the job did not ask for them."""

    name: str
    records: PartManifest
    tokens: TokensManifest | None


def prepare_part(job: PartJob) -> MadePart:
    """Makes what is missing of a part.

    Several processes may make the same part at once; the files appear whole, and the bytes are the same.

    Raises:
        ConfigError: the part as a whole cannot be read, or the template does not fit the tokenizer.
        OSError: a file cannot be written.
    """
    name = job.fingerprint
    records = PartManifest.read(job.parts, name)
    if records is None:
        return _write_part(job, name)
    return MadePart(name, records, tokenize_part(job, name) if job.tokens is not None else None)


def tokenize_part(job: PartJob, name: str) -> TokensManifest:
    """Makes the tokens of a part from its stored records, if they are missing.

    Args:
        job: the part, and how to make tokens.
        name: fingerprint of the part, whose first layer is complete.
    """
    assert job.tokens is not None
    found = TokensManifest.read(job.parts, name, job.tokens.fingerprint)
    if found is not None:
        return found
    with _tokens_writer(job, job.tokens, name) as writer:
        manifest = PartManifest.read(job.parts, name)
        if manifest is None or not manifest.records:
            return writer.finish(np.zeros(0, bool))
        for stored in read_records(job.parts, name):
            writer.add(stored)
        return writer.finish(read_table(job.parts, name).turned)


def _write_part(job: PartJob, name: str) -> MadePart:
    job.parts.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writer = stack.enter_context(
            PartWriter(job.parts, name, job.part.name, partial(check_image, verify=job.verify_images))
        )
        tokens = None if job.tokens is None else stack.enter_context(_tokens_writer(job, job.tokens, name))
        for example in _examples(job):
            stored = writer.add(example)
            if stored is not None and tokens is not None:
                tokens.add(stored)
        made = writer.finish()
        return MadePart(name, made, None if tokens is None else tokens.finish(writer.turned))


def _examples(job: PartJob) -> Examples:
    try:
        taken = 0
        for example in open_reader(job.reader, json.loads(job.options), job.limit).read(job.part):
            yield example
            taken += not isinstance(example, Ignored)
            if taken == job.limit:
                return
    except ConfigError as error:
        raise ConfigError(f"source {job.source!r}: {error}") from None


def check_image(image: Image, verify: bool) -> Header:
    """Returns (width, height, turned) of an image.

    Args:
        image: the encoded file.
        verify: decode it, to be sure that it can be.

    Raises:
        OSError: it cannot be read, or is too large.
    """
    width, height, turned = image.header()
    check_sides(width, height)
    if verify:
        image.decode("ignore")
    return width, height, turned


def _tokens_writer(job: PartJob, tokens: TokensJob, name: str) -> TokensWriter:
    template, width = _template(tokens)
    return TokensWriter(job.parts, name, tokens.fingerprint, template, width)


@lru_cache(maxsize=2)
def _template(tokens: TokensJob) -> tuple[Template, int]:
    """Returns the template and the bytes of a token. A process opens the tokenizer once, not once per part."""
    tokenizer = open_tokenizer(tokens.tokenizer)
    return make_template(tokenizer, tokens.sequence), token_width(tokenizer)


def digest(value: Any) -> str:
    """Returns 16 hexadecimal digits for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(file: str) -> tuple[int, int] | None:
    """Returns size and time of an input file; None if it is not a local file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
