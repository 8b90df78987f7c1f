"""The modality integration rate: how far apart the hidden states of images and of text are.

"Deciphering Cross-Modal Alignment in Large Vision-Language Models with Modality Integration Rate", arXiv 2410.07167. In
every layer, the hidden states of visual and of text tokens are divided by the mean length of the text's. Tokens whose
length is more than three standard deviations from the mean of their modality are left out. The layer's distance is the
Fréchet distance of the two Gaussians. The rate is the logarithm to base 10 of the sum over the layers; it falls as a
model aligns the modalities.

This is the paper's definition. The code that was published with it (shikiw/Modality-Integration-Rate) differs in four
points: it replaces an outlier, which it measures from the median length, by the median of each dimension; by default it
approximates the matrix square root by five Newton steps; it only uses the text after the image; and it takes the last
layer after the final norm. Here the square root is exact, and the last layer is treated like the others. Like that
code, this module leaves out the embeddings. The text of a monolith's document includes delimiters of images, row
separators and roles. These special tokens belong to neither modality and are left out, and so are learned visual tokens
that mark an image's rows.

Cost: one forward pass over `documents` rows. The states of the compared tokens stay on the devices until their layer is
computed: 4 x layers x tokens x width bytes in bfloat16 over all row shards, which is 2.1 GB on each of 8 devices for 64
layers of width 8,192 and 8,192 tokens. Each process computes some of the layers, one at a time, in 16 x tokens x width
bytes of float64 (1 GB) and O(m^2 k) operations, where m is the smaller and k the larger of tokens and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import isfinite, log10
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from solo.batch import Batch
from solo.config import Config, ConfigError
from solo.config.evaluators import IntegrationRateConfig
from solo.data.record import Image, Record
from solo.data.store.index import IndexBuilder
from solo.evaluation.frechet import frechet_distance, without_outliers
from solo.inference.monolith import Monolith
from solo.inference.prompt import Prompt, prompt_batches
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.model.regions import Regions
from solo.sharding.hosts import replicated, row_share, summed
from solo.sharding.mesh import device_batch, place_rows

_ABSENT = -1


class Records(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def read(self, number: int, /) -> Record:
        """Record `number`, from 0."""
        ...


class IntegrationRate(NamedTuple):
    """The fields of a line of `metrics.jsonl`.

    rate           log10 of the sum of `by_layer`; None if a hidden state is not finite
    by_layer       the Fréchet distance in every layer, the first one first
    visual_tokens  visual tokens that were compared, outliers included
    text_tokens    text tokens, the same
    outliers       tokens that were left out, summed over the layers
    """

    rate: float | None
    by_layer: list[float | None]
    visual_tokens: int
    text_tokens: int
    outliers: int


def integration_rate(
    model: Monolith,
    name: str,
    settings: IntegrationRateConfig,
    config: Config,
    sources: Mapping[str, Records],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> IntegrationRate:
    """Measures the modality integration rate on the model's mesh. All processes call it, and all get the result.

    Args:
        model: the model, on any mesh.
        name: the evaluator's name, for error messages.
        settings: the evaluator's settings.
        config: the config of the run. Only documents that fit a row of its last stage are used.
        sources: records by source name.
        progress: called with (documents done, documents) after every batch.

    Raises:
        ConfigError: the source has no document with an image and text that fits a row.
    """
    prompts = documents(model, name, settings, config, sources)
    share = -(-settings.tokens // len(prompts))
    batches = list(_states(model, prompts, model.fill(settings.batch_rows), share, progress))
    slots = Regions(*(np.concatenate(parts) for parts in zip(*(slots for _, slots in batches), strict=True)))
    counts = Regions(*(int((part != _ABSENT).sum()) for part in slots))
    if min(counts) < 2:
        raise ConfigError(f"integration rate {name!r}: source {settings.source!r} has no text besides special tokens")
    found = _by_layer(model, [states for states, _ in batches], slots)
    distances = [float(distance) if isfinite(distance) else None for distance, _ in found]
    known = [distance for distance in distances if distance is not None]
    rate = log10(sum(known)) if len(known) == len(distances) and sum(known) > 0 else None
    return IntegrationRate(rate, distances, *counts, int(sum(outliers for _, outliers in found)))


def documents(
    model: Monolith, name: str, settings: IntegrationRateConfig, config: Config, sources: Mapping[str, Records]
) -> list[Prompt]:
    """Returns the first documents of the source that have an image and text and fit a row of the last stage.

    Raises:
        ConfigError: there is none, or no such source.
    """
    if settings.source not in sources:
        raise ConfigError(f"integration rate {name!r}: source {settings.source!r} is not prepared")
    source = sources[settings.source]
    found: list[Prompt] = []
    most = config.stages[-1].row_slots if config.stages else None
    for number in range(len(source)):
        runs = model.runs(source.read(number).turns)
        if not any(isinstance(run, Image) for run in runs):
            continue
        index = IndexBuilder()
        index.add(runs)
        patches, text = index.build().counts(model.config.image)[0][:2]
        if text and (most is None or patches + text <= most):
            found.append(runs)
        if len(found) == settings.documents:
            break
    if not found:
        raise ConfigError(
            f"integration rate {name!r}: source {settings.source!r} has no record with an image and text that fits a"
            " row of the last stage"
        )
    return found


def _states(
    model: Monolith, prompts: list[Prompt], rows: int, share: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[jax.Array, Regions]]:
    """Yields the compared hidden states of each batch [L, B, 2 share, D], on the mesh, and their slots (numpy)."""
    mine, tokenizer, mesh = row_share(model.mesh), model.tokenizer, model.mesh
    special = np.fromiter(tokenizer.special_ids, int)
    batches = prompt_batches(
        prompts,
        rows,
        tokenizer,
        model.config.image,
        model.config.sequence,
        share=(mine.index, mine.count),
        slot_multiple=mesh.shape["context"],
        agreed=lambda failed: summed(failed, mine, mesh)(),
    )
    for start, ((batch, counts),) in zip(range(0, len(prompts), rows), batches, strict=True):
        first = start + mine.index * rows // mine.count
        real = np.arange(first, first + len(counts)) < len(prompts)
        chosen = Regions(
            _spread(real[:, None] & _filled(batch.patches, counts[:, 0]) & (batch.patch_grid[..., 0] >= 0), share),
            _spread(real[:, None] & _filled(batch.text, counts[:, 1]) & ~np.isin(batch.text, special), share),
        )
        slots = chosen.map(lambda part: place_rows(part, mesh, mine.count))
        placed = device_batch(batch, mesh, mine.count)
        states = layer_states(model.definition, model.placement, model.parameters, placed, slots)
        yield states, slots.map(lambda part: np.asarray(replicated(part, mesh)))
        progress(min(start + rows, len(prompts)), len(prompts))


@partial(jax.jit, static_argnums=(0, 1))
def layer_states(
    definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch, slots: Regions
) -> jax.Array:
    """Returns the output of every layer at some slots, [L, B, N + M, D] in the compute dtype.

    `slots` are int32 [B, N] patches and [B, M] text tokens of each row. For negative slots, the output is arbitrary.
    """

    def taken(x_BSD: jax.Array, slots_BN: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BSD, jnp.maximum(slots_BN, 0)[..., None], axis=1)

    def probe(x: Regions) -> jax.Array:
        return where.constrain(x.map(taken, slots).join(), ("rows", None, None))

    return definition.bind(parameters).hidden(batch, where, probe=probe).probed


def _by_layer(model: Monolith, batches: list[jax.Array], slots: Regions) -> list[tuple[float, float]]:
    """Returns the distance and the outliers of every layer. Each process computes some of the layers."""
    layers, me, processes = model.definition.config.layers, 0, 1
    if model.mesh.is_multi_process:
        me, processes = jax.process_index(), jax.process_count()
    found = np.zeros((layers, 2))
    for layer in range(layers):
        pieces = [replicated(_layer(states, layer), model.mesh) for states in batches]
        if layer % processes == me:
            states_BND = np.concatenate([np.asarray(piece).astype(np.float64) for piece in pieces])
            visual, text = np.split(states_BND, [slots.patches.shape[1]], axis=1)
            found[layer] = layer_distance(visual[slots.patches != _ABSENT], text[slots.text != _ABSENT])
    if processes > 1:
        # As two halves: jax has no float64 by default.
        halves = multihost_utils.process_allgather(found.view(np.uint32))
        found = np.ascontiguousarray(halves).view(np.float64).sum(axis=0)
    return [(distance, outliers) for distance, outliers in found.tolist()]


@partial(jax.jit, static_argnums=1)
def _layer(states_LBND: jax.Array, layer: int) -> jax.Array:
    return states_LBND[layer]


def layer_distance(visual_ND: np.ndarray, text_MD: np.ndarray) -> tuple[float, int]:
    """Returns the Fréchet distance of a layer's visual and text tokens, and the number of outliers left out."""
    scale = 1 / np.linalg.norm(text_MD, axis=1).mean()
    visual, text = without_outliers(scale * visual_ND), without_outliers(scale * text_MD)
    outliers = len(visual_ND) - len(visual) + len(text_MD) - len(text)
    return frechet_distance(visual, text), outliers


def _filled(region: np.ndarray, counts_B: np.ndarray) -> np.ndarray:
    """Returns bool [B, slots]: the first `counts_B` slots of each row."""
    return np.arange(region.shape[1]) < counts_B[:, None]


def _spread(wanted_BS: np.ndarray, most: int) -> np.ndarray:
    """Returns int32 [B, min(most, S)]: evenly spread slots of each row among the wanted ones, then `_ABSENT`."""
    most = min(most, wanted_BS.shape[1])
    found = np.full((len(wanted_BS), most), _ABSENT, np.int32)
    for row, wanted in enumerate(wanted_BS):
        slots = np.flatnonzero(wanted)
        if len(slots) > most:
            slots = slots[np.linspace(0, len(slots) - 1, most).round().astype(int)]
        found[row, : len(slots)] = slots
    return found
