"""The training objective as a sum of named loss terms, and the one place where means are taken.

A term receives a micro-batch after the forward pass (`Forward`). It returns its contribution to the objective, and
named sums to report. Sums are added over micro-batches; `means` divides them on the host, and they appear in
`metrics.jsonl` under their names. To add an auxiliary loss, write a term and list it in `TERMS`.

The cross-entropy is computed only at target slots and in chunks, so logits of whole rows are never materialised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import LossConfig
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.model.regions import Regions
from solo.model.transformer import Output, Transformer

# Size of the float32 logits of a chunk on a device, unless `loss.chunk_size` is set. With a vocabulary of 32,768 these
# are 1,024 slots: enough rows to make the product with the head compute-bound instead of memory-bound.
LOGIT_BYTES = 128 * 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A mean as numerator and denominator, float32 [] each. Micro-batches are combined by adding both."""

    total: jax.Array
    count: jax.Array


# Measurements by name. A nested mapping contains the means of groups. Arrays other than means are reported unchanged.
Measured = Mapping[str, Any]


class Forward(NamedTuple):
    """A micro-batch after the forward pass.

    batch           `target_weights` are normalised over the whole batch (`normalised_weights`)
    output          output of the network
    cross_entropy   float32 [B, Y], nats
    log_normaliser  float32 [B, Y], log of the sum over the vocabulary of exponentiated logits
    definition      the model
    config          config of the loss
    sources         names of the mixture's sources, in its order, which `target_source` indexes
    share           fraction of the whole batch in the micro-batch
    """

    batch: Batch
    output: Output
    cross_entropy: jax.Array
    log_normaliser: jax.Array
    definition: ModelDefinition
    config: LossConfig
    sources: Sequence[str]
    share: float


def cross_entropy(x: Forward) -> tuple[jax.Array, Measured]:
    """Weighted cross-entropy; reported by source, and by whether the target's slot sees a patch."""
    spans = x.batch.attend[..., :2]
    sees_BS = (spans[..., 1] > spans[..., 0]).reshape(*spans.shape[:2], -1).any(-1)  # in layers of any type
    sees_patches_BY = jnp.take_along_axis(sees_BS, x.batch.target_slots, axis=1).astype(jnp.int32)
    return jnp.sum(x.batch.target_weights * x.cross_entropy), {
        "loss_by_source": _by_group(x, x.batch.target_source, x.sources),
        "loss_by_context": _by_group(x, sees_patches_BY, ("text_only", "with_image")),
    }


def z_loss(x: Forward) -> tuple[jax.Array, Measured]:
    """Squared log normaliser, which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5)."""
    if not x.config.z_loss:
        return jnp.zeros(()), {}
    squares_BY = x.config.z_loss * x.log_normaliser**2
    live_BY = _live(x)
    return jnp.sum(x.batch.target_weights * squares_BY), {"z_loss": Mean(jnp.sum(live_BY * squares_BY), live_BY.sum())}


def load_balancing(x: Forward) -> tuple[jax.Array, Measured]:
    """Load-balancing loss of a mixture of experts with a learned router, weighted; its mean over micro-batches."""
    if x.definition.config.experts.ffn != "moe":
        return jnp.zeros(()), {}
    value = x.definition.config.moe.auxiliary_weight * x.share * x.output.auxiliary
    return value, {"load_balancing_loss": Mean(value, jnp.full((), x.share))}


TERMS: tuple[Callable[[Forward], tuple[jax.Array, Measured]], ...] = (cross_entropy, z_loss, load_balancing)


def batch_loss(
    definition: ModelDefinition,
    placement: Placement,
    parameters: Parameters,
    batch: Batch,
    config: LossConfig,
    *,
    sources: Sequence[str] = ("all",),
    share: float = 1.0,
) -> tuple[jax.Array, Measured]:
    """Computes the objective of a (micro-)batch and its reported sums.

    Args:
        definition: the model.
        placement: the operations that depend on the devices.
        parameters: parameters by path.
        batch: a batch with normalised `target_weights`.
        config: the loss.
        sources: names of the sources that `target_source` indexes.
        share: fraction of the whole batch in this micro-batch.

    Returns:
        The objective, float32 [], and the measured sums by name.
    """
    model = definition.bind(parameters)
    output = model.hidden(batch, placement)
    losses: tuple[jax.Array, jax.Array] = at_targets(model, placement, output.hidden, batch, config, _target_losses)
    found = [term(Forward(batch, output, *losses, definition, config, sources, share)) for term in TERMS]
    measured = {name: value for _, values in found for name, value in values.items()}
    return sum((value for value, _ in found), jnp.zeros(())), jax.lax.stop_gradient(measured)


