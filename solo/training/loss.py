"""Cross-entropy at the target slots only, in chunks: logits of a whole row never exist."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import LossConfig
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.model.regions import Regions
from solo.model.transformer import Transformer


class LossSums(NamedTuple):
    """Sums over targets, to be added over micro-batches.

    total        float32 []      sum of weight x (cross-entropy + z-loss), plus the weighted load-balancing loss of
                                 learned experts; weights already normalised
    by_source    float32 [N, 2]  sum of cross-entropy in nats, and number of targets, per source
    by_modality  float32 [2, 2]  the same for targets that see no patch (text), and that see patches (image)
    """

    total: jax.Array
    by_source: jax.Array
    by_modality: jax.Array


def batch_loss(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    batch: Batch,
    config: LossConfig,
    *,
    num_sources: int = 1,
    share: float = 1.0,
) -> LossSums:
    """Loss sums of a batch whose `target_weights` are normalised already.

    share  of the whole batch that this micro-batch is: what the load-balancing loss counts for
    """
    model = definition.bind(parameters)
    output = model.hidden(batch, where)
    sums = target_loss(model, output.hidden, batch, config, num_sources)
    if definition.config.experts.ffn != "moe":
        return sums
    weight = definition.config.moe.auxiliary_weight * share
    return sums._replace(total=sums.total + weight * output.auxiliary)


def normalised_weights(weights_BY: jax.Array, config: LossConfig) -> jax.Array:
    """Scale weights so that the loss is a plain weighted sum over the whole batch.

    `row`: every row that has targets weighs the same, however many it has, as SOLO's packs do. The other averages are
    in the weights that a row comes with. Computed before a batch is cut into micro-batches: cutting changes nothing.
    """
    if config.average != "row":
        return weights_BY / jnp.maximum(weights_BY.sum(), 1e-9)
    per_row = weights_BY.sum(axis=1, keepdims=True)
    rows = (per_row > 0).sum()
    return jnp.where(per_row > 0, weights_BY / jnp.maximum(per_row, 1e-9), 0.0) / jnp.maximum(rows, 1)


def target_loss(model: Transformer, hidden: Regions, batch: Batch, config: LossConfig, num_sources: int) -> LossSums:
    """Loss sums of a batch whose `target_weights` are normalised already. Logits are float32."""
    x_BYD = jnp.take_along_axis(hidden.join(), batch.target_slots[..., None], axis=1)
    cross_entropy_BY, log_normaliser_BY = _cross_entropy(model, x_BYD, batch.target_ids, config)
    total = jnp.sum(batch.target_weights * (cross_entropy_BY + config.z_loss * log_normaliser_BY**2))
    live_BY = (batch.target_weights > 0).astype(jnp.float32)
    cross_entropy_BY = jax.lax.stop_gradient(cross_entropy_BY)
    span = jnp.take_along_axis(batch.attend, batch.target_slots[..., None], axis=1)
    sees_patches_BY = (span[..., 1] > span[..., 0]).astype(jnp.int32)

    def sums(group_BY: jax.Array, count: int) -> jax.Array:
        member_BYN = jax.nn.one_hot(group_BY, count) * live_BY[..., None]
        return jnp.stack([jnp.einsum("by,byn->n", cross_entropy_BY, member_BYN), member_BYN.sum((0, 1))], axis=-1)

    return LossSums(total, sums(batch.target_source, num_sources), sums(sees_patches_BY, 2))


def _cross_entropy(
    model: Transformer, x_BYD: jax.Array, ids_BY: jax.Array, config: LossConfig
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and log normaliser [B, Y], float32, computed for `chunk` targets at a time."""
    rows, slots = ids_BY.shape
    width = max(1, min(slots, config.chunk // rows))

    def piece(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, ids = chunk
        logits = model.logits(x)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        return log_normaliser - jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0], log_normaliser

    if width == slots:
        return piece((x_BYD, ids_BY))
    padding = -slots % width
    x_BYD, ids_BY = jnp.pad(x_BYD, ((0, 0), (0, padding), (0, 0))), jnp.pad(ids_BY, ((0, 0), (0, padding)))
    chunks = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(rows, -1, width, *a.shape[2:]), 1, 0), (x_BYD, ids_BY))
    # Recomputed in the backward pass, or the logits of every chunk would be kept after all.
    results = jax.lax.map(jax.checkpoint(piece, prevent_cse=False), chunks)
    joined = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(rows, -1)[:, :slots], results)
    return joined[0], joined[1]
