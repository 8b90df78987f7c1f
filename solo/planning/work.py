"""FLOPs of a step: what is useful of it, and what the machine has to compute for that.

Counted from shapes (`solo.model.flops`), so exact for the documents assumed. What recomputation adds follows from
the policies of `solo.model.remat`, not from the program: the compiler may spare some of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.config import Config, ModelConfig, StageConfig
from solo.model.attention.kernel import choose_kernel
from solo.model.attention.tiles import needed_blocks
from solo.model.flops import BatchStats, step_flops
from solo.model.parameters import ModelDefinition
from solo.planning.rows import Rows, row_intervals
from solo.sharding.hardware import CHIPS, Chip
from solo.training.optimizer import trainable_paths

_SAMPLED_ROWS = 64
_FFN = ("ffn_patches", "ffn_text")
_MATRICES = ("qkv", "out", *_FFN)


@dataclass(frozen=True)
class StepWork:
    """FLOPs of one step over all devices, by part as in `step_flops`.

    useful    products for slots that hold something, and query-key pairs that see each other
    computed  products for all slots and whole tiles, with what is computed again in the backward pass
    tokens    patches and text tokens that a step learns from
    visits    key blocks that a query block visits, on average
    """

    useful: dict[str, int]
    computed: dict[str, int]
    tokens: int
    visits: float

    @property
    def useful_share(self) -> float:
        """Of what is computed."""
        return sum(self.useful.values()) / sum(self.computed.values())


def step_work(
    config: Config, stage: StageConfig, definition: ModelDefinition, rows: Rows, chip: Chip = CHIPS["cpu"]
) -> StepWork:
    """Count a step of a stage, with the tiles of the chip's own attention."""
    trained = frozenset(trainable_paths(definition.specs, stage))
    model, shape, count = config.model, rows.shape, stage.batch_rows
    image = config.image_in(stage)
    kernel = choose_kernel(
        model, "tpu" if chip.is_tpu else "cpu" if chip.name == "cpu" else "cuda", chip.device_kinds[0]
    )
    pairs, tiles, blocks = [], [], []
    for row in rows.documents[:_SAMPLED_ROWS]:
        attend = row_intervals(row, shape, image, config.sequence)
        pairs.append(int((attend[:, 1] - attend[:, 0] + attend[:, 3] - attend[:, 2]).sum()))
        needed = np.asarray(
            needed_blocks(
                attend[None],
                num_patches=shape.patch_slots,
                num_text=shape.text_slots,
                block=kernel.block,
                key_block=kernel.key_block,
            )
        )
        # Blocks may reach beyond the row; what is there is computed too.
        tiles.append(int(needed.sum()) * kernel.block * kernel.key_block)
        blocks.append(float(needed.sum() / needed.shape[1]))
    if kernel.implementation == "dense":
        tiles = [shape.slots**2]
    patches, text, targets = (round(value * count) for value in rows.live)
    useful = step_flops(definition, BatchStats(patches, text, targets, round(np.mean(pairs) * count)), trained)
    slots = BatchStats(
        shape.patch_slots * count, shape.text_slots * count, shape.target_slots * count, round(np.mean(tiles) * count)
    )
    # Of a loss in several chunks the backward pass computes the logits again.
    chunked = stage.loss.chunk // max(1, count // stage.accumulate) < shape.target_slots
    computed = _with_recomputation(config.model, definition, slots, trained, chunked)
    return StepWork(useful, computed, patches + text, float(np.mean(blocks)))


def _with_recomputation(
    config: ModelConfig, definition: ModelDefinition, work: BatchStats, trained: frozenset[str], chunked: bool
) -> dict[str, int]:
    """Add the scores of the backward pass, the logits of chunks, and what `model.remat` computes again of a layer."""
    found = step_flops(definition, work, trained)
    # Without anything trained a part is its forward pass and one product as large; the embedder's first has none.
    forward = {part: flops // 2 for part, flops in step_flops(definition, work, frozenset()).items()}
    found["attention"] = found["attention"] * 7 // 6
    found["head"] += forward["head"] * chunked
    if config.remat == "full":
        # Scores and values once more.
        found["attention"] += forward["attention"] * 2 // 3
    again = {"none": (), "dots": (), "projections": _FFN, "offload_projections": _FFN}.get(config.remat, _MATRICES)
    # Nothing needs the output of an FFN's last product again.
    last = 3 if config.ffn == "swiglu" else 2
    for part in again:
        found[part] += forward[part] * (last - 1) // last if part in _FFN else forward[part]
    return found