def means(measured: Measured) -> dict[str, Any]:
    """Divides on the host. Returns Python numbers by name, without empty groups."""

    def mean(value: Any) -> Any:
        if isinstance(value, Mean):
            return float(value.total / value.count)
        if isinstance(value, Mapping):
            counted = {name: each for name, each in value.items() if not isinstance(each, Mean) or each.count}
            return {name: mean(each) for name, each in counted.items()}
        return value.item()

    return mean(measured)


def normalised_weights(weights_BY: jax.Array, config: LossConfig) -> jax.Array:
    """Scales target weights so that the loss is a plain weighted sum over the whole batch.

    With `average: row`, all rows with targets have the same weight, like SOLO's packs. The loader applies the other
    averages to the weights of a row. This is called before a batch is split into micro-batches, so splitting does not
    change the loss.
    """
    if config.average != "row":
        return weights_BY / jnp.maximum(weights_BY.sum(), 1e-9)
    per_row = weights_BY.sum(axis=1, keepdims=True)
    rows = (per_row > 0).sum()
    return jnp.where(per_row > 0, weights_BY / jnp.maximum(per_row, 1e-9), 0.0) / jnp.maximum(rows, 1)


def targets_per_chunk(chunk_size: int | None, rows: int, target_slots: int, vocab: int) -> int:
    """Returns the target slots of each row whose logits are computed at once; all of them if one chunk suffices.

    Args:
        chunk_size: number of target slots of a device per chunk; None: as many as fit in `LOGIT_BYTES`.
        rows: rows on a device.
        target_slots: Y.
        vocab: vocabulary entries on a device.
    """
    size = chunk_size or LOGIT_BYTES // (4 * vocab)
    most = max(1, min(target_slots, size // max(1, rows)))
    chunks = -(-target_slots // most)
    return -(-target_slots // chunks)  # chunks of equal size need the least padding


def at_targets(
    model: Transformer,
    placement: Placement,
    hidden: Regions,
    batch: Batch,
    config: LossConfig,
    function: Callable[[jax.Array, jax.Array], Any],
) -> Any:
    """Applies a function to the logits at the target slots, a chunk of them at a time.

    Args:
        model: the model.
        placement: the operations that depend on the devices.
        hidden: final hidden states.
        batch: its target slots and ids.
        config: the loss, for its `chunk_size`.
        function: (float32 logits [B, y, V], int32 target ids [B, y]) -> arrays [B, y].

    Returns:
        The function's arrays, [B, Y]. Slots without a target have values, too.
    """
    x_BYD = jnp.take_along_axis(hidden.join(), batch.target_slots[..., None], axis=1)

    def in_chunks(x_BYD: jax.Array, ids_BY: jax.Array, kernel_DV: jax.Array) -> Any:
        rows, slots = ids_BY.shape
        vocab = kernel_DV.shape[1] // placement.vocab_shards
        width = targets_per_chunk(config.chunk_size, rows // placement.row_shards, slots, vocab)

        def apply(x: jax.Array, ids: jax.Array) -> Any:
            return function(model.logits(x, kernel_DV=kernel_DV), ids)

        return _in_chunks(apply, x_BYD, ids_BY, width)

    return placement.with_head(in_chunks, x_BYD, batch.target_ids, model.head_kernel())


def _in_chunks(apply: Callable[[jax.Array, jax.Array], Any], x_BYD: jax.Array, ids_BY: jax.Array, width: int) -> Any:
    """Applies a function to `width` target slots of every row at a time."""
    rows, slots = ids_BY.shape
    if width == slots:
        return apply(x_BYD, ids_BY)
    padding = -slots % width
    x_BYD, ids_BY = jnp.pad(x_BYD, ((0, 0), (0, padding), (0, 0))), jnp.pad(ids_BY, ((0, 0), (0, padding)))
    chunks = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(rows, -1, width, *a.shape[2:]), 1, 0), (x_BYD, ids_BY))
    # Logits are recomputed in the backward pass; otherwise those of every chunk would be kept.
    recomputed = jax.checkpoint(apply, prevent_cse=False)
    found = jax.lax.map(lambda chunk: recomputed(*chunk), chunks)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(rows, -1)[:, :slots], found)


def _target_losses(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and log normaliser [B, y], float32."""
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    return log_normaliser - jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0], log_normaliser


def _by_group(x: Forward, group_BY: jax.Array, names: Sequence[str]) -> dict[str, Mean]:
    """Returns the mean cross-entropy of the targets of each group, in nats; every target counts once."""
    member_BYN = jax.nn.one_hot(group_BY, len(names)) * _live(x)[..., None]
    totals = jnp.einsum("by,byn->n", x.cross_entropy, member_BYN)
    counts = member_BYN.sum((0, 1))
    return {name: Mean(totals[number], counts[number]) for number, name in enumerate(names)}


def _live(x: Forward) -> jax.Array:
    """Returns float32 [B, Y]: 1 where there is a target."""
    return (x.batch.target_weights > 0).astype(jnp.float32)
