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
# The chunks of a batch in reading order, each with the numbers of patches and of text tokens of its rows, int32 [B, 2].
Chunks = Sequence[tuple[Batch, np.ndarray]]
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
    return part_of_row(whole, start, (patches, text), room, pad)


def part_of_row(row: Batch, start: Sequence[int], stop: Sequence[int], room: tuple[int, int], pad: int) -> Batch:
    """Returns a row with the patches and text tokens of `row` from `start` to `stop`, and with padding to `room`."""
    patches = len(row.patches)

    def cut(array: np.ndarray, region: int, fill: int = 0) -> np.ndarray:
        kept = array[start[region] : stop[region]]
        return np.pad(kept, ((0, room[region] - len(kept)),) + ((0, 0),) * (kept.ndim - 1), constant_values=fill)

    def cut_both(array: np.ndarray) -> np.ndarray:
        return np.concatenate([cut(array[:patches], 0), cut(array[patches:], 1)])

    return row._replace(
        patches=cut(row.patches, 0),
        patch_grid=cut(row.patch_grid, 0),
        text=cut(row.text, 1, pad),
        positions=cut_both(row.positions),
        attend=cut_both(row.attend),
    )


def chunk_ends(row: Batch, document: Document, size: int | None, start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Returns where a row is cut into chunks of at most `size` slots, int32 [N, 2]: patches and text tokens so far.

    A chunk ends where no slot before its end attends to a slot after it. So an image that attends to all of itself is
    never split, and its chunk may be larger than `size`.

    Args:
        row: what `row_of` returns for the document and `start`.
        document: the whole document.
        size: None for a single chunk.
        start: see `row_of`.
    """
    is_patch = document.tokens[sum(start) :] == PATCH
    ends = np.stack([np.cumsum(is_patch), np.cumsum(~is_patch)], axis=1).astype(np.int32)
    if size is None or len(ends) <= size:
        return ends[-1:]
    attend = np.zeros((len(ends), *row.attend.shape[1:]), np.int32)
    attend[is_patch] = row.attend[: is_patch.sum()]
    attend[~is_patch] = row.attend[len(row.patches) :][: (~is_patch).sum()]
    furthest = attend[..., [1, 3]].reshape(len(ends), -1, 2).max(axis=1)  # over the types of layers
    seen = np.maximum.accumulate(furthest, axis=0)
    allowed = np.flatnonzero((seen <= ends + np.array(start)).all(axis=1)) + 1
    found = [0]
    while found[-1] < len(ends):
        fits = allowed[(allowed > found[-1]) & (allowed <= found[-1] + size)]
        found.append(int(fits[-1] if len(fits) else allowed[allowed > found[-1]][0]))
    return ends[np.array(found[1:]) - 1]


def chunks_of(
    rows: Sequence[Batch],
    ends: Sequence[np.ndarray],
    pad: int,
    multiple: int = 1,
    most: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> Chunks:
    """Cuts rows into chunks; see `chunk_ends`. Rows that end before others have empty chunks.

    Args:
        rows: rows without the B axis.
        ends: where each row is cut.
        pad: token for empty text slots.
        multiple: patch and text slots are multiples of this.
        most: maximum of an integer array over the processes that have other rows of the batch.
    """
    number = int(most(np.array([max(map(len, ends))]))[0])
    ends_BN2 = np.stack([np.concatenate([each, np.repeat(each[-1:], number - len(each), axis=0)]) for each in ends])
    counts_BN2 = np.diff(ends_BN2, axis=1, prepend=0)
    found = []
    for chunk, needs in enumerate(most(counts_BN2.max(axis=0))):
        # The logits are those after a text token, so a chunk has a slot for one even if it has none.
        room = rounded_room((int(needs[0]), max(int(needs[1]), 1)), multiple)
        starts_B2 = ends_BN2[:, chunk] - counts_BN2[:, chunk]
        bounds = zip(rows, starts_B2.tolist(), ends_BN2[:, chunk].tolist(), strict=True)
        parts = [part_of_row(row, start, stop, room, pad) for row, start, stop in bounds]
        found.append((stack(parts), counts_BN2[:, chunk]))
    return found


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
    chunk_size: int | None = None,
    agreed: Callable[[list[int]], list[int]] = lambda failed: failed,
) -> Iterator[Chunks]:
    """Yields prompts as batches, each in chunks.

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
        slot_multiple: patch and text slots are multiples of this, except in a given plan.
        chunk_size: the most slots of a chunk (`chunk_ends`); None: a batch is one chunk.
        agreed: sums a list over the processes of all shares; for every batch, all call it equally often.

    Raises:
        ValueError: an image cannot be read (all are checked before the first batch) or decoded. Every process raises
            it, whichever process has the image's row.
    """
    if plan is None:
        plan = in_order(prompt_needs(prompts, image), rows, slot_multiple)
    index, count = share
    pad = tokenizer.special.pad
    configs = smaller or {}

    def most(counts: np.ndarray) -> np.ndarray:
        spread = np.zeros((count, counts.size), int)
        spread[index] = counts.ravel()
        return np.array(agreed(spread.ravel().tolist())).reshape(count, *counts.shape).max(axis=0)

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
        read = {number: row_of(each, room, image, pad, sequence=sequence) for number, each in documents.items()}
        size = None if chunk_size is None or sum(room) <= chunk_size else chunk_size
        ends = {number: chunk_ends(read[number], each, size) for number, each in documents.items()}
        mine = [ends[number] for number in numbers]
        if size is None:
            yield [(stack([read[number] for number in numbers]), np.concatenate(mine))]
            continue
        yield chunks_of([read[number] for number in numbers], mine, pad, slot_multiple, most)


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
