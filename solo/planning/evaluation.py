"""Forecasts the device memory of a run's evaluators by compiling their programs ahead of time.

An evaluator runs between two steps and uses the parameters in place. Meanwhile, the optimizer state, the averages of
the weights and the next batch stay on the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import Config, ConfigError, HeldOutConfig, StageConfig
from solo.config.evaluators import IntegrationRateConfig
from solo.data.planning.row_shape import RowShape
from solo.data.store.prepare import Prepared, open_prepared
from solo.evaluation.integration_rate import layer_states
from solo.evaluation.losses import loss_sums
from solo.inference.decoding import Decoding
from solo.inference.prompt import bucket, rounded_room
from solo.machines import Machine
from solo.model.generate import Sampling, generate, prefill
from solo.model.kv_cache import empty_cache
from solo.model.parameters import ModelDefinition
from solo.model.regions import Regions
from solo.model.transformer import padded_vocab
from solo.planning.forecast import Forecast
from solo.planning.memory import memory_limit
from solo.planning.program import OutOfMemoryError, abstract_batch
from solo.planning.rows import Rows
from solo.planning.topology import machine_devices
from solo.sharding.axes import ROW_AXES, row_shards
from solo.sharding.compiling import compile_lowered
from solo.sharding.generation import cache_shardings, generation
from solo.sharding.mesh import make_mesh, parameter_shardings
from solo.sharding.placement import placement
from solo.training.checkpoint import abstract_parameters


class EvaluatorProgram(NamedTuple):
    """A compiled program of an evaluator, with its bytes on each device.

    name         prefill, decode or forward
    arguments    parameters, the batch, and the KV cache
    temporaries  arrays that exist only while it runs
    outputs      without those that reuse an argument's memory
    code         the program itself, if it is in the device's memory
    """

    name: str
    arguments: int
    temporaries: int
    outputs: int
    code: int

    @property
    def total(self) -> int:
        """Bytes while the program runs."""
        return self.arguments + self.temporaries + self.outputs + self.code


@dataclass(frozen=True)
class EvaluatorForecast:
    """The memory of one evaluator on a device.

    kind, name   kind and name of the evaluator, as in `metrics.jsonl`
    rows         rows of a batch, over all devices
    patch_slots, text_slots  slots of a row
    source       description of where the slots come from
    new_tokens   tokens of an answer; 0 if nothing is generated
    programs     compiled programs; if one did not fit, those before it
    kept         bytes that stay on the device meanwhile: the training state without the parameters, and what the
                 evaluator keeps
    refused      the program that did not fit, and its bytes of temporaries if the compiler reported them
    limit        bytes of a device's memory; None if unknown
    """

    kind: str
    name: str
    rows: int
    patch_slots: int
    text_slots: int
    source: str
    new_tokens: int
    programs: tuple[EvaluatorProgram, ...]
    kept: int
    refused: tuple[str, int | None] | None
    limit: int | None

    @property
    def needed(self) -> int:
        """Bytes of a device's memory, if all programs could be compiled: those of the largest one."""
        refused = self.kept + (self.refused[1] or 0) if self.refused else 0
        return max(refused, *(self.kept + program.total for program in self.programs), 0, 0)

    @property
    def fits(self) -> bool:
        """Whether the evaluator fits next to the training state. True if the limit is unknown."""
        return self.refused is None and (self.limit is None or self.needed <= self.limit)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "task": self.name,
            "rows": self.rows,
            "patch_slots": self.patch_slots,
            "text_slots": self.text_slots,
            "source": self.source,
            "new_tokens": self.new_tokens,
            "programs": [{**program._asdict(), "total": program.total} for program in self.programs],
            "refused": self.refused and self.refused[0],
            "kept": self.kept,
            "needed": self.needed,
            "limit": self.limit,
            "fits": self.fits,
        }


