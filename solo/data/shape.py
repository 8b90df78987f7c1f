"""How many patch, text and target slots a row has: given in the config, or chosen so that the data fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from solo.config import ConfigError, DataConfig, ImageConfig, StageConfig
from solo.data.index import IMAGE, SUPERVISED_TEXT, SourceIndex
from solo.data.mixture import SourceSize, draw_weights

_TOLERANCE = 0.12  # how far P + T may be from row_slots, as a fraction of it
_TARGET_MARGIN = 1.15  # a row's targets spread around their mean


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


def record_needs(index: SourceIndex, image: ImageConfig) -> np.ndarray:
    """int64 [N, 3]: patch, text and target slots of every record, if it is kept whole.

    A supervised token that opens a record has nothing before it to be predicted from: it is no target.
    """
    needs = index.counts(image)
    first_run = np.minimum(index.record_run[:-1], len(index.run_kind) - 1)
    needs[:, 2] -= (index.run_kind[first_run] == SUPERVISED_TEXT) & (needs[:, 2] > 0)
    return needs


def choose_row_shape(
    stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig, data: DataConfig
) -> RowShape:
    """The shape of a stage's rows.

    What the config gives is kept. Otherwise P : T follows the mixture's mean patches and mean text tokens, both
    multiples of `slot_multiple`, P + T within 12% of `row_slots`, each large enough for the largest image if that
    is possible. Y is 1.15 times what a row holds on average, and enough for the document with most targets.

    Args:
        stage: slots given, or what they are to be near to.
        indexes: the sources of the mixture, in its order.
        image: how images become patches.
        data: what happens to documents that are too long.

    Raises:
        ConfigError: a source is empty, or no shape is near `row_slots`.
    """
    needs = {name: record_needs(index, image) for name, index in indexes.items()}
    for name, need in needs.items():
        if not len(need):
            raise ConfigError(f"stage {stage.name!r}: source {name!r} holds no record")
    means = _mean_needs(stage, needs)
    patch_slots, text_slots = _regions(stage, means, _largest_image(indexes, image))
    if data.overlong == "drop":
        # Records that will be dropped no longer count for the ratio.
        kept = {name: need[(need[:, 0] <= patch_slots) & (need[:, 1] <= text_slots)] for name, need in needs.items()}
        if all(len(need) for need in kept.values()):
            needs, means = kept, _mean_needs(stage, kept)
            patch_slots, text_slots = _regions(stage, means, (0, 0))
    if stage.target_slots is not None:
        return RowShape(patch_slots, text_slots, stage.target_slots)
    most = max(int(np.minimum(need[:, 2], text_slots).max()) for need in needs.values())
    targets = max(_TARGET_MARGIN * text_slots * means[2] / means[1], most)
    return RowShape(patch_slots, text_slots, min(text_slots, _round_up(targets, stage.slot_multiple)))


def text_per_patch(stage: StageConfig, indexes: Mapping[str, SourceIndex], image: ImageConfig) -> float:
    """Text slots per patch in the mixture's documents with images, to three decimals; 0 where there are none."""
    needs = {name: record_needs(index, image) for name, index in indexes.items()}
    with_images = {name: need * (need[:, :1] > 0) for name, need in needs.items()}
    sizes = [SourceSize(len(need), len(need), int(need[:, :2].sum())) for need in needs.values()]
    means = draw_weights(stage, sizes) @ np.stack([need.mean(axis=0) for need in with_images.values()])
    return round(float(means[1] / means[0]), 3) if means[0] else 0.0


def _mean_needs(stage: StageConfig, needs: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 [3]: patches, text and targets of a document of the mixture, on average."""
    sizes = [SourceSize(len(need), len(need), int(need[:, :2].sum())) for need in needs.values()]
    return draw_weights(stage, sizes) @ np.stack([need.mean(axis=0) for need in needs.values()])


def _largest_image(indexes: Mapping[str, SourceIndex], image: ImageConfig) -> tuple[int, int]:
    """Patches of the largest image, and text tokens of the one with most rows."""
    counts = [index.run_counts(image)[index.run_kind == IMAGE] for index in indexes.values()]
    found = np.concatenate([np.zeros((1, 3), np.int64), *counts]).max(axis=0)
    return int(found[0]), int(found[1])


def _regions(stage: StageConfig, means: np.ndarray, largest_image: tuple[int, int]) -> tuple[int, int]:
    """(P, T). The pair that the mean document fills best; among equals (to 0.1%) the one nearest to row_slots."""
    if stage.patch_slots is not None and stage.text_slots is not None:
        return stage.patch_slots, stage.text_slots
    step, row = stage.slot_multiple, stage.row_slots
    sides = np.arange(0, int(row * (1 + _TOLERANCE)) + 1, step)
    patches, text = (grid.ravel() for grid in np.meshgrid(sides, sides))
    allowed = (np.abs(patches + text - row) <= _TOLERANCE * row) & (text > 0)
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
    best = np.lexsort((np.abs(patches + text - row), -np.round(fill, 3)))[0]
    return int(patches[best]), int(text[best])


def _round_up(value: float, step: int) -> int:
    return int(-(-value // step) * step)
