"""Converts conversations to padded rows, for `Monolith` and `Session`. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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
        ValueError: an item is not a conversation, or an image file cannot be read; the message says which.
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
    """Encodes a prompt. If an image cannot be decoded, raises a ValueError that says where it is."""
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
        document: the only document of the row; it has no targets.
        room: numbers of patch and text slots of the row.
        image: patch size and image mask.
        pad: token for empty text slots.
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
    plan: Sequence[PromptBatch] | None = None,
    smaller: Mapping[int, ImageConfig] | None = None,
    share: tuple[int, int] = (0, 1),
    slot_multiple: int = 1,
    agreed: Callable[[list[int]], list[int]] = lambda failed: failed,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields prompts as batches, each with its rows' patch and text counts, int32 [rows, 2].

    A batch with fewer prompts than rows is padded with copies of its last prompt.

    Args:
        prompts: all prompts, the same in every process.
        rows: number of rows of a batch, over all processes.
        tokenizer: the tokenizer.
        image: patch size and image mask.
        sequence: sliding window and positions.
        plan: the batches; by default all prompts in order, in batches of one shape.
        smaller: number of a prompt -> its image config, for prompts whose images are made smaller.
        share: (index, count): of every batch, only this share of the rows is decoded and yielded.
        slot_multiple: in the default plan, patch and text slots are multiples of this.
        agreed: sums a list over the processes of all shares; it is called once for every batch.

    Raises:
        ValueError: an image cannot be read (all are checked before the first batch) or decoded. Every process raises
            it, whichever process has the image's row.
    """
    if plan is None:
        plan = in_order(prompt_needs(prompts, image), rows, slot_multiple)
    index, count = share
    pad = tokenizer.special.pad
    configs = smaller or {}

    def encoded(number: int) -> Document:
        return encode_prompt(prompts[number], tokenizer, configs.get(number, image), f"conversation {number}")

    for planned in plan:
        here = range(index * rows // count, (index + 1) * rows // count)
        numbers = [planned.numbers[min(place, len(planned.numbers) - 1)] for place in here]
        documents: dict[int, Document] = {}
        failed = [0] * rows
        for number in dict.fromkeys(numbers):
            try:
                documents[number] = encoded(number)
            except ValueError:
                failed[planned.numbers.index(number)] = 1
        for place, times in enumerate(agreed(failed)):
            if times:
                encoded(planned.numbers[place])
                raise ValueError(f"conversation {planned.numbers[place]}: another process could not decode an image")
        room = planned.room
        batch = stack([row_of(documents[number], room, image, pad, sequence=sequence) for number in numbers])
        yield batch, np.array([slots(documents[number]) for number in numbers], np.int32)


class PromptBatch(NamedTuple):
    """Prompts that are answered together.

    numbers  numbers of the prompts
    room     numbers of patch and text slots of a row
    """

    numbers: tuple[int, ...]
    room: tuple[int, int]


def prompt_needs(prompts: Sequence[Prompt], image: ImageConfig) -> np.ndarray:
    """Returns the patches and text tokens of each prompt, int64 [N, 2]. No image is decoded.

    Raises:
        ValueError: an image cannot be read.
    """
    index = IndexBuilder()
    for number, prompt in enumerate(prompts):
        try:
            index.add(prompt)
        except OSError as error:
            raise ValueError(f"conversation {number}: an image cannot be read: {error}") from None
    return index.build().counts(image)[:, :2]


def in_order(needs_N2: np.ndarray, rows: int, multiple: int = 1) -> list[PromptBatch]:
    """Returns batches of at most `rows` prompts in the given order. All have one shape, so they compile once.

    Args:
        needs_N2: see `prompt_needs`.
        rows: number of rows of a batch.
        multiple: patch and text slots are multiples of this.
    """
    if not len(needs_N2):
        return []
    patches, text = needs_N2.max(axis=0).tolist()
    room = rounded_room((patches, text), multiple)
    numbers = range(len(needs_N2))
    return [PromptBatch(tuple(numbers[start : start + rows]), room) for start in range(0, len(needs_N2), rows)]


def by_length(needs_N2: np.ndarray, rows: int, multiple: int = 1) -> list[PromptBatch]:
    """Returns batches of prompts of similar length, the longest first, in few shapes.

    A batch reuses the shape of the previous one unless it does not fit, or needs at most half the slots. So at most
    half of a batch is padding that its own shape would avoid, and the number of shapes grows with the logarithm of the
    lengths. The longest prompts come first, so that running out of memory happens at the beginning.

    Args:
        needs_N2: see `prompt_needs`.
        rows: number of rows of a batch.
        multiple: patch and text slots are multiples of this.
    """
    rooms = np.array([rounded_room((patches, text), multiple) for patches, text in needs_N2.tolist()]).reshape(-1, 2)
    # Among equal sums, those with equal patches are neighbours; the order of the prompts decides last.
    order = np.lexsort((np.arange(len(rooms)), -rooms[:, 0], -rooms.sum(axis=1))).tolist()
    found: list[PromptBatch] = []
    for start in range(0, len(order), rows):
        numbers = tuple(order[start : start + rows])
        patches, text = rooms[list(numbers)].max(axis=0).tolist()
        if found:
            before = found[-1].room
            if patches <= before[0] and text <= before[1] and 2 * (patches + text) > sum(before):
                patches, text = before
        found.append(PromptBatch(numbers, (patches, text)))
    return found


def rounded_room(most: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Returns numbers of patch and text slots that hold at least these: buckets, rounded up to a multiple."""
    patches, text = (-(-bucket(count) // multiple) * multiple for count in most)
    return patches, text


def bucket(count: int) -> int:
    """Returns the smallest of 0, 8, 12, 16, 24, 32, 48, ... (2^k and 3 * 2^(k-1)) that is at least `count`.

    Shapes rounded up to buckets waste at most a third, and few distinct shapes are compiled.
    """
    if count <= 8:
        return 8 if count else 0
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
