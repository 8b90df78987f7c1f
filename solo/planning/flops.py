"""The useful FLOPs and the computed FLOPs of a step.

Both are counted from shapes (`solo.model.flops`), so they are exact for the assumed documents. The cost of
recomputation follows from the policies of `solo.model.remat`, not from the program. The compiler may avoid some of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solo.chips import CHIPS, Chip
from solo.config import Config, ModelConfig, StageConfig
from solo.model.attention.kernel import choose_kernel
from solo.model.attention.tiles import needed_blocks
from solo.model.flops import BatchStats, mean_pairs, step_flops, type_shares
from solo.model.parameters import ModelDefinition
from solo.model.transformer import padded_vocab
from solo.planning.rows import Rows, row_intervals
from solo.sharding.axes import mesh_sizes, row_shards
from solo.training.groups import trainable_paths
from solo.training.losses import targets_per_chunk

_SAMPLED_ROWS = 64
_FFN = ("ffn_patches", "ffn_text")
_MATRICES = ("qkv", "out", *_FFN)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over all devices, by the parts of `solo.model.flops.step_flops`.

    useful    products of non-empty slots, and visible query-key pairs
    computed  products of all slots and whole tiles, including the recomputation of the backward pass
    tokens    patches and text tokens that a step learns from
    visits    average number of key blocks that a query block visits
    """

    useful: dict[str, int]
    computed: dict[str, int]
    tokens: int
    visits: float

    @property
    def useful_share(self) -> float:
        """Useful FLOPs divided by computed FLOPs."""
        return sum(self.useful.values()) / sum(self.computed.values())


def planned_flops(
    config: Config,
    stage: StageConfig,
    definition: ModelDefinition,
    rows: Rows,
    chip: Chip = CHIPS["cpu"],
    devices: int = 1,
) -> StepFlops:
    """Count the FLOPs of a stage's step, with the attention tiles of a chip."""
    trained = frozenset(trainable_paths(definition.specs, stage))
    model, shape, count = config.model, rows.shape, stage.batch_rows
    image = config.image_in(stage)
    kernel = choose_kernel(model, chip.platform, chip.device_kinds[0])
    shares = type_shares(model)
    pairs, tiles, blocks = [], [], []
    for row in rows.documents[:_SAMPLED_ROWS]:
        attend = row_intervals(row, shape, image, config.sequence)
        pairs.append(mean_pairs(attend, shares))
        # Masks [N, S, 4] of N types of layers.
        masks = attend[None] if attend.ndim == 2 else attend.swapaxes(0, 1)
        needed = np.asarray(
            needed_blocks(
                masks,
                num_patches=shape.patch_slots,
                num_text=shape.text_slots,
                block=kernel.block,
                key_block=kernel.key_block,
            )
        )
        visited = float(np.dot(needed.sum(axis=(1, 2)), shares))
        # Blocks may extend beyond the row, and are computed whole.
        tiles.append(round(visited * kernel.block * kernel.key_block))
        blocks.append(visited / needed.shape[1])
    if kernel.implementation == "dense":
        tiles = [shape.slots**2]
    patches, text, targets = (round(value * count) for value in rows.live)
    useful = step_flops(definition, BatchStats(patches, text, targets, round(np.mean(pairs) * count)), trained)
    slots = BatchStats(
        shape.patch_slots * count, shape.text_slots * count, shape.target_slots * count, round(np.mean(tiles) * count)
    )
    # The backward pass of a loss in several chunks recomputes the logits.
    sizes = mesh_sizes(config.mesh, devices)
    local_rows = count // stage.accumulate // row_shards(sizes)
    vocab = padded_vocab(definition.vocab_size, model) // sizes["tensor"]
    chunked = targets_per_chunk(stage.loss.chunk_size, local_rows, shape.target_slots, vocab) < shape.target_slots
    computed = _with_recomputation(config.model, definition, slots, trained, chunked)
    return StepFlops(useful, computed, patches + text, float(np.mean(blocks)))


def _with_recomputation(
    config: ModelConfig, definition: ModelDefinition, stats: BatchStats, trained: frozenset[str], chunked: bool
) -> dict[str, int]:
    """Add the backward pass's scores, the logits of chunks, and the part of a layer that `model.remat` recomputes."""
    found = step_flops(definition, stats, trained)
    # A part without trained parameters is its forward pass and one product of the same size; the first product of the
    # patch embedding has no second.
    forward = {part: flops // 2 for part, flops in step_flops(definition, stats, frozenset()).items()}
    # Of three passes over scores and values, the backward pass repeats the scores.
    dims = config.dim_per_query + config.dim_per_value
    found["attention"] += found["attention"] * config.dim_per_query // (3 * dims)
    found["head"] += forward["head"] * chunked
    if config.remat == "full":
        # Scores and values are computed once more.
        found["attention"] += forward["attention"] * 2 // 3
    again = {"none": (), "dots": (), "projections": _FFN, "offload_projections": _FFN}.get(config.remat, _MATRICES)
    # The output of an FFN's last product is never recomputed: nothing needs it.
    last = 2 if config.ffn == "relu2" else 3
    for part in again:
        found[part] += forward[part] * (last - 1) // last if part in _FFN else forward[part]
    return found
