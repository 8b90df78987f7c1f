"""The public Python API: a trained model with its tokenizer, for notebooks and for evaluation.

model = solo.load("runs/quickstart")
model.generate([[{"role": "user", "content": [{"type": "image", "image": "cat.png"}, "What is this?"]}]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from solo.batch import Batch
from solo.config import Config, LossConfig, MeshConfig, load_config
from solo.data.rows import assemble_row, stack
from solo.data.shape import RowShape
from solo.data.templates import make_template
from solo.data.tokenizer import Tokenizer, open_tokenizer
from solo.inference.decoding import Decoding, answer_length
from solo.inference.prompt import Conversation, encode_prompt, parse, prompt_batches, slots
from solo.model.generate import empty_memory, read
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.transformer import Placement
from solo.sharding.mesh import TABLE, device_batch, make_mesh, parameter_shardings, placement
from solo.training.checkpoint import CheckpointError, abstract_parameters, differences
from solo.training.loss import normalised_weights, target_loss

if TYPE_CHECKING:
    from solo.inference.session import Session


class Monolith:
    """A model that can be asked.

    config       of the run it comes from
    tokenizer    its tokenizer
    template     how it writes conversations down
    definition   everything about the network but its values
    parameters   path -> float32 array
    mesh         this process's devices, with the parameters sharded over all of them, unless one is given
    placement    constraints and attention for that mesh
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, parameters: Parameters, mesh: Mesh | None = None):
        self.config = config
        self.tokenizer = tokenizer
        self.template = make_template(tokenizer, config.sequence)
        self.definition = ModelDefinition(config.model, config.image, tokenizer.vocab_size)
        self.mesh = local_mesh() if mesh is None else mesh
        self.parameters = jax.device_put(parameters, parameter_shardings(self.definition.specs, self.mesh))
        self.placement = placement(self.mesh, config.model)

    def batch(self, conversations: Sequence[Conversation], *, slot_multiple: int = 8) -> Batch:
        """One row per conversation, supervised as in training; numpy.

        Args:
            conversations: lists of {"role", "content"}; see `solo.data.conversation.parse_conversation`.
            slot_multiple: P, T and Y are the least multiples of this that fit the largest conversation.

        Raises:
            ValueError: no conversation, one that is not well formed, or an image that cannot be read.
        """
        if not conversations:
            raise ValueError("there is no conversation to make a batch of")
        tokenizer, image, sequence = self.tokenizer, self.config.image, self.config.sequence
        documents = [
            encode_prompt(self.template.runs(turns), tokenizer, image, f"conversation {number}")
            for number, turns in enumerate(parse(conversations))
        ]
        needs = [(*slots(document), int(document.supervised.sum())) for document in documents]
        shape = RowShape(*(-(-max(need) // slot_multiple) * slot_multiple for need in zip(*needs, strict=True)))
        pad = tokenizer.special.pad
        return stack([assemble_row([(document, 0)], shape, image, pad, sequence) for document in documents])

    def logits(self, batch: Batch) -> np.ndarray:
        """Float32 logits [B, S, V] of what follows each slot, V being the tokenizer's pieces.

        S is in slot order, not in reading order: the P patches, then the T text tokens; slot P + t is `text[:, t]`.
        """
        logits_BSV = _logits(self.definition, self.placement, self.parameters, self._place(batch))
        return np.asarray(logits_BSV[: len(batch.text), :, : self.tokenizer.vocab_size])

    def loss_and_grads(self, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
        """Mean cross-entropy in nats over the batch's targets, and its gradient, path -> float32 array."""
        found = _loss_and_grads(self.definition, self.placement, self.parameters, self._place(batch))
        loss, grads = jax.device_get(found)
        return float(loss), grads

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
        prompts = [self.template.runs(turns, open_turn=True) for turns in parse(conversations)]
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
        memory = empty_memory(definition, len(counts_B2), batch.patches.shape[1], text_slots)
        memory, logits = read(definition, self.placement, parameters, memory, self._place(batch), counts_B2)
        written = decoding.write(definition, parameters, self.tokenizer, self.template, memory, logits, keys_B)
        tokens, lengths = jax.device_get((written.tokens, written.lengths))
        answers = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        return [self.tokenizer.decode(row[: answer_length(row, self.template.stops)]) for row in answers]

    def _fill(self, rows: int) -> int:
        """The number of rows rounded up to what the devices can share."""
        share = prod(self.mesh.shape[axis] for axis in TABLE["rows"])
        return -(-rows // share) * share

    def _place(self, batch: Batch) -> Batch:
        """The batch on the devices, with empty rows added to share it out."""
        missing = self._fill(len(batch.text)) - len(batch.text)
        padded = (
            [np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1)) for array in batch] if missing else batch
        )
        return device_batch(Batch(*padded), self.mesh)


def load(path: str | Path, mesh: Mesh | None = None) -> Monolith:
    """Load a model from a run's folder (its newest checkpoint), or from one of the run's checkpoints.

    Args:
        path: `runs/<name>`, or `runs/<name>/checkpoints/<step>`. The run may still be training.
        mesh: devices to load it onto; all of this process's unless given. It need not be the mesh it was trained on.

    Raises:
        ValueError: there is no such folder, it is no run, or it has no complete checkpoint.
        CheckpointError: the checkpoint is not of the model that the run's config describes.
    """
    folder = Path(path)
    is_checkpoint = folder.parent.name == "checkpoints"
    run = folder.parent.parent if is_checkpoint else folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected a run (runs/<name>) or one of its checkpoints")
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run of solo: it has no config.yaml")
    config = load_config(run / "config.yaml")
    tokenizer = open_tokenizer(run)
    definition = ModelDefinition(config.model, config.image, tokenizer.vocab_size)
    mesh = local_mesh() if mesh is None else mesh
    checkpoint = folder if is_checkpoint else newest_checkpoint(run)
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
    hidden, _ = model.hidden(batch, where)
    return model.logits(hidden.join())


@partial(jax.jit, static_argnums=(0, 1))
def _loss_and_grads(
    definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch
) -> tuple[jax.Array, Parameters]:
    config = LossConfig()
    weighted = batch._replace(target_weights=normalised_weights(batch.target_weights, config))

    def loss(parameters: Parameters) -> jax.Array:
        model = definition.bind(parameters)
        hidden, _ = model.hidden(weighted, where)
        return target_loss(model, hidden, weighted, config, num_sources=1).total

    return jax.value_and_grad(loss)(parameters)
