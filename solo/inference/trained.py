"""A trained model on the devices: its config, tokenizer, parameters and mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.batch import Batch
from solo.config import Config, MeshConfig
from solo.data.record import Image, Turn
from solo.data.rows.document import Document
from solo.data.text import Tokenizer
from solo.data.text.templates import Runs, Template, make_template
from solo.inference.prompt import Chunks, chunk_ends, chunks_of, row_of
from solo.model.by_layer import prefill_by_layer, split_layers
from solo.model.generate import prefill
from solo.model.kv_cache import KVCache
from solo.model.parameters import Parameters, define
from solo.sharding.axes import row_shards
from solo.sharding.generation import generation, make_cache
from solo.sharding.hosts import row_share
from solo.sharding.mesh import device_batch, make_mesh, parameter_shardings, place_rows
from solo.sharding.placement import placement


@dataclass(frozen=True)
class Published:
    """Properties of weights from a repository.

    sees_images     False for a text model, whose patch embedder is all zeros
    placeholder_id  the token that stands for a patch in its `input_ids`, if its config names one
    rename          converts arrays by path to the repository's arrays by tensor name
    template        the repository's own chat template; None: the one that the config names
    stops           tokens that end an answer, in addition to those of the config's template
    max_positions   the longest sequence according to the repository's config
    """

    sees_images: bool
    placeholder_id: int | None
    rename: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    template: Template | None = None
    stops: tuple[int, ...] = ()
    max_positions: int | None = None


class TrainedModel:
    """A trained model.

    config       config of the run, or the config that a repository's files describe
    definition   everything about the network except the values of its parameters
    parameters   path -> float32 array, sharded over the mesh
    mesh         the devices; by default all devices of this process. If the mesh spans several processes, each of them
                 must create the model, and call the same methods with the same arguments
    placement    the network's operations on that mesh
    generation   the network's operations for generation on that mesh
    published    properties of the repository that the model comes from; None for a run

    Raises:
        ConfigError: the vocabulary is too small for the tokenizer, or its size is not known.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer | None,
        parameters: Parameters,
        mesh: Mesh | None = None,
        published: Published | None = None,
    ):
        self.config = config
        self._tokenizer = tokenizer
        self.published = published
        self.definition = define(config, tokenizer.vocab_size if tokenizer else None)
        self.mesh = local_mesh() if mesh is None else mesh
        self.parameters = jax.device_put(parameters, parameter_shardings(self.definition.specs, self.mesh))
        self.placement = placement(self.mesh, config.model)
        self.generation = generation(self.mesh, config.model)
        self._layers: tuple[Parameters, ...] | None = None

    def with_parameters(self, parameters: Parameters) -> Self:
        """Returns the model with other parameters on the same mesh. It reuses the compiled functions."""
        other = copy(self)
        other.parameters, other._layers = parameters, None
        return other

    @property
    def layers(self) -> tuple[Parameters, ...] | None:
        """The parameters of each layer, if generation takes them apart (`Generating.separate_layers`)."""
        if self._layers is None and self.generation.separate_layers:
            self._layers = split_layers(
                self.parameters, NamedSharding(self.mesh, PartitionSpec()), self.config.model.type_of_each_layer
            )
        return self._layers

    def empty_cache(self, rows: int, patch_slots: int, text_slots: int) -> KVCache:
        """Returns a KV cache; see `solo.sharding.generation.make_cache`."""
        return make_cache(self.mesh, self.definition.config, rows, patch_slots, text_slots)

    def prefill(self, cache: KVCache, chunk: Batch, counts_B2: Any) -> tuple[KVCache, jax.Array]:
        """Read a chunk of each row, on the devices, into the cache; see `solo.model.generate.prefill`."""
        where, layers = self.generation.prefill, self.layers
        if layers is None:
            return prefill(self.definition, where, self.parameters, cache, chunk, counts_B2)
        return prefill_by_layer(self.definition, where, self.parameters, layers, cache, chunk, counts_B2)

    def chunks(
        self,
        document: Document,
        counts: tuple[int, int],
        rows: int,
        size: int | None,
        start: tuple[int, int] = (0, 0),
    ) -> Chunks:
        """Returns what is left of one document from `start`, in chunks, as this process's share of equal rows.

        Args:
            document: the whole document.
            counts: its patches and text tokens from `start`.
            rows: number of rows of all processes, which are equal.
            size: see `chunk_ends`.
            start: see `row_of`.
        """
        config, pad = self.config, self.tokenizer.special.pad
        row = row_of(document, counts, config.image, pad, start, config.sequence)
        ends, mine = chunk_ends(row, document, size, start), rows // row_share(self.mesh).count
        return chunks_of([row] * mine, [ends] * mine, pad, self.mesh.shape["context"])

    def prefill_chunks(self, cache: KVCache, chunks: Chunks) -> tuple[KVCache, jax.Array]:
        """Read this process's rows (numpy), chunk by chunk. Returns the cache and the logits after each row's end."""
        share, logits_BV = row_share(self.mesh).count, None
        for chunk, counts in chunks:
            placed, counts_B2 = device_batch(chunk, self.mesh, share), place_rows(counts, self.mesh, share)
            cache, after_BV = self.prefill(cache, placed, counts_B2)
            logits_BV = after_BV if logits_BV is None else _latest(counts_B2, after_BV, logits_BV)
        assert logits_BV is not None
        return cache, logits_BV

    def place(self, batch: Batch) -> Batch:
        """Put a batch on the devices, with empty rows added so that its rows can be sharded.

        If the mesh spans several processes, each of them must pass the whole batch.
        """
        missing = self.fill(len(batch.text)) - len(batch.text)
        padded = (
            [np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1)) for array in batch] if missing else batch
        )
        share = row_share(self.mesh)
        rows = len(padded[0]) // share.count
        return device_batch(
            Batch(*(array[share.index * rows : (share.index + 1) * rows] for array in padded)), self.mesh, share.count
        )

    def fill(self, rows: int) -> int:
        """Returns the number of rows, rounded up to a multiple of the devices that rows are sharded over."""
        share = row_shards(self.mesh.shape)
        return -(-rows // share) * share

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if a repository came without one; batches of tensors do not need one."""
        if self._tokenizer is None:
            raise ValueError("these weights have no tokenizer (tokenizer.model or tokenizer.json next to them)")
        return self._tokenizer

    @cached_property
    def template(self) -> Template:
        """The chat template. Raises ConfigError if the tokenizer lacks one of its tokens."""
        if self.published is None:
            return make_template(self.tokenizer, self.config.sequence)
        if self.published.template is not None:
            return self.published.template
        found = make_template(self.tokenizer, self.config.sequence)
        found.more_stops = self.published.stops
        return found

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a patch in `input_ids`, from the repository or the config; by default the last id."""
        token = self.config.image.placeholder_token
        if self.published is not None and self.published.placeholder_id is not None:
            return self.published.placeholder_id
        if token is not None and self._tokenizer is not None:
            return self._tokenizer.id(token)
        return self.definition.vocab_size - 1

    @property
    def context(self) -> int | None:
        """The longest sequence in patches and text tokens, from the repository or from training; None if unknown."""
        if self.published is not None and self.published.max_positions is not None:
            return self.published.max_positions
        return longest_sequence(self.config)

    def runs(self, turns: Sequence[Turn], open_turn: bool = False, continued: bool = False) -> Runs:
        """Apply the chat template; see `Template.runs`. Raises ValueError for an image if this is a text model."""
        blind = self.published is not None and not self.published.sees_images
        if blind and any(isinstance(part, Image) for turn in turns for part in turn.content):
            raise ValueError("this is a text model and cannot read images (solo import can upcycle it to a monolith)")
        return self.template.runs(turns, open_turn, continued)


@jax.jit
def _latest(counts_B2: jax.Array, after_BV: jax.Array, before_BV: jax.Array) -> jax.Array:
    """Returns the logits after the chunk's text tokens, or those before it for rows without any."""
    return jnp.where(counts_B2[:, 1:] > 0, after_BV, before_BV)


def longest_sequence(config: Config) -> int | None:
    """Returns the slots of the longest training row, or the trained length of the scaled rotary positions."""
    rows = [
        stage.row_slots if stage.patch_slots is None else stage.patch_slots + (stage.text_slots or 0)
        for stage in config.stages
    ]
    scaling = config.model.rope_scaling
    return max(rows) if rows else scaling.trained_length if scaling is not None else None


def local_mesh() -> Mesh:
    """Returns a mesh of all of this process's devices."""
    return make_mesh(MeshConfig(), jax.local_devices())
