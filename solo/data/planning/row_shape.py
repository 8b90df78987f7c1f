"""Patch, text and target slots of a row: given in the config, or chosen so that the data fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from solo.config import ConfigError, DataConfig, ImageConfig, StageConfig
from solo.data.planning import tuning
from solo.data.planning.mixture import SourceSize, draw_weights
from solo.data.planning.permutation import permute
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, SourceIndex


@dataclass(frozen=True)
class RowShape:
    """Slots of a row: P patches, T text tokens, Y targets."""

    patch_slots: int
    text_slots: int
    target_slots: int

    @property
    def slots(self) -> int:
        """S = P + T."""
        return self.patch_slots + self.text_slots


class TextPerPatch(NamedTuple):
    """Text slots per patch in documents with images, delimiters and row tokens included.

    mean  over all of them
    low   over the half of the patches with the least text
    """

    mean: float
    low: float


NO_IMAGES = TextPerPatch(0.0, 0.0)


def record_needs(index: SourceIndex, image: ImageConfig) -> np.ndarray:
    """Returns patch, text and target slots of every record that is kept whole, int64 [N, 3].

    A supervised token that begins a record is not a target, because no slot precedes it.
    """
    needs = index.counts(image)
    needs[:, 2] -= (index.first_kinds() == SUPERVISED_TEXT) & (needs[:, 2] > 0)
    return needs


def row_shapes(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig
) -> list[RowShape]:
    """Returns candidate shapes of a stage's rows, the most natural first; only one if the config gives it.

    P : T follows the mixture's mean patches and mean text tokens. Both are multiples of `slot_multiple`, P + T is
    near `row_slots`, and each region has room for the largest image if possible. The first shape is the one nearest to
    `row_slots` among those that the mean document fills best. Y has some room above a row's mean targets, and holds
    the document with the most targets. See `solo.data.planning.tuning` for how near and how much.

    Args:
        stage: the slots, or `row_slots`.
        indexes: sources of the mixture, in its order.
        image: how images become patches.
        data: what happens to documents that are too long.

    Raises:
        ConfigError: a source is empty, or no shape is near `row_slots`.
    """
    measured = {name: _bounded(index) for name, index in indexes.items()}
    needs = {name: record_needs(index, image) for name, index in measured.items()}
    for name, need in needs.items():
        if not len(need):
            raise ConfigError(f"stage {stage.name!r}: source {name!r} holds no record")
    largest = _largest_image(measured, image)
    means = _record_means(stage, indexes, needs)
    if not means[:2].any():
        raise ConfigError(f"stage {stage.name!r}: the records of its sources hold neither text nor images")
    regions = _regions(stage, means, largest)
    if data.overlong == "drop":
        # Records that will be dropped do not count towards the ratio.
        patch_slots, text_slots = regions[0]
        kept = {name: need[(need[:, 0] <= patch_slots) & (need[:, 1] <= text_slots)] for name, need in needs.items()}
        if all(len(need) for need in kept.values()) and any(need.any() for need in kept.values()):
            needs = kept
            regions = _regions(stage, _record_means(stage, indexes, needs), (0, 0))
    means = _record_means(stage, indexes, needs)
    return [
        RowShape(patch_slots, text_slots, _target_slots(stage, means, list(needs.values()), text_slots))
        for patch_slots, text_slots in regions
    ]


def sample_index(index: SourceIndex, records: int) -> SourceIndex:
    """Returns an index of at most `records` records: a fixed random sample."""
    count = len(index)
    chosen = np.sort(permute(np.arange(min(records, count)), count, key=0)) if count else np.zeros(0, np.int64)
    return index.select(chosen)


def mean_needs(stage: StageConfig, sizes: Sequence[SourceSize], means: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean patch, text and target slots of the chunks that the mixture draws, float64 [3].

    Args:
        stage: the mixture.
        sizes: sizes of the sources, in mixture order.
        means: float64 [3] for each source: the mean of its chunks.
    """
    # A plain sum: a matrix product may round differently on another host, and all hosts must choose the same shape.
    shares = draw_weights(stage, sizes)
    return sum((share * mean for share, mean in zip(shares, means, strict=True)), np.zeros(3))


