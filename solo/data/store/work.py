"""Makes one part from a small picklable job, in this process, in another one, or on another machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo.config import ConfigError, SequenceConfig
from solo.data.filters import Selection
from solo.data.images.check import ALL_IMAGES, ImageCheck
from solo.data.readers import Ignored, Part, Unreadable, open_reader
from solo.data.record import Image, Record
from solo.data.store.checksums import FileSum
from solo.data.store.inputs import Check, changed, part_key, stamp
from solo.data.store.mirror import Mirror
from solo.data.store.part import Header, PartManifest, PartWriter, read_records, read_table
from solo.data.store.part_files import are_whole
from solo.data.store.part_tokens import TokensManifest, TokensWriter, token_width
from solo.data.store.progress import Amount
from solo.data.store.publishing import publish_part
from solo.data.store.safety import disk_errors
from solo.data.text import open_tokenizer
from solo.data.text.templates import Template, make_template

_TELL_SECONDS = 0.5

Tell = Callable[[Amount], None]


@dataclass(frozen=True, slots=True)
class TokensJob:
    """The settings that tokenize records.

    tokenizer    folder of the prepared tokenizer
    sequence     template and system turn
    fingerprint  fingerprint of tokenizer and template
    """

    tokenizer: str
    sequence: SequenceConfig
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PartJob:
    """Everything that a process needs to make a part.

    folder         the source's folder
    source         name of the source, for messages
    reader         name of the reader
    options        the reader's options as JSON, so that the job is hashable
    part           the reader's part to read
    limit          maximum number of examples to read
    images         requirements on images
    check          how to detect a changed input
    selection      selects and filters the records
    similar        compute perceptual hashes of images
    tokens         how to tokenize; None while the tokenizer is unknown, because it may be trained on the records
    """

    folder: str
    source: str
    reader: str
    options: str
    part: Part
    limit: int | None = None
    images: ImageCheck = ALL_IMAGES
    check: Check = "time"
    selection: Selection = Selection()  # noqa: RUF009 - frozen
    similar: bool = False
    tokens: TokensJob | None = None

    @property
    def parts(self) -> Path:
        """The `parts` folder, which contains the files."""
        return Path(self.folder) / "parts"

    def __str__(self) -> str:
        return f"source {self.source!r}, part {self.part.name}"


class MadePart(NamedTuple):
    """A complete part: its fingerprint and manifests. `tokens` is None if the job did not ask for them."""

    name: str
    records: PartManifest
    tokens: TokensManifest | None


def prepare_part(job: PartJob, tell: Tell | None = None) -> MadePart:
    """Makes the missing layers of a part.

    Several processes may make the same part at once: the files appear atomically, and their bytes are the same.

    Args:
        job: the part to make.
        tell: called occasionally with the amount made since the last call.

    Raises:
        ConfigError: the part as a whole cannot be read, or the template does not fit the tokenizer.
        OSError: a file cannot be written.
    """
    whole = _fingerprint(job)
    for name in (whole, _cut(whole, job.limit)):
        records = PartManifest.read(job.parts, name)
        if records is None or (job.limit is not None and records.examples > job.limit):
            continue
        if _is_whole(job, name, records.files) and changed(records.inputs, job.check) is None:
            return MadePart(name, records, _tokenized(job, name))
        _forget(job, name)
    with disk_errors():
        made = _write_part(job, whole, tell or (lambda amount: None))
    publish_part(job.parts, [made.name] if job.tokens is None else [made.name, f"{made.name}.{job.tokens.fingerprint}"])
    return made


def _is_whole(job: PartJob, stem: str, files: Mapping[str, FileSum]) -> bool:
    """Returns whether the files that a manifest names exist. For a mirror, `publishing.begin` has already checked."""
    return Mirror.around(Path(job.folder)) is not None or are_whole(job.parts, stem, files)


def _tokenized(job: PartJob, name: str) -> TokensManifest | None:
    """Returns a part's token manifest, making the tokens if they are missing or truncated; None if not requested."""
    if job.tokens is None:
        return None
    found = TokensManifest.read(job.parts, name, job.tokens.fingerprint)
    if found is None or not _is_whole(job, f"{name}.{job.tokens.fingerprint}", found.files):
        with disk_errors():
            found = tokenize_part(job, name)
        publish_part(job.parts, [f"{name}.{job.tokens.fingerprint}"])
    return found


