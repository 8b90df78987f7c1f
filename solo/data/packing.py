"""Rows from a pool of documents, such that the patch region and the text region both fill.

Row after row: the oldest documents of the pool go in first, up to a part of the row; the rest is found by trying
several hundred random completions at once and keeping the best. Best-fit decreasing, which serves rows of one
capacity well, was measured to fill 84 to 95% of rows with two: it uses up the documents that could have evened out
the last rows. Taking the oldest first also means that none waits for ever, and that a row is close to a random
sample of the mixture.

Everything is integer arithmetic with stable order, so that every host plans the same rows.
"""

from __future__ import annotations

import numpy as np

from solo.data.permutation import permute
from solo.data.shape import RowShape

MAX_SLOTS = (1 << 19) - 1  # of each kind in a row: what a field of `_encode` holds

_FIELD = 20  # bits; the highest of each field guards against borrowing from the next
_GUARDS = np.int64(sum(1 << (_FIELD * number + _FIELD - 1) for number in range(3)))
_FIELD_MASK = (1 << (_FIELD - 1)) - 1

_AGED_PART = 0.5  # of each region, filled with the oldest documents
_CANDIDATES = 512  # oldest documents that a row is completed from
_TRIALS = 256
_FINISHED = 16  # best trials that are each given the largest document that still fits
_MOST_STEPS = 96  # documents tried in one trial


def pack(needs: np.ndarray, shape: RowShape, rows: int) -> list[np.ndarray]:
    """Place documents into rows.

    Args:
        needs: int64 [n, 3], patch, text and target slots of every document, oldest first; each fits an empty row.
        shape: slots of a row, each kind at most `MAX_SLOTS`.
        rows: rows to fill.

    Returns:
        For each row, int64 indices of its documents, in no particular order; no document is in two rows. Where
        documents run out, the last rows are empty. A document that is in no row was not placed.
    """
    codes, sizes = _encode(needs), needs[:, 0] + needs[:, 1]
    mean_size = max(float(sizes.mean()), 1.0) if len(sizes) else 1.0
    trials = _Trials(shape)
    # The rows choose from a short queue, refilled from the pool, so that a row's cost does not grow with the pool.
    queue, taken = np.arange(min(_CANDIDATES, len(needs))), min(_CANDIDATES, len(needs))
    packed = []
    for _ in range(rows):
        aged, left = _oldest(needs[queue[:64]].tolist(), shape)
        rest = queue[aged:]
        steps = int(1.5 * (left[0] + left[1]) / mean_size) + 4
        chosen = trials.complete(left, codes[rest], sizes[rest], min(steps, _MOST_STEPS))
        packed.append(np.concatenate([queue[:aged], rest[chosen]]))
        keep = np.ones(len(rest), bool)
        keep[chosen] = False
        refill = np.arange(taken, min(taken + len(packed[-1]), len(needs)))
        taken += len(refill)
        queue = np.concatenate([rest[keep], refill])
    return packed


def _oldest(needs: list[list[int]], shape: RowShape) -> tuple[int, list[int]]:
    """How many of these documents open a row, and the slots of each kind they leave."""
    left = [shape.patch_slots, shape.text_slots, shape.target_slots]
    for count, need in enumerate(needs):
        after = [have - used for have, used in zip(left, need, strict=True)]
        if count and (
            after[0] < (1 - _AGED_PART) * shape.patch_slots
            or after[1] < (1 - _AGED_PART) * shape.text_slots
            or after[2] < 0
        ):
            return count, left
        left = after
    return len(needs), left


class _Trials:
    """Random completions of a row, all tried at once."""

    def __init__(self, shape: RowShape) -> None:
        numbers = np.arange(_TRIALS)
        self._starts = permute(numbers, 1 << 30, key=1)
        self._strides = permute(numbers, 1 << 30, key=2)

    def complete(self, left: list[int], codes: np.ndarray, sizes: np.ndarray, steps: int) -> np.ndarray:
        """Indices of candidates that fill what is left of a row, as well as can be found.

        Args:
            left: patch, text and target slots.
            codes: int64 [c], the candidates' needs, encoded.
            sizes: int64 [c], their slots.
            steps: candidates that one trial goes through; it takes those that fit.
        """
        if not len(codes):
            return np.zeros(0, np.int64)
        order = self._orders(len(codes), steps)
        room = np.full(_TRIALS, _encode(np.asarray(left)) | _GUARDS)
        took = np.empty(order.shape, bool)
        after, guards = np.empty_like(room), np.empty_like(room)
        for step, wanted in enumerate(codes[order]):
            np.subtract(room, wanted, out=after)
            np.bitwise_and(after, _GUARDS, out=guards)
            fits = np.equal(guards, _GUARDS, out=took[step])
            np.copyto(room, after, where=fits)
        unused = (room & _FIELD_MASK) + ((room >> _FIELD) & _FIELD_MASK)
        best = np.argsort(unused, kind="stable")[:_FINISHED]
        fits = ((room[best, None] - codes) & _GUARDS) == _GUARDS
        for row, trial in enumerate(best):
            fits[row, order[took[:, trial], trial]] = False
        gains = fits * sizes
        last = gains.argmax(axis=1)
        winner = int(np.argmin(unused[best] - gains[np.arange(len(best)), last]))
        chosen = order[took[:, best[winner]], best[winner]]
        return np.append(chosen, last[winner]) if gains[winner, last[winner]] else chosen

    def _orders(self, count: int, steps: int) -> np.ndarray:
        """int64 [steps, trials]: the candidates each trial goes through, none of them twice.

        An arithmetic progression modulo a prime: distinct without a check, and random enough among documents that
        come in random order.
        """
        prime = _largest_prime(count)
        starts, strides = self._starts % prime, 1 + self._strides % max(prime - 1, 1)
        return (starts + strides * np.arange(min(steps, prime))[:, None]) % prime


def _encode(needs: np.ndarray) -> np.ndarray:
    """int64 [...]: three counts [..., 3] in one number. With the guard bits set in `room`, `room - code` keeps
    them all exactly where all three counts fit."""
    return needs[..., 0] | (needs[..., 1] << _FIELD) | (needs[..., 2] << (2 * _FIELD))


def _largest_prime(most: int) -> int:
    """The largest prime up to `most`; 1 if there is none."""
    for number in range(most, 1, -1):
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            return number
    return 1
