"""Counts the FLOPs of a step's matrix products from shapes.

A product of [m, k] and [k, n] has 2 m k n FLOPs. Norms, the softmax and the optimizer are not counted: they are below
2% of the FLOPs that the compiler counts for a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from solo.batch import Batch
from solo.config import ModelConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition
from solo.model.regions import live_slots

PARTS = ("patch_embed", "qkv", "out", "ffn_patches", "ffn_text", "attention", "head")


@dataclass(frozen=True)
class BatchStats:
    """The amount of computation in a batch, a step or a run.

    patches, text   slots of each region
    targets         slots whose logits are computed
    pairs           query-key pairs in the attention of one layer; the mean over the types of layers, by `type_shares`
    documents       documents, or chunks of long documents; 0 if they were not counted
    """

    patches: int
    text: int
    targets: int
    pairs: int
    documents: int = 0


def type_shares(config: ModelConfig) -> tuple[float, ...]:
    """Returns the share of each type of layers in the FLOPs of attention, if all had the same number of pairs."""
    widths = [count * (typed.dim_per_query + typed.dim_per_value) for typed, count in config.each_type]
    return tuple(width / sum(widths) for width in widths)


def mean_pairs(attend: Any, shares: Sequence[float]) -> int:
    """Counts the query-key pairs of `Batch.attend`, int32 [..., S, 4] or [..., S, N, 4], the mean over N types."""
    seen = attend[..., 1] - attend[..., 0] + attend[..., 3] - attend[..., 2]
    if len(shares) == 1:
        return int(seen.sum())
    return round(float(np.dot(seen.sum(axis=tuple(range(seen.ndim - 1))), shares)))


def batch_stats(batch: Batch, shares: Sequence[float] = (1.0,)) -> BatchStats:
    """Counts the non-empty slots, targets, visible query-key pairs and documents of a batch (numpy).

    `shares` are the model's `type_shares`.
    """
    live = live_slots(batch.attend)
    num_patches = batch.patches.shape[1]
    return BatchStats(
        patches=int(live[:, :num_patches].sum()),
        text=int(live[:, num_patches:].sum()),
        targets=int((batch.target_weights > 0).sum()),
        pairs=mean_pairs(batch.attend, shares),
        documents=int((live & _begins(batch.positions)).sum()),
    )


def _begins(positions: Any) -> Any:
    """Returns bool [B, S]: the slots at position 0, of which every document has one."""
    return positions == 0 if positions.ndim == 2 else (positions == 0).all(axis=-1)


def step_flops(definition: ModelDefinition, stats: BatchStats, trained: frozenset[str] | None = None) -> dict[str, int]:
    """Returns the FLOPs of a training step by part: forward pass, gradients of inputs, gradients of trained weights.

    Args:
        definition: the model.
        stats: counts of the non-empty slots for useful FLOPs, or of all slots for computed FLOPs.
        trained: the paths of the trained parameters; None: all.

    Returns:
        FLOPs of each of `PARTS`, without recomputation (`model.remat`).
    """
    config, specs = definition.config, definition.specs
    found = dict.fromkeys(PARTS, 0)
    for path, spec in specs.items():
        # The pixels have no gradient.
        products = 1 + ("pixels" not in spec.axes) + (trained is None or path in trained)
        for part, slots in _slots(spec, stats):
            found[part] += 2 * int(slots * spec.uses * prod(spec.shape)) * products
    if config.tied_head:
        trains_head = trained is None or "text_embed" in trained
        found["head"] += 2 * stats.targets * prod(specs["text_embed"].shape) * (2 + trains_head)
    # The forward pass multiplies queries by keys and weights by values; each has two products in the backward pass.
    dims = sum(count * typed.heads * (typed.dim_per_query + typed.dim_per_value) for typed, count in config.each_type)
    found["attention"] = 3 * 2 * dims * stats.pairs
    return found


def _slots(spec: ParameterSpec, stats: BatchStats) -> Iterator[tuple[str, int]]:
    """Yields the parts that a matrix belongs to, and the number of slots that are multiplied by it in each."""
    if not spec.is_matrix:
        return
    for region in ("patches", "text") if spec.region in ("shared", "moe") else (spec.region,):
        yield f"ffn_{region}" if spec.component == "ffn" else spec.component, getattr(stats, region)
