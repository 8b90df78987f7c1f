"""Rows from a pool of documents, such that the patch region and the text region both fill.

Row after row: the oldest documents of the pool go in first, up to a part of the row; the rest is found by trying
many random completions at once and keeping the best. Half of them try only documents that together have the ratio
of text to patches which the row still needs: so a row with a long text finds images with little text, and
leaves the others to the rows that need those.

Best-fit decreasing, which serves rows of one capacity well, was measured to fill 84 to 95% of rows with two: it uses
up the documents that could have evened out the last rows. Taking the oldest first also means that none waits for
ever, and that a row is close to a random sample of the mixture.

Every host has to plan the same rows: so integers, stable sorts, and no sum whose rounding depends on the machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from solo.data.planning.permutation import permute
from solo.data.planning.row_shape import RowShape

MAX_SLOTS = (1 << 19) - 1  # of each kind in a row: what a field of `_encode` holds

_FIELD = 20  # bits; the highest of each field guards against borrowing from the next
_GUARDS = np.int64(sum(1 << (_FIELD * number + _FIELD - 1) for number in range(3)))
_FIELD_MASK = (1 << (_FIELD - 1)) - 1

_AGED_PART = 0.3  # of each region, at least, is filled with the oldest documents
_COMPLETED = 48  # documents, at most about, that are left to find after them
_CANDIDATES = 384  # they are found among so many
_SUITED = 64  # at least so many of those are tried as having the right ratio
_STRIDE = 4  # one candidate in so many is looked at to find those
_TRIALS = 64  # of each kind
_FINISHED = 8  # best trials that are each given the largest document that still fits
_MOST_STEPS = 96  # documents that one trial goes through, at most


def pack(needs: np.ndarray, shape: RowShape, rows: int) -> list[np.ndarray]:
    """Place documents into rows.

    Args:
        needs: integers [n, 3], patch, text and target slots of every document, oldest first; each fits an empty row.
        shape: slots of a row, each kind at most `MAX_SLOTS`.
        rows: rows to fill.

    Returns:
        For each row, int64 indices of its documents, in no particular order; no document is in two rows. Where
        documents run out, the last rows are empty. A document that is in no row was not placed.
    """
    if not len(needs):
        return [np.zeros(0, np.int64)] * rows
    # From here on documents are numbered by their text per patch, least first; `queue` holds them by age.
    by_ratio = np.argsort(needs[:, 1] / np.maximum(needs[:, 0], 1e-3), kind="stable")
    needs = needs[by_ratio].astype(np.int64)
    pool = np.empty(len(needs), np.int64)
    pool[by_ratio] = np.arange(len(needs))
    narrow = np.uint16 if len(needs) <= 1 << 16 else np.int64  # numbers of 16 bits are sorted four times as fast
    candidates = _Candidates(needs)
    mean_size = max(float(candidates.sizes.mean()), 1.0)
    aged_part = max(_AGED_PART, 1 - _COMPLETED * mean_size / shape.slots)
    # The rows choose from a short queue, refilled from the pool, so that a row's cost does not grow with the pool.
    oldest = int(1.5 * aged_part * shape.slots / mean_size) + 2
    queue, taken = pool[:0], 0
    packed = []
    for _ in range(rows):
        refill = pool[taken : taken + oldest + _CANDIDATES - len(queue)]
        queue, taken = np.concatenate([queue, refill]), taken + len(refill)
        aged, left = _open_row(needs[queue[:oldest]].tolist(), shape, aged_part)
        rest = queue[aged:]
        order = np.argsort(rest.astype(narrow), kind="stable")
        steps = min(int(1.5 * (left[0] + left[1]) / mean_size) + 1, _MOST_STEPS)
        chosen = order[candidates.complete(rest[order], left, steps)]
        packed.append(by_ratio[np.concatenate([queue[:aged], rest[chosen]])])
        keep = np.ones(len(rest), bool)
        keep[chosen] = False
        queue = rest[keep]
    return packed


def _open_row(needs: list[list[int]], shape: RowShape, part: float) -> tuple[int, list[int]]:
    """How many of these documents, the first at least, fill up to that part of a row, and the slots they leave."""
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
    """Documents by text per patch, least first, and what is computed of them once. `needs` int64 [n, 3]."""

    def __init__(self, needs: np.ndarray) -> None:
        self.patches, self.text = np.ascontiguousarray(needs[:, :2].T)
        self.sizes = self.patches + self.text
        self.codes = _encode(needs)
        # Written over by every call: rows are many and small, and allocating costs as much as computing.
        self._guards = np.full(2 * _TRIALS, _GUARDS)
        self._room, self._after, self._kept = np.empty((3, 2 * _TRIALS), np.int64)

    def complete(self, numbers: np.ndarray, left: list[int], steps: int) -> np.ndarray:
        """Places in `numbers` of documents that fill what is left of a row, as well as random trials can.

        Args:
            numbers: int64 [c], candidates, in ascending order.
            left: patch, text and target slots.
            steps: candidates that one trial goes through; it takes those that fit.
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
        best = np.argsort(unused, kind="stable")[:_FINISHED]
        fits = ((room[best, None] - codes) & _GUARDS) == _GUARDS
        taken = took[:, best]
        fits[np.nonzero(taken)[1], order[:, best][taken]] = False
        gains = fits * sizes
        winner = int((unused[best] - gains.max(axis=1)).argmin())
        chosen = order[took[:, best[winner]], best[winner]]
        last = int(gains[winner].argmax())
        return np.concatenate([chosen, [last]]) if gains[winner, last] else chosen

    def _orders(self, numbers: np.ndarray, left: list[int], steps: int) -> np.ndarray:
        """int64 [steps, trials]: places in `numbers`, half of them where the ratio suits; none twice in a trial."""
        start, stop = self._suited(numbers, left)
        suited = _progressions(_largest_prime(stop - start))[:steps]
        prime = _largest_prime(len(numbers))
        every = _progressions(prime)[: len(suited)]
        # A few numbers are beyond the prime: at the far end for the one half, at the near end for the other.
        return np.concatenate([suited + start, every + len(numbers) - prime], axis=1)

    def _suited(self, numbers: np.ndarray, left: list[int]) -> tuple[int, int]:
        """Where to cut off one end of `numbers`, so that together they need text and patches as `left` has them."""
        count, some = len(numbers), numbers[::_STRIDE]  # in order, so that a few show where to cut
        # What the first 1, 2, ... of them have too much of text: it falls first, and then rises to the total.
        surplus = np.cumsum(self.text[some] * left[0] - self.patches[some] * left[1])
        if surplus[-1] > 0:
            return 0, min(max(_STRIDE * int(np.count_nonzero(surplus <= 0)), _SUITED), count)
        return max(min(_STRIDE * int(np.count_nonzero(surplus > surplus[-1])), count - _SUITED), 0), count


@cache
def _progressions(prime: int) -> np.ndarray:
    """int64 [steps, trials]: which of `prime` candidates each trial goes through, none of them twice.

    Arithmetic progressions modulo the prime: distinct without a check, and random enough among documents that come
    in random order.
    """
    numbers = np.arange(_TRIALS)
    starts = permute(numbers, 1 << 30, key=1) % prime
    strides = 1 + permute(numbers, 1 << 30, key=2) % max(prime - 1, 1)
    return (starts + strides * np.arange(min(_MOST_STEPS, prime))[:, None]) % prime


def _encode(needs: np.ndarray) -> np.ndarray:
    """int64 [...]: three counts [..., 3] in one number. With the guard bits set in `room`, `room - code` keeps
    them all exactly where all three counts fit."""
    return needs[..., 0] | (needs[..., 1] << _FIELD) | (needs[..., 2] << (2 * _FIELD))


@cache
def _largest_prime(most: int) -> int:
    """The largest prime up to `most`; 1 if there is none."""
    for number in range(most, 1, -1):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            return number
    return 1
