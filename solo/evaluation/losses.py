"""Mean cross-entropy of held-out sources, computed on the training mesh. Scaling laws are fitted to it.

All targets of a source have the same weight, whatever `loss.average` is in training. Rows are planned with seed 0, so
runs with different seeds are measured on the same tokens. The rows do not depend on the mesh either, which only
determines how many of them are computed at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.chips import OptionValue
from solo.config import Config, ConfigError, HeldOutConfig, LossConfig, StageConfig, identity
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.assembly import assemble_row
from solo.data.rows.loader import RowBatches, RowSource
from solo.data.store.prepare import Prepared
from solo.model.flops import batch_stats, type_shares
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.sharding.axes import row_shards
from solo.sharding.compiling import compiler_options
from solo.sharding.hosts import RowShare, row_share, summed
from solo.sharding.mesh import batch_shardings, device_batch, parameter_shardings
from solo.sharding.placement import placement
from solo.training.losses import Mean, batch_loss

CONTEXTS = ("text_only", "with_image")

Note = Callable[[int, int], None]


class HeldOutLoss(NamedTuple):
    """A held-out loss.

    name             name of the evaluator
    source           the source that it measures
    loss             mean over `targets` targets, in nats
    targets          number of target tokens
    loss_by_context  means over the targets that see no patch (`text_only`) and those that see one (`with_image`)
    """

    name: str
    source: str
    loss: float
    targets: int
    loss_by_context: Mapping[str, float]


class HeldOutLosses:
    """Computes the held-out losses of a run's config with sharded parameters.

    All processes of the mesh must call the same methods in the same order. Each process loads its own rows.

    Args:
        config: the config of the run. Rows and image geometry are those of its last stage.
        prepared: the prepared data.
        definition: the definition of the model.
        mesh: the devices.

    Raises:
        ConfigError: no document of a source fits a row.
    """

    def __init__(self, config: Config, prepared: Prepared, definition: ModelDefinition, mesh: Mesh):
        self._config, self._prepared, self._mesh = config, prepared, mesh
        self._plans = {
            name: _plan(config, prepared, name, settings) for name, settings in config.evaluation.losses.items()
        }
        self._sums = loss_sums(definition, mesh, config.compiler_options)

    def measure(self, name: str, parameters: Parameters, note: Note = lambda done, total: None) -> HeldOutLoss:
        """Computes one of the losses.

        Args:
            name: name of a loss in the config.
            parameters: the parameters, sharded over the mesh.
            note: called with (batches done, batches) after every batch. An exception that it raises ends the
                computation.

        Raises:
            ConfigError: too many documents cannot be read, or the source has no target.
        """
        settings, plan = self._config.evaluation.losses[name], self._plans[name]
        steps = min(plan.num_steps, settings.batches or plan.num_steps)
        share = row_share(self._mesh)
        rows = self._rows(settings.source, plan, steps, share)
        total, documents = np.zeros((1 + len(CONTEXTS), 2)), 0
        before: jax.Array | None = None
        with RowBatches(rows, rows.at_once // share.count, self._data()) as batches:
            for number, batch in enumerate(batches, start=1):
                documents += batch_stats(batch, type_shares(self._config.model)).documents
                sums = self._sums(parameters, device_batch(batch, self._mesh, share.count))
                if before is not None:  # It is read while the next batch is computed.
                    total += np.asarray(before)
                before = sums
                note(number, rows.batches)
        total += np.asarray(before)
        (documents,) = summed([documents], share, self._mesh)()
        self._check_readable(name, sum(plan.statistics(0, steps).documents), documents)
        if not total[0, 1]:
            raise ConfigError(f"evaluation loss {name!r}: source {settings.source!r} has no target token")
        losses = total[:, 0] / np.maximum(total[:, 1], 1)
        contexts = {context: float(losses[place]) for place, context in enumerate(CONTEXTS, 1) if total[place, 1]}
        return HeldOutLoss(name, settings.source, float(losses[0]), int(total[0, 1]), contexts)

    def _rows(self, source: str, plan: StagePlan, steps: int, share: RowShare) -> _Rows:
        config, tokenizer = self._config, self._prepared.tokenizer
        per_step, shards = plan.stage.batch_rows, row_shards(self._mesh.shape)
        image = config.image_in(config.stages[-1])
        planned = RowSource(
            plan, {source: self._prepared.sources[source]}, tokenizer, image, range(per_step), sequence=config.sequence
        )
        empty = assemble_row([], plan.shape, image, tokenizer.special.pad, config.sequence)
        return _Rows(planned, empty, steps * per_step, -(-per_step // shards) * shards, share.index, share.count)

    def _data(self) -> Any:
        # Worker processes take longer to start than most evaluations last.
        return self._config.data.model_copy(update={"worker_processes": 0})

    def _check_readable(self, name: str, planned: int, read: int) -> None:
        if planned - read > self._config.data.max_unreadable * planned:
            source = self._config.evaluation.losses[name].source
            raise ConfigError(
                f"evaluation loss {name!r}: {planned - read:,} of {planned:,} documents of source {source!r} could not"
                f" be read, more than data.max_unreadable {self._config.data.max_unreadable:g} allows; prepare the data"
                " again"
            )


@dataclass(frozen=True)
class _Rows:
    """The rows of one process. All processes together take `at_once` rows at a time; the last batch is padded.

    Row k of the plan is in batch k // at_once, independent of the plan's own batches.
    """

    planned: RowSource
    empty: Batch
    count: int
    at_once: int
    index: int
    processes: int

    @property
    def batches(self) -> int:
        return -(-self.count // self.at_once)

    def __len__(self) -> int:
        return self.batches * (self.at_once // self.processes)

    def __getitem__(self, item: int) -> Batch:
        mine = self.at_once // self.processes
        batch, place = divmod(int(item), mine)
        number = batch * self.at_once + self.index * mine + place
        return self.planned[number] if number < self.count else self.empty

    def __repr__(self) -> str:
        return f"_Rows({self.planned!r}, count={self.count}, at_once={self.at_once}, index={self.index})"


def evaluation_set(config: Config, prepared: Prepared) -> str:
    """Returns a digest of sources, tokens and rows. Losses with different digests are not comparable."""
    parts: list[Any] = []
    for name, settings in config.evaluation.losses.items():
        plan = _plan(config, prepared, name, settings)
        counts = prepared.sources[settings.source].index.counts(config.image).sum(axis=0)
        parts.append([name, identity(settings, "evaluation"), plan.num_steps, repr(plan.shape), counts.tolist()])
        parts.append(config.data.sources[settings.source].model_dump(mode="json"))
    text = json.dumps([parts, prepared.tokenizer.fingerprint], sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(config: Config, prepared: Prepared, name: str, settings: HeldOutConfig) -> StagePlan:
    last = config.stages[-1]
    # Unlike the last stage, this one is as long as one pass over the source.
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


def loss_sums(definition: ModelDefinition, mesh: Mesh, options: Mapping[str, OptionValue | None]) -> Any:
    """Returns the jitted function (parameters, batch) -> sums; `options` are the config's `compiler_options`."""
    return jax.jit(
        partial(_sums, definition, placement(mesh, definition.config)),
        in_shardings=(parameter_shardings(definition.specs, mesh), batch_shardings(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(mesh, options) or None,
    )


def _sums(definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch) -> jax.Array:
    """Returns float32 [3, 2]: the sum of cross-entropy and the number of targets, of all and of each context."""
    _, measured = batch_loss(definition, where, parameters, batch, LossConfig())
    means: list[Mean] = [measured["loss_by_source"]["all"], *(measured["loss_by_context"][name] for name in CONTEXTS)]
    return jnp.stack([jnp.stack([mean.total, mean.count]) for mean in means])