def tokenize_part(job: PartJob, name: str) -> TokensManifest:
    """Makes the tokens of a part from its stored records.

    Args:
        job: the part, and how to make tokens.
        name: fingerprint of the part, whose first layer is complete.
    """
    assert job.tokens is not None
    with _tokens_writer(job, job.tokens, name) as writer:
        manifest = PartManifest.read(job.parts, name)
        if manifest is None or not manifest.records:
            return writer.finish(np.zeros(0, bool))
        for stored in read_records(job.parts, name):
            writer.add(stored)
        return writer.finish(read_table(job.parts, name).turned)


def _fingerprint(job: PartJob) -> str:
    """Returns the fingerprint of a part that is read to its end. It covers everything that affects the first layer."""
    part, options = job.part, json.loads(job.options)
    chosen = [job.images, job.similar, job.selection.as_json()]
    return digest([job.reader, options, part.name, part.span, part_key(part, options, job.check), *chosen])


def _cut(whole: str, limit: int | None) -> str:
    """Returns the fingerprint of a part that is cut after `limit` examples."""
    return whole if limit is None else digest([whole, limit])


def _forget(job: PartJob, name: str) -> None:
    """Marks a part as missing, because it is damaged or an image was replaced. Its source becomes incomplete too."""
    (Path(job.folder) / "source.json").unlink(missing_ok=True)
    for manifest in job.parts.glob(f"{name}*.json"):
        manifest.unlink(missing_ok=True)


def _write_part(job: PartJob, whole: str, tell: Tell) -> MadePart:
    job.parts.mkdir(parents=True, exist_ok=True)
    examples = _Examples(job)
    with ExitStack() as stack:
        check = partial(check_image, images=job.images)
        writer = stack.enter_context(
            PartWriter(
                job.parts,
                whole,
                job.part.name,
                check,
                partial(stamp, check=job.check),
                job.selection.opened(),
                job.similar,
            )
        )
        tokens = None if job.tokens is None else stack.enter_context(_tokens_writer(job, job.tokens, whole))
        told, next_time = Amount(), time.monotonic() + _TELL_SECONDS
        for example in examples:
            stored = writer.add(example)
            if stored is not None and tokens is not None:
                tokens.add(stored)
            if time.monotonic() > next_time:
                tell(writer.amount.minus(told))
                told, next_time = writer.amount, time.monotonic() + _TELL_SECONDS
        tell(writer.amount.minus(told))
        name = _cut(whole, job.limit) if examples.goes_on else whole
        turned = writer.turned
        made = writer.finish(name)
        return MadePart(name, made, None if tokens is None else tokens.finish(turned, name))


class _Examples:
    """Iterates over the examples of a part up to the job's limit. Afterwards, `goes_on` says whether more follow."""

    def __init__(self, job: PartJob) -> None:
        self._job = job
        self.goes_on = False

    def __iter__(self) -> Iterator[Record | Unreadable | Ignored]:
        job, taken = self._job, 0
        try:
            for example in open_reader(job.reader, json.loads(job.options), job.limit).read(job.part):
                if not isinstance(example, Ignored):
                    if taken == job.limit:
                        self.goes_on = True
                        return
                    taken += 1
                yield example
        except ConfigError as error:
            raise ConfigError(f"source {job.source!r}: {error}") from None


def check_image(image: Image, images: ImageCheck) -> Header:
    """Returns (width, height, turned) of an image.

    Raises:
        OSError: the image does not meet the requirements; the message says why.
    """
    header = images.header(image.data)
    return header.width, header.height, header.swapped


def _tokens_writer(job: PartJob, tokens: TokensJob, name: str) -> TokensWriter:
    template, width = _template(tokens)
    return TokensWriter(job.parts, name, tokens.fingerprint, template, width)


@lru_cache(maxsize=2)
def _template(tokens: TokensJob) -> tuple[Template, int]:
    """Returns the template and the bytes per token. Cached, so each process opens the tokenizer only once."""
    tokenizer = open_tokenizer(tokens.tokenizer)
    return make_template(tokenizer, tokens.sequence), token_width(tokenizer)


def digest(value: Any) -> str:
    """Returns a digest of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
