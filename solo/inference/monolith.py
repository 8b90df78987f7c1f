"""The public Python API: a trained model with its tokenizer, for notebooks and for evaluation.

model = solo.load("runs/quickstart")
model.generate([[{"role": "user", "content": [{"type": "image", "image": "cat.png"}, "What is this?"]}]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from solo.batch import Batch
from solo.config import Config, LossConfig, MeshConfig, load_config
from solo.data.planning.row_shape import RowShape
from solo.data.record import Image, Turn
from solo.data.rows.assembly import assemble_row, stack
from solo.data.text import Tokenizer, open_tokenizer
from solo.data.text.templates import Runs, Template, make_template
from solo.inference.caller import CallerBatch, caller_batch, read_caller
from solo.inference.decoding import Decoding, answer_length
from solo.inference.prompt import Conversation, encode_prompt, parse, prompt_batches, slots
from solo.model.generate import prefill
from solo.model.kv_cache import empty_cache
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.model.placement import Placement
from solo.sharding.mesh import TABLE, device_batch, make_mesh, parameter_shardings
from solo.sharding.placement import placement
from solo.training.checkpoint import CheckpointError, abstract_parameters, differences
from solo.training.loss import batch_loss, normalised_weights

if TYPE_CHECKING:
    from solo.inference.session import Session


@dataclass(frozen=True)
class Published:
    """What a repository calls things.

    sees_images     False of a text model, whose embedder of patches is all zeros
    placeholder_id  what stands for a patch in its `input_ids`, where its config says so
    rename          path -> array of ours, to name -> array of its tensors
    """

    sees_images: bool
    placeholder_id: int | None
    rename: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Monolith:
    """A model that can be asked.

    config       of the run it comes from, or what a repository's files say
    definition   everything about the network but its values
    parameters   path -> float32 array
    mesh         this process's devices, with the parameters sharded over all of them, unless one is given
    placement    constraints and attention for that mesh
    published    what the tensors of the repository that it comes from are called; None for a run of ours

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

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError where a repository brought none: tensors can still be given."""
        if self._tokenizer is None:
            raise ValueError("these weights came without a tokenizer (tokenizer.model or tokenizer.json beside them)")
        return self._tokenizer

    @cached_property
    def template(self) -> Template:
        """How it writes conversations down. Raises ConfigError where the tokenizer lacks a token of the template."""
        return make_template(self.tokenizer, self.config.sequence)

    @property
    def placeholder_id(self) -> int:
        """What stands for a patch in the `input_ids` of published code; the highest id unless the config names one."""
        token = self.config.image.placeholder_token
        if self.published is not None and self.published.placeholder_id is not None:
            return self.published.placeholder_id
        if token is not None and self._tokenizer is not None:
            return self._tokenizer.id(token)
        return self.definition.vocab_size - 1

    @overload
    def batch(self, conversations: Sequence[Conversation], *, slot_multiple: int = 8) -> Batch: ...

    @overload
    def batch(self, *, slot_multiple: int = 8, **tensors: Any) -> CallerBatch: ...

    def batch(
        self, conversations: Sequence[Conversation] | None = None, *, slot_multiple: int = 8, **tensors: Any
    ) -> Batch | CallerBatch:
        """One row per conversation, supervised as in training; or one row per row of a caller's own tensors; numpy.

        Args:
            conversations: lists of {"role", "content"}; see `solo.data.record.parse_conversation`.
            slot_multiple: P, T and Y are the least multiples of this that fit the largest row.
            tensors: instead of conversations, by the names of the published code; see `solo.inference.caller`.
                What is made of such a batch comes back in the caller's order and by the published names.

        Raises:
            ValueError: no conversation, one that is not well formed, an image that cannot be read, or tensors that do
                not fit together.
        """
        if tensors:
            if conversations is not None:
                raise ValueError("give conversations or tensors, not both")
            rows = read_caller(tensors, self.config.image, self.placeholder_id)
            return caller_batch(rows, self.config, slot_multiple=slot_multiple)
        if not conversations:
            raise ValueError("there is no conversation to make a batch of")
        tokenizer, image, sequence = self.tokenizer, self.config.image, self.config.sequence
        documents = [
            encode_prompt(self.written(turns), tokenizer, image, f"conversation {number}")
            for number, turns in enumerate(parse(conversations))
        ]
        needs = [(*slots(document), int(document.supervised.sum())) for document in documents]
        shape = RowShape(*(-(-max(need) // slot_multiple) * slot_multiple for need in zip(*needs, strict=True)))
        pad = tokenizer.special.pad
        return stack([assemble_row([(document, 0)], shape, image, pad, sequence) for document in documents])

    def written(self, turns: Sequence[Turn], open_turn: bool = False, continued: bool = False) -> Runs:
        """`Template.runs`. Raises ValueError for images where the model is a text model."""
        runs = self.template.runs(turns, open_turn, continued)
        blind = self.published is not None and not self.published.sees_images
        if blind and any(isinstance(run, Image) for run in runs):
            raise ValueError("this is a text model: it cannot read images (solo import can upcycle it)")
        return runs

    def logits(self, batch: Batch | CallerBatch) -> np.ndarray:
        """Float32 logits [B, S, V] of what follows each slot, V being the vocabulary's rows.

        S is in slot order, not in reading order: the P patches, then the T text tokens; slot P + t is `text[:, t]`.
        Of a caller's batch they are [B, N, V], in the order of its `input_ids`.
        """
        definition, plain = self._as_given(batch)
        logits_BSV = _logits(definition, self.placement, self.parameters, self.place(plain))
        found = np.asarray(logits_BSV[: len(plain.text), :, : self.definition.vocab_size])
        return batch.in_order(found) if isinstance(batch, CallerBatch) else found

    def loss_and_grads(self, batch: Batch | CallerBatch) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy in nats over the batch's targets, and its gradient, path -> float32 array.

        Of a caller's batch, with weights from a published repository, the gradients go by that repository's names.
        """
        definition, plain = self._as_given(batch)
        found = _loss_and_grads(definition, self.placement, self.parameters, self.place(plain))
        loss, grads = jax.device_get(found)
        if isinstance(batch, CallerBatch) and self.published is not None:
            grads = self.published.rename(grads)
        return float(loss), grads

    def _as_given(self, batch: Batch | CallerBatch) -> tuple[ModelDefinition, Batch]:
        """The model and the batch; of a caller's batch, the model that adds under patches what stands there."""
        if not isinstance(batch, CallerBatch):
            return self.definition, batch
        config, embed = self.definition.config, self.definition.config.patch_embed
        if batch.under_id in (None, embed.token_id) or embed.token_id is None:
            return self.definition, batch.batch
        other = config.model_copy(update={"patch_embed": embed.model_copy(update={"token_id": batch.under_id})})
        return replace(self.definition, config=other), batch.batch

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_rows: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Continue every conversation: its last turn if that is `assistant` or `text`, else by answering it.

        An answer depends on its conversation and, where tokens are drawn, on its place in the list; not on the others.

        Args:
            conversations: lists of {"role", "content"}, with any number of images in any turn.
            max_new_tokens: where an answer ends that does not end itself; see `Decoding`.
            temperature: 0 takes the likeliest token; above, tokens are drawn.
            top_p: draw from the fewest tokens whose probabilities reach this sum.
            seed: of the draws.
            batch_rows: conversations that are answered together, at most.
            progress: called with (answered, all) after every batch.

        Raises:
            ValueError: a conversation that is not well formed, an unreadable image, or a setting out of range.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p)
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}; it must be at least 1")
        if not conversations:
            return []
        prompts = [self.written(turns, open_turn=True) for turns in parse(conversations)]
        # A power of two, so that numbers of conversations that differ a little share a compilation.
        rows = self._fill(min(1 << (len(prompts) - 1).bit_length(), batch_rows))
        answers: list[str] = []
        config = self.config
        for batch, counts in prompt_batches(prompts, rows, self.tokenizer, config.image, config.sequence):
            keys = row_keys(seed, len(answers), rows)
            answers += self._answer(batch, counts, keys, decoding)[: len(prompts) - len(answers)]
            if progress:
                progress(len(answers), len(prompts))
        return answers

    def session(self) -> Session:
        """A conversation that remembers what it has read; see `Session`."""
        from solo.inference.session import Session

        return Session(self)

    def _answer(self, batch: Batch, counts_B2: np.ndarray, keys_B: jax.Array, decoding: Decoding) -> list[str]:
        definition, parameters = self.definition, self.parameters
        text_slots = batch.text.shape[1] + decoding.max_new_tokens
        cache = empty_cache(definition.config, len(counts_B2), batch.patches.shape[1], text_slots)
        cache, logits = prefill(definition, self.placement, parameters, cache, self.place(batch), counts_B2)
        sliding_window = self.config.sequence.sliding_window
        written = decoding.write(
            definition, parameters, self.tokenizer, self.template, cache, logits, keys_B, sliding_window
        )
        tokens, lengths = jax.device_get((written.tokens, written.lengths))
        answers = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        return [self.tokenizer.decode(row[: answer_length(row, self.template.stops)]) for row in answers]

    def _fill(self, rows: int) -> int:
        """The number of rows rounded up to what the devices can share."""
        share = prod(self.mesh.shape[axis] for axis in TABLE["rows"])
        return -(-rows // share) * share

    def place(self, batch: Batch) -> Batch:
        """The batch on the devices, with empty rows added to share it out."""
        missing = self._fill(len(batch.text)) - len(batch.text)
        padded = (
            [np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1)) for array in batch] if missing else batch
        )
        return device_batch(Batch(*padded), self.mesh)


