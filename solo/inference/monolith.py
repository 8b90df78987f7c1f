"""The public Python API: a trained model for notebooks and for evaluation.

model = solo.load("runs/quickstart")
model.generate([[{"role": "user", "content": [{"type": "image", "image": "cat.png"}, "What is this?"]}]])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from solo.batch import Batch
from solo.config import ImageConfig, LossConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.inference.decoding import Answer, Decoding, answer_length, check_count, row_keys
from solo.inference.hf_batch import HFBatch, check_tensors, hf_batch
from solo.inference.prompt import (
    Chunks,
    Conversation,
    Prompt,
    PromptBatch,
    bucket,
    encode_prompt,
    in_order,
    parse,
    prompt_batches,
    prompt_needs,
    slots,
)
from solo.inference.session import Session
from solo.inference.trained import TrainedModel
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.sharding.hosts import on_host, row_share, summed
from solo.training.losses import at_targets, batch_loss, normalised_weights


class Monolith(TrainedModel):
    """A trained model that computes logits, losses and gradients, and answers conversations."""

    @overload
    def batch(self, conversations: Sequence[Conversation], *, slot_multiple: int = 8) -> Batch: ...

    @overload
    def batch(self, *, slot_multiple: int = 8, **tensors: Any) -> HFBatch: ...

    def batch(
        self, conversations: Sequence[Conversation] | None = None, *, slot_multiple: int = 8, **tensors: Any
    ) -> Batch | HFBatch:
        """Make a batch (numpy): one row per conversation, supervised as in training, or one per row of `input_ids`.

        Args:
            conversations: lists of {"role", "content"}; see `solo.data.readers.conversations.parse_conversation`.
            slot_multiple: P, T and Y are the smallest multiples of this that fit the largest row.
            tensors: instead of conversations, the tensors of a Hugging Face model's forward pass; see
                `solo.inference.hf_batch`. Logits of such a batch are in the order of its `input_ids`, and gradients
                have the published names.

        Raises:
            ValueError: there is no conversation, one is malformed, an image cannot be read, or tensors have
                inconsistent shapes.
        """
        if tensors:
            if conversations is not None:
                raise ValueError("give conversations or tensors, not both")
            given = check_tensors(tensors, self.config, self.placeholder_id)
            return hf_batch(given, self.config, slot_multiple=slot_multiple)
        if not conversations:
            raise ValueError("there is no conversation to make a batch of")
        tokenizer, image, sequence = self.tokenizer, self.config.image, self.config.sequence
        documents = [
            encode_prompt(self.runs(turns), tokenizer, image, f"conversation {number}")
            for number, turns in enumerate(parse(conversations))
        ]
        needs = [(*slots(document), int(document.supervised.sum())) for document in documents]
        shape = RowShape(*(-(-max(need) // slot_multiple) * slot_multiple for need in zip(*needs, strict=True)))
        pad = tokenizer.special.pad
        return stack([assemble_row([(document, 0)], shape, image, pad, sequence) for document in documents])

    def logits(self, batch: Batch | HFBatch) -> np.ndarray:
        """Compute float32 logits [B, S, V] of the token after each slot; V is the number of vocabulary rows.

        S is in slot order, not in reading order: the P patches, then the T text tokens; slot P + t is `text[:, t]`.
        For an `HFBatch` the logits are [B, N, V], in the order of its `input_ids`.
        """
        definition, plain = self._resolve(batch)
        logits_BSV = _logits(definition, self.placement, self.parameters, self.place(plain))
        found = on_host(logits_BSV, self.mesh)[: len(plain.text), :, : self.definition.vocab_size]
        return batch.in_input_order(found) if isinstance(batch, HFBatch) else found

    def loss_and_grads(self, batch: Batch | HFBatch) -> tuple[float, dict[str, np.ndarray]]:
        """Compute the mean cross-entropy in nats over the batch's targets, and its gradient, path -> float32 array.

        For an `HFBatch` and weights from a repository, the gradients are named and shaped like the repository's
        tensors.
        """
        definition, plain = self._resolve(batch)
        found = _loss_and_grads(definition, self.placement, self.parameters, self.place(plain))
        loss, grads = on_host(found, self.mesh)
        if isinstance(batch, HFBatch) and self.published is not None:
            grads = self.published.rename(grads)
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
        prefill_chunk_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Generate the next turn of each conversation. If its last turn is `assistant` or `text`, extend that turn.

        An answer depends on its conversation and, with sampling, on its place in the list. It does not depend on the
        other conversations. If the mesh spans several processes, all of them must call this with the same
        conversations; each decodes the images of its own rows, and all return all answers.

        Args:
            conversations: lists of {"role", "content"}, with any number of images in any turn.
            max_new_tokens: maximum length of an answer; see `Decoding`.
            temperature: 0 selects the most likely token; above 0, tokens are sampled.
            top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least this.
            seed: seed for sampling.
            batch_rows: maximum number of conversations that are answered together.
            prefill_chunk_size: bounds the memory of long prompts; see `Decoding`.
            progress: called with (answered, total) after every batch. All batches of a call have one shape.

        Raises:
            ValueError: a conversation is malformed, an image cannot be read, or a setting is out of range.
        """
        decoding = Decoding(max_new_tokens, temperature, top_p, prefill_chunk_size)
        check_count("batch_rows", batch_rows)
        if not conversations:
            return []
        prompts = [self.runs(turns, open_turn=True) for turns in parse(conversations)]
        rows = self.answered_together(len(prompts), batch_rows)
        plan = in_order(prompt_needs(prompts, self.config.image), rows, self.mesh.shape["context"])
        answers: list[str] = []
        for _, written in self.answer(prompts, plan, rows, decoding, seed=seed):
            answers += [answer.text for answer in written]
            if progress:
                progress(len(answers), len(prompts))
        return answers

    def answered_together(self, prompts: int, batch_rows: int) -> int:
        """Returns the rows of a batch: a power of two, so that similar numbers of prompts share a compilation.

        Args:
            prompts: total number of prompts, at least 1.
            batch_rows: maximum number of rows.
        """
        return self.fill(min(1 << (prompts - 1).bit_length(), batch_rows))

    def answer(
        self,
        prompts: Sequence[Prompt],
        plan: Sequence[PromptBatch],
        rows: int,
        decoding: Decoding,
        *,
        seed: int = 0,
        smaller: Mapping[int, ImageConfig] | None = None,
    ) -> Iterator[tuple[PromptBatch, list[Answer]]]:
        """Answers prompts batch by batch; `generate` is this with one shape for all batches.

        Args:
            prompts: tokenized conversations whose last turn is open (`runs`).
            plan: the batches (`in_order` or `by_length` of `solo.inference.prompt`), each of at most `rows` prompts.
            rows: see `answered_together`.
            decoding: decoding settings.
            seed: seed for sampling. The samples of an answer depend on the number of its prompt, not on its batch.
            smaller: see `prompt_batches`.

        Yields:
            Each batch of the plan with the answers to its prompts.

        Raises:
            ValueError: an image cannot be read.
        """
        config, share = self.config, row_share(self.mesh)
        batches = prompt_batches(
            prompts,
            rows,
            self.tokenizer,
            config.image,
            config.sequence,
            plan=plan,
            smaller=smaller,
            share=(share.index, share.count),
            slot_multiple=self.mesh.shape["context"],
            chunk_size=decoding.prefill_chunk_size,
            agreed=lambda failed: summed(failed, share, self.mesh)(),
        )
        for planned, chunks in zip(plan, batches, strict=True):
            numbers = planned.numbers + planned.numbers[-1:] * (rows - len(planned.numbers))
            keys = row_keys(self.mesh, seed, np.array(numbers))
            yield planned, self._answer(chunks, planned.room, keys, decoding)[: len(planned.numbers)]

    def log_probabilities(self, batch: Batch) -> np.ndarray:
        """Computes the log-probability of each target of a batch, float32 [B, Y], in nats; 0 where there is none."""
        found = _log_probabilities(self.definition, self.placement, self.parameters, self.place(batch))
        return on_host(found, self.mesh)[: len(batch.text)]

    def session(self, prefill_chunk_size: int | None = None) -> Session:
        """Begin a conversation that keeps its KV cache; see `Session`."""
        return Session(self, prefill_chunk_size)

    def _resolve(self, batch: Batch | HFBatch) -> tuple[ModelDefinition, Batch]:
        """Returns the model and the plain batch. For an `HFBatch`, the model adds the embedding under its patches."""
        if not isinstance(batch, HFBatch):
            return self.definition, batch
        config, embed = self.definition.config, self.definition.config.patch_embed
        if batch.under_id in (None, embed.token_id) or embed.token_id is None:
            return self.definition, batch.batch
        other = config.model_copy(update={"patch_embed": embed.model_copy(update={"token_id": batch.under_id})})
        return replace(self.definition, config=other), batch.batch

    def _answer(self, chunks: Chunks, room: tuple[int, int], keys_B: jax.Array, decoding: Decoding) -> list[Answer]:
        """Answers the rows of a batch, whose prompts have at most `room` patches and text tokens."""
        cache = self.empty_cache(len(keys_B), room[0], bucket(room[1] + decoding.slots))
        cache, logits = self.prefill_chunks(cache, chunks)
        written = decoding.decode(self, cache, logits, keys_B)
        tokens, lengths = on_host((written.tokens, written.lengths), self.mesh)
        answers = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        return [self._text(row[: answer_length(row, self.template.stops)]) for row in answers]

    def _text(self, tokens: np.ndarray) -> Answer:
        return Answer(self.tokenizer.decode(tokens.tolist()), len(tokens), int(tokens[-1]) not in self.template.stops)


@partial(jax.jit, static_argnums=(0, 1))
def _log_probabilities(
    definition: ModelDefinition, where: Placement, parameters: Parameters, batch: Batch
) -> jax.Array:
    model = definition.bind(parameters)
    hidden = model.hidden(batch, where).hidden

    def of_targets(logits: jax.Array, ids: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    found = at_targets(model, where, hidden, batch, LossConfig(), of_targets)
    return jnp.where(batch.target_weights > 0, found, 0.0)


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
        return batch_loss(definition, where, parameters, weighted, config)[0]

    return jax.value_and_grad(loss)(parameters)