def text_per_patch(stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig) -> TextPerPatch:
    """Returns the text per patch of the mixture's documents with images, or zeros without images."""
    needs = [record_needs(_bounded(index), image) for index in indexes.values()]
    shares = draw_weights(stage, _whole(indexes, needs))
    weights = np.concatenate([np.full(len(need), share / len(need)) for share, need in zip(shares, needs, strict=True)])
    with_images = np.concatenate(needs)[:, 0] > 0
    patches, text, _ = (np.concatenate(needs)[with_images] * weights[with_images, None]).T
    if not len(patches):
        return NO_IMAGES
    order = np.argsort(text / patches, kind="stable")
    patches_so_far, text_so_far = np.cumsum(patches[order]), np.cumsum(text[order])
    half = int(np.searchsorted(patches_so_far, patches_so_far[-1] / 2))
    # Rounded to three decimals, so that no host differs by a rounding error.
    mean, low = (round(float(text_so_far[end] / patches_so_far[end]), 3) for end in (-1, half))
    return TextPerPatch(mean, low)


def _bounded(index: SourceIndex) -> SourceIndex:
    """Returns the index, or a sample of it if it is so large that row shapes are chosen by a sample."""
    return index if len(index) <= tuning.MEASURED_RECORDS else sample_index(index, tuning.MEASURED_RECORDS)


def _record_means(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], needs: Mapping[str, np.ndarray]
) -> np.ndarray:
    means = [need.mean(axis=0) for need in needs.values()]
    return mean_needs(stage, _whole(indexes, list(needs.values())), means)


def _whole(indexes: Mapping[str, SourceIndex], needs: Sequence[np.ndarray]) -> list[SourceSize]:
    """Returns the sizes of sources whose records are all kept whole. `needs` may be those of a sample."""
    found = []
    for index, need in zip(indexes.values(), needs, strict=True):
        documents = len(need) * len(index) // max(min(len(index), tuning.MEASURED_RECORDS), 1)
        slots, targets = (int(sums) * documents // max(len(need), 1) for sums in (need[:, :2].sum(), need[:, 2].sum()))
        found.append(SourceSize(documents, documents, slots, targets))
    return found


def _target_slots(stage: StageConfig, means: np.ndarray, needs: Sequence[np.ndarray], text_slots: int) -> int:
    if stage.target_slots is not None:
        return stage.target_slots
    most = max(int(np.minimum(need[:, 2], text_slots).max()) for need in needs)
    targets = max(tuning.TARGET_MARGIN * text_slots * means[2] / max(means[1], 1e-9), most)
    return min(text_slots, int(-(-targets // stage.slot_multiple) * stage.slot_multiple))


def _largest_image(indexes: Mapping[str, SourceIndex], image: ImageConfig) -> tuple[int, int]:
    """Returns patches of the largest image, and text tokens of the image with the most rows."""
    counts = [index.run_counts(image)[index.run_kinds() == IMAGE] for index in indexes.values()]
    found = np.concatenate([np.zeros((1, 3), np.int64), *counts]).max(axis=0)
    return int(found[0]), int(found[1])


def _regions(stage: StageConfig, means: np.ndarray, largest_image: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns pairs (P, T), the most natural first."""
    if stage.patch_slots is not None and stage.text_slots is not None:
        return [(stage.patch_slots, stage.text_slots)]
    step, row = stage.slot_multiple, stage.row_slots
    sides = np.arange(0, int(row * (1 + tuning.TOLERANCE)) + 1, step)
    patches, text = (grid.ravel() for grid in np.meshgrid(sides, sides))
    allowed = (np.abs(patches + text - row) <= tuning.TOLERANCE * row) & (text > 0)
    allowed &= (patches > 0) if means[0] > 0 else (patches == 0)
    if not allowed.any():
        raise ConfigError(
            f"stage {stage.name!r}: no multiples of slot_multiple {step} lie near row_slots {row}; lower "
            "slot_multiple, raise row_slots, or give patch_slots and text_slots"
        )
    roomy = allowed & (patches >= largest_image[0]) & (text >= largest_image[1])
    allowed = roomy if roomy.any() else allowed
    patches, text = patches[allowed], text[allowed]
    with np.errstate(divide="ignore", invalid="ignore"):
        rows_filled = np.fmin(patches / means[0], text / means[1])
    fill = rows_filled * means[:2].sum() / (patches + text)
    # Rounded to 0.1%, because packing hides finer differences.
    order = np.lexsort((np.abs(patches + text - row), -np.round(fill, 3)))
    best = fill[order[0]]
    found = [(int(patches[order[0]]), int(text[order[0]]))]
    for tilt in tuning.TILTS:
        for scale in tuning.SCALES:
            # `tilt` moves P off the ratio: a little room in one region can make the other fill much better.
            wanted = row * scale * means[:2] / means[:2].sum() * np.asarray([1 + tilt, 1])
            nearest = np.argmin(np.abs(patches - wanted[0]) + np.abs(text - wanted[1]))
            if fill[nearest] >= best - tuning.GIVEN_UP:
                found.append((int(patches[nearest]), int(text[nearest])))
    return list(dict.fromkeys(found))
