"""Mean cross-entropy of held-out sources, which scaling laws are fitted to.

All targets of a source weigh the same, regardless of the average in training. Rows are planned with seed 0, so that
runs with different seeds are measured on the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from solo.batch import Batch
from solo.config import Config, ConfigError, HeldOutConfig, LossConfig, StageConfig, identity
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.loader import Loader
from solo.data.store.prepare import Prepared
from solo.inference.monolith import Monolith
from solo.model.flops import batch_stats
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.training.losses import batch_loss


class HeldOutLoss(NamedTuple):
    """`loss` is in nats, the mean over `targets` targets."""

    name: str
    source: str
    loss: float
    targets: int


def held_out_losses(
    model: Monolith,
    config: Config,
    prepared: Prepared,
    note: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[HeldOutLoss]:
    """Computes the losses of `config.evaluation.losses`, in its order.

    Args:
        model: the model to evaluate.
        config: the run; rows and image geometry are those of its last stage.
        prepared: its data.
        note: called with (name, batches done, batches) after every batch.

    Raises:
        ConfigError: no document of a source fits a row, too many cannot be read, or the source has no target.
    """
    return [
        _loss_of(model, config, prepared, name, settings, partial(note, name))
        for name, settings in config.evaluation.losses.items()
    ]


def evaluation_set(config: Config, prepared: Prepared) -> str:
    """Returns a digest of sources, tokens and rows: losses with different digests are not comparable."""
    parts: list[Any] = []
    for name, settings in config.evaluation.losses.items():
        plan = _plan(config, prepared, name, settings)
        counts = prepared.sources[settings.source].index.counts(config.image).sum(axis=0)
        parts.append([name, identity(settings, "evaluation"), plan.num_steps, repr(plan.shape), counts.tolist()])
        parts.append(config.data.sources[settings.source].model_dump(mode="json"))
    text = json.dumps([parts, prepared.tokenizer.fingerprint], sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _loss_of(
    model: Monolith,
    config: Config,
    prepared: Prepared,
    name: str,
    settings: HeldOutConfig,
    note: Callable[[int, int], None],
) -> HeldOutLoss:
    plan = _plan(config, prepared, name, settings)
    steps = min(plan.num_steps, settings.batches or plan.num_steps)
    source = {settings.source: prepared.sources[settings.source]}
    total, documents = np.zeros(2), 0
    loader = Loader(
        plan, source, prepared.tokenizer, config.image_in(config.stages[-1]), config.data, sequence=config.sequence
    )
    with loader:
        for step, batch in zip(range(steps), loader, strict=False):
            documents += batch_stats(batch).documents
            total += np.asarray(_sums(model.definition, model.placement, model.parameters, model.place(batch)))
            note(step + 1, steps)
    planned = sum(plan.statistics(0, steps).documents)
    if planned - documents > config.data.max_unreadable * planned:
        raise ConfigError(
            f"evaluation loss {name!r}: {planned - documents:,} of {planned:,} documents of source {settings.source!r}"
            f" could not be read, more than data.max_unreadable {config.data.max_unreadable:g} allows; prepare the data"
            " again"
        )
    if not total[1]:
        raise ConfigError(f"evaluation loss {name!r}: source {settings.source!r} has no target token")
    return HeldOutLoss(name, settings.source, float(total[0] / total[1]), int(total[1]))


def _plan(config: Config, prepared: Prepared, name: str, settings: HeldOutConfig) -> StagePlan:
    last = config.stages[-1]
    # Not a copy of the last stage: its length is one pass over the source.
    stage = StageConfig.model_validate(
        {
            "name": "held_out",
            "mixture": {settings.source: 1.0},
            "epochs": 1.0,
            "batch_rows": settings.batch_rows,
            "row_slots": last.row_slots,
            "slot_multiple": last.slot_multiple,
            "image": last.image,
            "optimizer": last.optimizer,
        }
    )
    indexes = {settings.source: prepared.sources[settings.source].index}
    try:
        return StagePlan(stage, indexes, config.image_in(last), config.data, seed=0)
    except ConfigError as error:
        raise ConfigError(f"evaluation loss {name!r}: {error}") from None


@partial(jax.jit, static_argnums=(0, 1))
def _sums(definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch) -> jax.Array:
    """Returns float32 [2]: the sum of cross-entropy over the batch's targets, and their number."""
    _, measured = batch_loss(definition, where, parameters, batch, LossConfig())
    mean = measured["loss_by_source"]["all"]
    return jnp.stack([mean.total, mean.count])