def load_run(path: Path, mesh: Mesh | None = None) -> Monolith:
    """Load a model from a run's folder (its newest checkpoint), or from one of the run's checkpoints; see `solo.load`.

    Raises:
        ValueError: it is no run, or it has no complete checkpoint.
        CheckpointError: the checkpoint is not of the model that the run's config describes.
    """
    is_checkpoint = path.parent.name == "checkpoints"
    run = path.parent.parent if is_checkpoint else path
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run of solo: it has no config.yaml")
    config = load_config(run / "config.yaml")
    tokenizer = open_tokenizer(run)
    mesh = local_mesh() if mesh is None else mesh
    checkpoint = path if is_checkpoint else newest_checkpoint(run)
    definition = define(config, tokenizer.vocab_size)
    return Monolith(config, tokenizer, read_parameters(checkpoint, definition, mesh), mesh)


def newest_checkpoint(run: Path) -> Path:
    """The folder of a run's last complete checkpoint. Raises ValueError where there is none."""
    complete = [path.parent for path in run.glob("checkpoints/*/commit_success.txt")]
    if not complete:
        raise ValueError(f"{run} has no complete checkpoint yet: train it, or wait until its first one is saved")
    return max(complete, key=lambda folder: int(folder.name))


def read_parameters(checkpoint: Path, definition: ModelDefinition, mesh: Mesh) -> Parameters:
    """The parameters of a checkpoint, sharded over the mesh. Only reads, so the run may be training.

    Raises:
        ValueError: the checkpoint is not complete.
        CheckpointError: its parameters are not the model's; the message lists the differences.
    """
    if not (checkpoint / "commit_success.txt").is_file():
        raise ValueError(f"{checkpoint} is no complete checkpoint")
    wanted = {"parameters": abstract_parameters(definition.specs, parameter_shardings(definition.specs, mesh))}
    stored = ocp.checkpointables_metadata(checkpoint.absolute()).metadata
    if lines := differences(stored["parameters"], wanted["parameters"]):
        raise CheckpointError(f"{checkpoint} is not of this run's model:\n" + "\n".join(f"  {line}" for line in lines))
    return ocp.load_checkpointables(checkpoint.absolute(), wanted)["parameters"]


def local_mesh() -> Mesh:
    """All of this process's devices."""
    return make_mesh(MeshConfig(), jax.local_devices())


def row_keys(seed: int, first: int, rows: int) -> jax.Array:
    """A PRNG key for each of `rows` rows, the first being row number `first` of all."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(first, first + rows))


@partial(jax.jit, static_argnums=(0, 1))
def _logits(definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch) -> jax.Array:
    model = definition.bind(parameters)
    return model.logits(model.hidden(batch, where).hidden.join())


@partial(jax.jit, static_argnums=(0, 1))
def _loss_and_grads(
    definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch
) -> tuple[jax.Array, Parameters]:
    config = LossConfig()
    weighted = batch._replace(target_weights=normalised_weights(batch.target_weights, config))

    def loss(parameters: Parameters) -> jax.Array:
        return batch_loss(definition, where, parameters, weighted, config).total

    return jax.value_and_grad(loss)(parameters)
