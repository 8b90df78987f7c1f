"""What the steps of a run hold: tokens of each modality, targets, query-key pairs; counted in the data, or assumed.

Tokens are counted as the plan packs them, over a run's first rows and scaled beyond; pairs on a sample of batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from solo.batch import Batch
from solo.config import Config, ConfigError
from solo.data.planning.row_shape import RowShape
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.loader import Loader
from solo.data.store.prepare import Prepared, prepare
from solo.model.flops import BatchStats, batch_stats
from solo.planning.rows import stated_rows
from solo.scaling.sweep.identity import digest
from solo.scaling.sweep.spec import Traffic

_PLANNED_ROWS = 4096
_SAMPLED_ROWS = 32


class Flow(Protocol):
    """Of one stage's data. `shape` is that of a row; `vocab_size` is None where no tokenizer is known."""

    shape: RowShape
    vocab_size: int | None

    def work(self, steps: int) -> BatchStats:
        """All that so many steps compute."""
        ...

    def unique_tokens(self, steps: int) -> float:
        """Different tokens among those seen."""
        ...


class Assumed:
    """As the sweep's file says."""

    def __init__(self, config: Config, traffic: Traffic):
        stage = config.stages[0]
        self.shape = stated_rows(stage).shape
        self.vocab_size = None if config.data.tokenizer.path else config.data.tokenizer.vocab_size
        self._rows, self._traffic = stage.batch_rows, traffic

    def work(self, steps: int) -> BatchStats:
        """See `Flow`."""
        rows, traffic = steps * self._rows, self._traffic
        each = (traffic.patches, traffic.text, traffic.targets, traffic.pairs)
        return BatchStats(*(round(rows * amount) for amount in each))

    def unique_tokens(self, steps: int) -> float:
        """All of them: no data is assumed to repeat."""
        work = self.work(steps)
        return float(work.patches + work.text)


class Measured:
    """Counted in prepared data."""

    def __init__(self, config: Config, prepared: Prepared):
        stage = config.stages[0]
        self._plan = endless_plan(config, prepared)
        self.shape = self._plan.shape
        self.vocab_size: int | None = prepared.tokenizer.vocab_size
        self._rows = stage.batch_rows
        self._pairs = self._pairs_per_token(config, prepared)
        self._tables = list(self._plan.chunks.values())

    def work(self, steps: int) -> BatchStats:
        """See `Flow`."""
        planned = min(steps, max(1, _PLANNED_ROWS // self._rows))
        useful = self._plan.statistics(0, planned).useful * (steps / planned)
        patches, text, targets = (round(float(amount)) for amount in useful)
        return BatchStats(patches, text, targets, round((patches + text) * self._pairs))

    def unique_tokens(self, steps: int) -> float:
        """Every source gives all of its documents before it gives one twice."""
        planned = min(steps, max(1, _PLANNED_ROWS // self._rows))
        seen = np.array(self._plan.statistics(0, planned).documents) * (steps / planned)
        there = np.array([len(table) for table in self._tables])
        length = np.array([table.needs[:, :2].sum() / len(table) for table in self._tables])
        return float((np.minimum(seen, there) * length).sum())

    def _pairs_per_token(self, config: Config, prepared: Prepared) -> float:
        steps = max(1, _SAMPLED_ROWS // self._rows)
        found = [batch_stats(batch) for batch in first_batches(config, prepared, self._plan, steps)]
        return sum(work.pairs for work in found) / sum(work.patches + work.text for work in found)


def endless_plan(config: Config, prepared: Prepared) -> StagePlan:
    """The plan of the one stage of a run, whatever its length."""
    stage = config.stages[0]
    indexes = {name: prepared.sources[name].index for name in stage.mixture}
    endless = stage.model_copy(update={"steps": 10**9})
    return StagePlan(endless, indexes, config.image_in(stage), config.data, config.seed)


def first_batches(config: Config, prepared: Prepared, plan: StagePlan, count: int) -> list[Batch]:
    """The first batches that a run of this config learns from."""
    stage = config.stages[0]
    sources = {name: prepared.sources[name] for name in stage.mixture}
    data = config.data.model_copy(update={"worker_processes": 0})
    loader = Loader(plan, sources, prepared.tokenizer, config.image_in(stage), data, sequence=config.sequence)
    with loader:
        return [batch for _, batch in zip(range(count), loader, strict=False)]


@dataclass
class Flows:
    """Flows of configs; those that differ only in the model or the length share one. `note` is told of preparations."""

    traffic: Traffic | None = None
    note: Any = None
    _found: dict[str, Flow] = field(default_factory=dict)

    def of(self, config: Config) -> Flow:
        """The flow of a config's one stage."""
        stage = config.stages[0].model_dump(mode="json", exclude={"steps", "optimizer", "train", "learning_rate_scale"})
        parts = [config.data, config.image, config.sequence]
        key = digest([stage, config.seed, *(part.model_dump(mode="json") for part in parts)])
        if key not in self._found:
            self._found[key] = self._make(config)
        return self._found[key]

    def _make(self, config: Config) -> Flow:
        if self.traffic is not None:
            return Assumed(config, self.traffic)
        if not config.data.sources:
            raise ConfigError("the base has no data.sources; to plan without data, say what a row holds: traffic")
        return Measured(config, prepare(config, self.note))
