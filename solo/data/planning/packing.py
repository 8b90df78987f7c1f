"""Packs a pool of documents into rows so that both the patch region and the text region are filled.

Rows are packed one after the other. The oldest documents of the pool are placed first, up to a part of the row. Many
random completions are then tried at once, and the best is kept. Half of the trials draw only from documents that
together have the ratio of text to patches that the row still needs: a row with a long text takes images with little
text, and leaves the others to rows that need them.

Best-fit decreasing works well for rows of one capacity. With two regions it fills only 84 to 95%, because it uses up
the documents that could have balanced the last rows. Taking the oldest documents first also bounds how long
a document waits, and keeps a row close to a random sample of the mixture.

All hosts must plan the same rows, so everything is computed with integers, stable sorts, and sums whose rounding does
not depend on the machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from solo.data.planning import tuning
from solo.data.planning.permutation import permute
from solo.data.planning.row_shape import RowShape

MAX_SLOTS = (1 << 19) - 1  # most slots of one kind in a row: the largest value of a field of `_encode`

_FIELD = 20  # bits; the highest bit of a field guards against a borrow from the next field
_GUARDS = np.int64(sum(1 << (_FIELD * number + _FIELD - 1) for number in range(3)))
_FIELD_MASK = (1 << (_FIELD - 1)) - 1


def pack(needs: np.ndarray, shape: RowShape, rows: int) -> list[np.ndarray]:
    """Packs documents into rows.

    Args:
        needs: integers [n, 3]: patch, text and target slots of every document, oldest first; each fits an empty row.
        shape: slots of a row, at most `MAX_SLOTS` of each kind.
        rows: number of rows to fill.

    Returns:
        The int64 indices of each row's documents, in no particular order. No document is in two rows. If documents
        run out, the last rows are empty. Documents in no row are left over.
    """
    if not len(needs):
        return [np.zeros(0, np.int64)] * rows
    # From here on, documents are numbered by text per patch, least first; `pool` and `queue` hold them by age.
    by_ratio = np.argsort(needs[:, 1] / np.maximum(needs[:, 0], 1e-3), kind="stable")
    needs = needs[by_ratio].astype(np.int64)
    pool = np.empty(len(needs), np.int64)
    pool[by_ratio] = np.arange(len(needs))
    narrow = np.uint16 if len(needs) <= 1 << 16 else np.int64  # 16-bit numbers are sorted four times as fast
    candidates = _Candidates(needs)
    mean_size = max(float(candidates.sizes.mean()), 1.0)
    aged_part = max(tuning.AGED_PART, 1 - tuning.COMPLETED * mean_size / shape.slots)
    # Rows choose from a short queue, refilled from the pool, so that a row's cost does not grow with the pool.
    oldest = int(tuning.MARGIN * aged_part * shape.slots / mean_size) + 2
    queue, taken = pool[:0], 0
    packed = []
    for _ in range(rows):
        refill = pool[taken : taken + oldest + tuning.CANDIDATES - len(queue)]
        queue, taken = np.concatenate([queue, refill]), taken + len(refill)
        aged, left = _open_row(needs[queue[:oldest]].tolist(), shape, aged_part)
        rest = queue[aged:]
        order = np.argsort(rest.astype(narrow), kind="stable")
        steps = min(int(tuning.MARGIN * (left[0] + left[1]) / mean_size) + 1, tuning.MOST_STEPS)
        chosen = order[candidates.complete(rest[order], left, steps)]
        packed.append(by_ratio[np.concatenate([queue[:aged], rest[chosen]])])
        keep = np.ones(len(rest), bool)
        keep[chosen] = False
        queue = rest[keep]
    return packed


def _open_row(needs: list[list[int]], shape: RowShape, part: float) -> tuple[int, list[int]]:
    """Returns how many of these documents fill up to `part` of a row, at least one, and the slots that they leave."""
    patches, text, targets = shape.patch_slots, shape.text_slots, shape.target_slots
    least_patches, least_text = (1 - part) * patches, (1 - part) * text
    count = 0
    for need in needs:
        after = patches - need[0], text - need[1], targets - need[2]
        if count and (after[0] < least_patches or after[1] < least_text or after[2] < 0):
            break
        (patches, text, targets), count = after, count + 1
    return count, [patches, text, targets]


class _Candidates:
    """Documents by text per patch, least first, with precomputed sizes and codes. `needs` is int64 [n, 3]."""

    def __init__(self, needs: np.ndarray) -> None:
        self.patches, self.text = np.ascontiguousarray(needs[:, :2].T)
        self.sizes = self.patches + self.text
        self.codes = _encode(needs)
        # Every call overwrites these buffers: rows are many and small, and allocating costs as much as computing.
        self._guards = np.full(2 * tuning.TRIALS, _GUARDS)
        self._room, self._after, self._kept = np.empty((3, 2 * tuning.TRIALS), np.int64)

    def complete(self, numbers: np.ndarray, left: list[int], steps: int) -> np.ndarray:
        """Returns places in `numbers` of documents that fill the rest of a row, found by random trials.

        Args:
            numbers: int64 [c], the candidates in ascending order.
            left: patch, text and target slots that are left.
            steps: candidates that a trial goes through; it takes every one that fits.
        """
        if not len(numbers):
            return numbers
        codes, sizes = self.codes[numbers], self.sizes[numbers]
        order = self._orders(numbers, left, steps)
        patches, text, targets = left
        guards, room, after, kept = self._guards, self._room, self._after, self._kept
        room.fill(patches | text << _FIELD | targets << 2 * _FIELD | int(_GUARDS))
        took = np.empty(order.shape, bool)
        for wanted, fits in zip(codes[order], took, strict=True):
            np.subtract(room, wanted, out=after)
            np.bitwise_and(after, guards, out=kept)
            np.equal(kept, guards, out=fits)
            np.copyto(room, after, where=fits)
        unused = (room & _FIELD_MASK) + ((room >> _FIELD) & _FIELD_MASK)
        best = np.argsort(unused, kind="stable")[: tuning.FINISHED]
        fits = ((room[best, None] - codes) & _GUARDS) == _GUARDS
        taken = took[:, best]
        fits[np.nonzero(taken)[1], order[:, best][taken]] = False
        gains = fits * sizes
        winner = int((unused[best] - gains.max(axis=1)).argmin())
        chosen = order[took[:, best[winner]], best[winner]]
        last = int(gains[winner].argmax())
        return np.concatenate([chosen, [last]]) if gains[winner, last] else chosen

    def _orders(self, numbers: np.ndarray, left: list[int], steps: int) -> np.ndarray:
        """Returns int64 [steps, trials]: places in `numbers`, distinct in a trial, half of them from `_suited`."""
        start, stop = self._suited(numbers, left)
        suited = _progressions(_largest_prime(stop - start))[:steps]
        prime = _largest_prime(len(numbers))
        every = _progressions(prime)[: len(suited)]
        # A few numbers lie beyond the prime: at the far end for one half, at the near end for the other.
        return np.concatenate([suited + start, every + len(numbers) - prime], axis=1)

    def _suited(self, numbers: np.ndarray, left: list[int]) -> tuple[int, int]:
        """Returns a range of `numbers` that reaches one end and needs text and patches in the ratio of `left`."""
        count, some = (
            len(numbers),
            numbers[:: tuning.STRIDE],
        )  # sorted by ratio, so that a sample shows where the range ends
        # Excess text of the first 1, 2, ... of them: it falls first, then rises to the total.
        surplus = np.cumsum(self.text[some] * left[0] - self.patches[some] * left[1])
        if surplus[-1] > 0:
            return 0, min(max(tuning.STRIDE * int(np.count_nonzero(surplus <= 0)), tuning.SUITED), count)
        return max(min(tuning.STRIDE * int(np.count_nonzero(surplus > surplus[-1])), count - tuning.SUITED), 0), count


@cache
def _progressions(prime: int) -> np.ndarray:
    """Returns int64 [steps, trials]: which of `prime` candidates each trial goes through, all distinct in a trial.

    These are arithmetic progressions modulo the prime: distinct without a check, and random enough among documents
    that come in random order.
    """
    numbers = np.arange(tuning.TRIALS)
    starts = permute(numbers, 1 << 30, key=1) % prime
    strides = 1 + permute(numbers, 1 << 30, key=2) % max(prime - 1, 1)
    return (starts + strides * np.arange(min(tuning.MOST_STEPS, prime))[:, None]) % prime


def _encode(needs: np.ndarray) -> np.ndarray:
    """Packs three counts [..., 3] into one number, int64 [...].

    With the guard bits set in `room`, `room - code` keeps all of them exactly if all three counts fit.
    """
    return needs[..., 0] | (needs[..., 1] << _FIELD) | (needs[..., 2] << (2 * _FIELD))


@cache
def _largest_prime(most: int) -> int:
    """Returns the largest prime up to `most`, or 1 if there is none."""
    for number in range(most, 1, -1):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            return number
    return 1
