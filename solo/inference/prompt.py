"""Converts conversations to padded rows, for `Monolith` and `Session`. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from solo.batch import Batch
from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.readers.conversations import parse_conversation
from solo.data.record import Image, Turn
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import PATCH, Document, TextRun, encode
from solo.data.store.index import IndexBuilder
from solo.data.text import Tokenizer

Conversation = Sequence[Mapping[str, Any]] | Sequence[Turn]
Prompt = Sequence[TextRun | Image]
_PLAIN = SequenceConfig()


def parse(conversations: Sequence[Conversation]) -> list[tuple[Turn, ...]]:
    """Returns the turns of each conversation, given as messages (see `parse_conversation`) or as turns.

    Raises:
        ValueError: something is not a conversation, or an image file cannot be read; the message says which.
    """
    found = []
    for number, conversation in enumerate(conversations):
        if isinstance(conversation, str | Mapping) or not isinstance(conversation, Sequence):
            raise ValueError(
                f"conversation {number} is a {type(conversation).__name__}; expected a list of conversations, each a"
                ' list of {"role": ..., "content": ...}. Put a single conversation into a list.'
            )
        try:
            found.append(_turns(conversation))
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from None
    return found


def _turns(conversation: Conversation) -> tuple[Turn, ...]:
    turns = tuple(part for part in conversation if isinstance(part, Turn))
    messages = [part for part in conversation if isinstance(part, Mapping)]
    if len(turns) not in (0, len(conversation)) or len(turns) + len(messages) < len(conversation):
        raise ValueError('a turn is a mapping {"role": ..., "content": ...}')
    return turns or parse_conversation(messages)


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, image: ImageConfig, where: str) -> Document:
    """Encodes a prompt. Raises a ValueError that names the place of an image that cannot be decoded."""
    try:
        return encode(prompt, tokenizer, image)
    except OSError as error:
        raise ValueError(f"{where}: an image cannot be decoded: {error}") from None


def slots(document: Document) -> tuple[int, int]:
    """Returns the numbers of patches and of text tokens of a document."""
    return len(document.patches), int((document.tokens != PATCH).sum())


def row_of(
    document: Document,
    room: tuple[int, int],
    image: ImageConfig,
    pad: int,
    start: tuple[int, int] = (0, 0),
    sequence: SequenceConfig = _PLAIN,
) -> Batch:
    """Returns a row (without the B axis) to prefill: a document, or its remainder after `start`.

    Positions and visibility are those of the whole document, computed by the code that training uses.

    Args:
        document: the only one of its row; it has no targets.
        room: patch and text slots of the row.
        image: patch size and image mask.
        pad: token of empty text slots.
        start: numbers of patches and text tokens to skip at the document's beginning.
        sequence: sliding window and positions.
    """
    patches, text = slots(document)
    unsupervised = replace(document, supervised=np.zeros_like(document.supervised))
    whole = assemble_row([(unsupervised, 0)], RowShape(patches, text, 0), image, pad, sequence)

    def cut(array: np.ndarray, region: int, fill: int = 0) -> np.ndarray:
        kept = array[start[region] :]
        return np.pad(kept, ((0, room[region] - len(kept)),) + ((0, 0),) * (kept.ndim - 1), constant_values=fill)

    def cut_both(array: np.ndarray) -> np.ndarray:
        return np.concatenate([cut(array[:patches], 0), cut(array[patches:], 1)])

    return whole._replace(
        patches=cut(whole.patches, 0),
        patch_grid=cut(whole.patch_grid, 0),
        text=cut(whole.text, 1, pad),
        positions=cut_both(whole.positions),
        attend=cut_both(whole.attend),
    )


def prompt_batches(
    prompts: Sequence[Prompt],
    rows: int,
    tokenizer: Tokenizer,
    image: ImageConfig,
    sequence: SequenceConfig = _PLAIN,
    *,
    share: tuple[int, int] = (0, 1),
    slot_multiple: int = 1,
    agreed: Callable[[list[int]], list[int]] = lambda failed: failed,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields prompts as batches of one shape, each with its rows' patch and text counts, int32 [rows, 2].

    The last batch is filled up with copies of the last prompt.

    Args:
        prompts: all prompts, the same in every process.
        rows: rows of a batch, over all processes.
        tokenizer: the tokenizer.
        image: patch size and image mask.
        sequence: sliding window and positions.
        share: (index, count): of every batch, only this share of the rows is decoded and yielded.
        slot_multiple: patch and text slots are multiples of this.
        agreed: sums a list over the processes of all shares; it is called once for every batch.

    Raises:
        ValueError: an image cannot be read (all are checked before the first batch), or cannot be decoded. It is raised
            in every process, wherever the image's row is.
    """
    room = _room(prompts, image, slot_multiple)
    index, count = share
    pad = tokenizer.special.pad
    for start in range(0, len(prompts), rows):
        here = range(start + index * rows // count, start + (index + 1) * rows // count)
        numbers = [min(number, len(prompts) - 1) for number in here]
        documents: dict[int, Document] = {}
        failed = [0] * rows
        for number in dict.fromkeys(numbers):
            try:
                documents[number] = encode_prompt(prompts[number], tokenizer, image, f"conversation {number}")
            except ValueError:
                failed[number - start] = 1
        for place, times in enumerate(agreed(failed)):
            if times:
                encode_prompt(prompts[start + place], tokenizer, image, f"conversation {start + place}")
                raise ValueError(f"conversation {start + place}: another process could not decode an image")
        batch = stack([row_of(documents[number], room, image, pad, sequence=sequence) for number in numbers])
        yield batch, np.array([slots(documents[number]) for number in numbers], np.int32)


def _room(prompts: Sequence[Prompt], image: ImageConfig, multiple: int) -> tuple[int, int]:
    """Returns the patch and text slots of a row that any of the prompts fits."""
    index = IndexBuilder()
    for number, prompt in enumerate(prompts):
        try:
            index.add(prompt)
        except OSError as error:
            raise ValueError(f"conversation {number}: an image cannot be read: {error}") from None
    patches, text, _ = index.build().counts(image).max(axis=0).tolist()
    return rounded_room((patches, text), multiple)


def rounded_room(most: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Returns the patch and text slots of a row for at most this many: buckets, rounded up to a multiple."""
    patches, text = (-(-bucket(count) // multiple) * multiple for count in most)
    return patches, text


def bucket(count: int) -> int:
    """Returns the least of 0, 8, 12, 16, 24, 32, 48, ... (2^k and 3 * 2^(k-1)) that is at least `count`.

    Shapes rounded up to buckets waste at most a third, and few distinct shapes are compiled.
    """
    if count <= 8:
        return 8 if count else 0
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
