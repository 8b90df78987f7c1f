"""Statistics of a run's batches: tokens of each modality, targets and query-key pairs, measured or assumed.

Tokens are counted over the first rows that the data plan packs, and extrapolated. Query-key pairs are counted in a
sample of batches.
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
from solo.model.flops import BatchStats, batch_stats, type_shares
from solo.planning.rows import stated_rows
from solo.scaling.sweep.identity import digest
from solo.scaling.sweep.spec import RowStatistics

_PLANNED_ROWS = 4096
_SAMPLED_ROWS = 32


class StageStatistics(Protocol):
    """Statistics of the batches of one stage.

    shape       shape of a row
    vocab_size  vocabulary size of the tokenizer, or None if it is unknown
    """

    shape: RowShape
    vocab_size: int | None

    def over(self, steps: int) -> BatchStats:
        """Returns the totals of the first `steps` steps."""
        ...

    def unique_tokens(self, steps: int) -> float:
        """Returns the number of distinct tokens in the first `steps` steps."""
        ...


class AssumedStatistics:
    """Statistics that are stated in the sweep's file."""

    def __init__(self, config: Config, row: RowStatistics):
        stage = config.stages[0]
        self.shape = stated_rows(stage).shape
        self.vocab_size = None if config.data.tokenizer.path else config.data.tokenizer.vocab_size
        self._batch_rows, self._row = stage.batch_rows, row

    def over(self, steps: int) -> BatchStats:
        """See `StageStatistics`."""
        row = self._row
        per_row = (row.patches, row.text, row.targets, row.attended_pairs)
        return BatchStats(*(round(steps * self._batch_rows * amount) for amount in per_row))

    def unique_tokens(self, steps: int) -> float:
        """Returns the number of all tokens, on the assumption that no data repeats."""
        stats = self.over(steps)
        return float(stats.patches + stats.text)


class MeasuredStatistics:
    """Statistics of prepared data."""

    def __init__(self, config: Config, prepared: Prepared):
        stage = config.stages[0]
        self._plan = endless_plan(config, prepared)
        self.shape = self._plan.shape
        self.vocab_size: int | None = prepared.tokenizer.vocab_size
        self._batch_rows = stage.batch_rows
        self._tables = list(self._plan.chunks.values())
        sampled = first_batches(config, prepared, self._plan, max(1, _SAMPLED_ROWS // stage.batch_rows))
        counted = [batch_stats(batch, type_shares(config.model)) for batch in sampled]
        tokens = sum(stats.patches + stats.text for stats in counted)
        self._pairs_per_token = sum(stats.pairs for stats in counted) / tokens

    def over(self, steps: int) -> BatchStats:
        """See `StageStatistics`."""
        planned = min(steps, max(1, _PLANNED_ROWS // self._batch_rows))
        useful = self._plan.statistics(0, planned).useful * (steps / planned)
        patches, text, targets = (round(float(amount)) for amount in useful)
        return BatchStats(patches, text, targets, round((patches + text) * self._pairs_per_token))

    def unique_tokens(self, steps: int) -> float:
        """See `StageStatistics`. Every source yields all of its documents before it repeats one."""
        planned = min(steps, max(1, _PLANNED_ROWS // self._batch_rows))
        seen = np.array(self._plan.statistics(0, planned).documents) * (steps / planned)
        available = np.array([len(table) for table in self._tables])
        length = np.array([table.totals[:2].sum() / len(table) for table in self._tables])
        return float((np.minimum(seen, available) * length).sum())


def endless_plan(config: Config, prepared: Prepared) -> StagePlan:
    """Returns the data plan of a run's stage, with an unlimited number of steps."""
    stage = config.stages[0]
    indexes = {name: prepared.sources[name].index for name in stage.sources}
    endless = stage.model_copy(update={"steps": 10**9})
    return StagePlan(endless, indexes, config.image_in(stage), config.data, config.seed)


def first_batches(config: Config, prepared: Prepared, plan: StagePlan, count: int) -> list[Batch]:
    """Returns the first batches that a run of this config trains on."""
    stage = config.stages[0]
    sources = {name: prepared.sources[name] for name in stage.sources}
    data = config.data.model_copy(update={"worker_processes": 0})
    loader = Loader(plan, sources, prepared.tokenizer, config.image_in(stage), data, sequence=config.sequence)
    with loader:
        return [batch for _, batch in zip(range(count), loader, strict=False)]


@dataclass
class StatisticsCache:
    """Caches statistics. Configs that differ only in the model or the length share them.

    row     statistics of a row, if they are assumed
    note    called with a line for each part of the data that is prepared
    """

    row: RowStatistics | None = None
    note: Any = None
    _found: dict[str, StageStatistics] = field(default_factory=dict)

    def of(self, config: Config) -> StageStatistics:
        """Returns the statistics of a config's stage."""
        stage = config.stages[0].model_dump(mode="json", exclude={"steps", "optimizer", "train", "learning_rate_scale"})
        parts = [config.data, config.image, config.sequence]
        key = digest([stage, config.seed, *(part.model_dump(mode="json") for part in parts)])
        if key not in self._found:
            self._found[key] = self._make(config)
        return self._found[key]

    def _make(self, config: Config) -> StageStatistics:
        if self.row is not None:
            return AssumedStatistics(config, self.row)
        if not config.data.sources:
            raise ConfigError("the base has no data.sources; to plan without data, set row_statistics")
        return MeasuredStatistics(config, prepare(config, self.note))