def forecast_evaluators(
    config: Config,
    machine: Machine,
    stages: list[Forecast],
    options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[EvaluatorForecast]:
    """Compile the programs of all evaluators of a config. Evaluators with equal programs are compiled once.

    Args:
        config: the run.
        machine: all slices.
        stages: forecasts of its stages; the largest of their states is on the device during evaluation.
        options: further compiler options.
        report: is called with the progress.

    Raises:
        ConfigError: there is no compiler for the machine.
    """
    evaluators = list(config.evaluation.evaluators())
    if not evaluators:
        return []
    mesh = make_mesh(config.mesh, machine_devices(machine))
    last = stages[-1]
    beside = max(each.by_hand.arguments - each.by_hand.parameters for each in stages)
    compiler = _Compiler(config, last.definition, mesh, machine, options or {})
    prepared = _prepared(config)
    known: dict[Any, tuple[tuple[EvaluatorProgram, ...], tuple[str, int | None] | None]] = {}
    found = []
    for kind, name, section in evaluators:
        report(f"compiling evaluation {name} for {machine.name}")
        work = _work(kind, section, config, last.stage, last.rows, prepared, mesh)
        if work not in known:
            known[work] = compiler.compile(work)
        programs, refused = known[work]
        kept = beside + _kept(section, work, last.definition, mesh)
        found.append(
            EvaluatorForecast(
                kind,
                name,
                work.rows,
                work.shape.patch_slots,
                work.shape.text_slots,
                work.source,
                work.new_tokens,
                programs,
                kept,
                refused,
                memory_limit(machine),
            )
        )
    return found


class _Work(NamedTuple):
    """What the programs of an evaluator depend on. `states`: tokens per modality and row whose states are compared."""

    rows: int
    shape: RowShape
    source: str
    new_tokens: int = 0
    states: int = 0


def _work(
    kind: str, section: Any, config: Config, stage: StageConfig, rows: Rows, prepared: Prepared | None, mesh: Mesh
) -> _Work:
    shards = row_shards(mesh.shape)
    if isinstance(section, HeldOutConfig):
        return _Work(-(-section.batch_rows // shards) * shards, rows.shape, rows.source)
    most = {"evaluation": getattr(section, "limit", None), "samples": getattr(section, "count", None)}.get(kind)
    largest, source = _largest(config, stage, section.source, most, rows, prepared)
    shape = RowShape(*rounded_room(largest, mesh.shape["context"]), 0)
    if isinstance(section, IntegrationRateConfig):
        states = -(-section.tokens // section.documents)
        return _Work(-(-section.batch_rows // shards) * shards, shape, source, states=states)
    at_once = section.batch_rows if kind == "evaluation" else section.count
    return _Work(-(-at_once // shards) * shards, shape, source, section.max_new_tokens)


def _largest(
    config: Config, stage: StageConfig, source: str, most: int | None, rows: Rows, prepared: Prepared | None
) -> tuple[tuple[int, int], str]:
    """Returns the patches and text tokens of the largest record of a source, and a description of their origin."""
    if prepared is not None and source in prepared.sources:
        index = prepared.sources[source].index
        counts = index.counts(config.image_in(stage))[:most]
        if len(counts):
            patches, text = counts.max(axis=0)[:2].tolist()
            return (patches, text), f"the prepared data of {config.data.folder}"
    documents = [document for row in rows.documents for document in row]
    largest = max(document.patches for document in documents), max(document.text for document in documents)
    return largest, rows.source


def _prepared(config: Config) -> Prepared | None:
    try:
        return open_prepared(config)
    except (ConfigError, OSError):
        return None


def _kept(section: Any, work: _Work, definition: ModelDefinition, mesh: Mesh) -> int:
    """Returns the bytes that an evaluator keeps on each device besides its largest program: hidden states."""
    if not isinstance(section, IntegrationRateConfig):
        return 0
    config = definition.config
    layer = work.rows * 2 * work.states * config.width * np.dtype(jax.numpy.dtype(config.compute_dtype)).itemsize
    batches = -(-section.documents // work.rows)
    return (batches - 1) * config.layers * layer // row_shards(mesh.shape) + batches * layer


class _Compiler:
    """Compiles the programs of evaluators for a mesh."""

    def __init__(
        self, config: Config, definition: ModelDefinition, mesh: Mesh, machine: Machine, options: Mapping[str, Any]
    ):
        self._config, self._definition, self._mesh = config, definition, mesh
        self._on_device, self._options = machine.chip.is_tpu, options
        self._parameters = abstract_parameters(definition.specs, parameter_shardings(definition.specs, mesh))

    def compile(self, work: _Work) -> tuple[tuple[EvaluatorProgram, ...], tuple[str, int | None] | None]:
        """Returns the programs, and the name of one that did not fit with its temporaries."""
        lower = self._generation if work.new_tokens else self._states if work.states else self._losses
        found: list[EvaluatorProgram] = []
        for name, lowered in lower(work):
            try:
                compiled = compile_lowered(lowered, self._mesh, self._config.compiler_options, self._options)
            except JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return tuple(found), (name, OutOfMemoryError(str(error)).temporaries)
            memory: Any = compiled.memory_analysis()
            found.append(
                EvaluatorProgram(
                    name,
                    memory.argument_size_in_bytes,
                    memory.temp_size_in_bytes,
                    memory.output_size_in_bytes - memory.alias_size_in_bytes,
                    memory.generated_code_size_in_bytes if self._on_device else 0,
                )
            )
        return tuple(found), None

    def _generation(self, work: _Work) -> Iterator[tuple[str, Any]]:
        definition, mesh, rows = self._definition, self._mesh, work.rows
        where = generation(mesh, definition.config)
        decoding = Decoding(work.new_tokens)
        text_slots = bucket(work.shape.text_slots + decoding.slots)
        shapes = jax.eval_shape(lambda: empty_cache(definition.config, rows, work.shape.patch_slots, text_slots))
        cache = jax.tree.map(_placed, shapes, jax.tree.broadcast(cache_shardings(mesh), shapes))
        chunk = abstract_batch(self._config, rows, work.shape, mesh)
        counts = self._by_row((rows, 2), np.int32)
        yield "prefill", prefill.lower(definition, where.prefill, self._parameters, cache, chunk, counts)
        vocab = padded_vocab(definition.vocab_size, definition.config)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        sampling = Sampling(np.float32(1), np.float32(1), np.ones(vocab, bool), np.int32(0))
        yield (
            "decode",
            generate.lower(
                definition,
                where.decode,
                self._parameters,
                cache,
                self._by_row((rows, vocab), np.float32),
                self._by_row(keys.shape, keys.dtype),
                sampling,
                np.int32(work.new_tokens),
                slots=decoding.slots,
                greedy=True,
                sliding_window=self._config.sequence.windows,
            ),
        )

    def _states(self, work: _Work) -> Iterator[tuple[str, Any]]:
        slots = Regions(
            *(
                self._by_row((work.rows, min(work.states, slots)), np.int32)
                for slots in (work.shape.patch_slots, work.shape.text_slots)
            )
        )
        batch = abstract_batch(self._config, work.rows, work.shape, self._mesh)
        where = placement(self._mesh, self._definition.config)
        yield "forward", layer_states.lower(self._definition, where, self._parameters, batch, slots)

    def _losses(self, work: _Work) -> Iterator[tuple[str, Any]]:
        batch = abstract_batch(self._config, work.rows, work.shape, self._mesh)
        sums = loss_sums(self._definition, self._mesh, self._config.compiler_options)
        yield "forward", sums.lower(self._parameters, batch)

    def _by_row(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self._mesh, PartitionSpec(ROW_AXES)))


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
