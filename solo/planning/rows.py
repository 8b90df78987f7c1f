"""The slots and documents of a stage's rows, from prepared data or as stated in the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from solo.config import Config, ConfigError, ImageConfig, SequenceConfig, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.assembly import row_attend
from solo.data.rows.reading_order import join_documents, outline
from solo.data.store.prepare import open_prepared

# Share of patches in a row without prepared data: that of image-text documents of SOLO and Mono-InternVL.
PATCH_SHARE = 0.75
# Batches of prepared data that are read for the lengths of documents.
_SAMPLED_STEPS = 4


@dataclass(frozen=True)
class Document:
    """Slots of a document: patches, text tokens, and targets."""

    patches: int
    text: int
    targets: int


@dataclass(frozen=True)
class Rows:
    """A stage's rows.

    shape       slots of a row
    num_steps   steps of the stage
    documents   documents of a sample of rows
    source      description of where these figures come from
    measured    whether they come from prepared data
    vocab_size  vocabulary size of the tokenizer, if there is one
    """

    shape: RowShape
    num_steps: int
    documents: tuple[tuple[Document, ...], ...]
    source: str
    measured: bool = False
    vocab_size: int | None = None

    @cached_property
    def live(self) -> tuple[float, float, float]:
        """Patches, text tokens and targets of an average row."""
        sums = [(d.patches, d.text, d.targets) for row in self.documents for d in row]
        patches, text, targets = (sum(column) / len(self.documents) for column in zip(*sums, strict=True))
        return patches, text, targets


def stage_rows(config: Config, stage: StageConfig, document_slots: int | None = None) -> Rows:
    """Returns the rows of the prepared data, or stated rows if there is none or `document_slots` is given.

    Raises:
        ConfigError: the data does not fit the rows, or there is no data and the stage is counted in epochs.
    """
    if document_slots is not None:
        return stated_rows(stage, document_slots=document_slots)
    try:
        open_prepared(config)
    except (ConfigError, OSError):
        return stated_rows(stage)
    return planned_rows(config, stage)


def planned_rows(config: Config, stage: StageConfig) -> Rows:
    """Plans the prepared data of a config.

    Raises:
        ConfigError: the data is not prepared, or it does not fit the rows.
    """
    prepared = open_prepared(config)
    indexes = {name: prepared.sources[name].index for name in stage.sources}
    plan = StagePlan(stage, indexes, config.image_in(stage), config.data, config.seed)
    documents = tuple(
        tuple(Document(*chunk.needs) for chunk in row)
        for step in range(min(_SAMPLED_STEPS, plan.num_steps))
        for row in plan.rows(step)
    )
    source, vocab_size = f"the prepared data of {config.data.folder}", prepared.tokenizer.vocab_size
    return Rows(plan.shape, plan.num_steps, documents, source, measured=True, vocab_size=vocab_size)


def stated_rows(stage: StageConfig, patch_share: float = PATCH_SHARE, document_slots: int | None = None) -> Rows:
    """Returns rows of the stage's shape, filled with equal documents, each an image before its text.

    Args:
        stage: its patch_slots and text_slots, or row_slots divided by `patch_share`.
        patch_share: share of patches in a row.
        document_slots: slots of a document; default: a whole row.

    Raises:
        ConfigError: the stage is counted in epochs, which needs data, or the share is not in [0, 1).
    """
    if not 0 <= patch_share < 1:
        raise ConfigError(f"patch share {patch_share}: expected at least 0 and below 1")
    if stage.epochs is not None:
        raise ConfigError(f"stage {stage.name!r} is counted in epochs: prepare its data (solo prepare), or set steps")
    if stage.patch_slots is not None and stage.text_slots is not None:
        patches, text, source = stage.patch_slots, stage.text_slots, "patch_slots and text_slots of the stage"
    else:
        multiple = stage.slot_multiple
        patches = round(stage.row_slots * patch_share / multiple) * multiple
        text = -(-(stage.row_slots - patches) // multiple) * multiple
        source = f"row_slots of the stage, a share of {patch_share:.0%} patches (stated, not measured)"
    shape = RowShape(patches, text, stage.target_slots or text)
    count = max(1, round(shape.slots / (document_slots or shape.slots)))
    row = tuple(Document(patches // count, text // count, min(text, shape.target_slots) // count) for _ in range(count))
    length = row[0].patches + row[0].text
    steps = stage.steps or -(-(stage.tokens or 0) // (shape.slots * stage.batch_rows))
    return Rows(shape, steps, (row,), f"{source}; documents of {length:,} slots (stated)")


def row_intervals(row: Sequence[Document], shape: RowShape, image: ImageConfig, sequence: SequenceConfig) -> np.ndarray:
    """Returns int32 [S, 4], `Batch.attend` of a row of documents: each is one image, then text; see `outline`."""
    order = join_documents([(outline(document.patches, document.text, image), 0) for document in row])
    return row_attend(order, shape, image, sequence)
