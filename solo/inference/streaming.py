"""An answer that is generated token by token, with the probability and the attention weights of every token.

`Monolith.generate` returns the same tokens faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from solo.batch import Batch
from solo.data.rows.assembly import stack
from solo.inference.decoding import Decoding
from solo.inference.monolith import Monolith
from solo.inference.prompt import (
    Conversation,
    bucket,
    encode_prompt,
    parse,
    rounded_room,
    row_of,
    slots,
)
from solo.inference.session import join, text_document
from solo.model.generate import decode_token
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Placement
from solo.sharding.hosts import on_host


class Written(NamedTuple):
    """A token of an answer.

    token        id of the token
    probability  its probability under the model at temperature 1, over the whole vocabulary
    likely       the most likely tokens with their probabilities, in descending order
    """

    token: int
    probability: float
    likely: list[tuple[int, float]]


class StreamedAnswer:
    """The answer to a conversation. Iterate over `write` once; the other methods then describe the answer.

    Attributes:
        document: the conversation as tokens and patches.
        written: the tokens so far.

    Raises:
        ValueError: the conversation is malformed, or an image cannot be read.
    """

    def __init__(self, model: Monolith, conversation: Conversation):
        (turns,) = parse([conversation])
        self._model = model
        runs = model.runs(turns, open_turn=True)
        self.document = encode_prompt(runs, model.tokenizer, model.config.image, "the conversation")
        self.written: list[Written] = []

    def write(self, decoding: Decoding, *, seed: int = 0, alternatives: int = 5) -> Iterator[Written]:
        """Yields the tokens of the answer, a stop token included.

        Args:
            decoding: decoding settings. At temperature 0, the tokens are those of `Monolith.generate`.
            seed: seed for sampling.
            alternatives: number of most likely tokens to list for every token.
        """
        model, config = self._model, self._model.config
        window, stops = config.sequence.windows, set(model.template.stops)
        rows, (patches, text) = model.fill(1), slots(self.document)
        room = self._room(patches, text)
        cache = model.empty_cache(rows, room[0], bucket(room[1] + decoding.slots))
        cache, logits_BV = model.prefill_chunks(
            cache, model.chunks(self.document, (patches, text), rows, decoding.prefill_chunk_size)
        )
        allowed, draw = decoding.sampling(model).allowed, np.random.default_rng(seed)
        while True:
            logits_V = on_host(logits_BV, model.mesh)[0].astype(np.float64)
            found = _described(logits_V, _chosen(logits_V, allowed, decoding, draw), alternatives)
            self.written.append(found)
            yield found
            if found.token in stops or len(self.written) == decoding.max_new_tokens:
                return
            token_B = np.full(rows, found.token, np.int32)
            where = model.generation.decode
            cache, logits_BV = decode_token(
                model.definition, where, model.parameters, cache, token_B, model.layers, sliding_window=window
            )

    @property
    def text(self) -> str:
        """The text of the answer so far. An incomplete last character is left out."""
        stops = set(self._model.template.stops)
        tokens = [each.token for each in self.written if each.token not in stops]
        return self._model.tokenizer.decode(tokens).rstrip("\N{REPLACEMENT CHARACTER}")

    def attention(self, layer: int) -> np.ndarray:
        """Compute the attention weights of one layer for the tokens of the answer.

        The weights of a token are those of the slot before it, whose hidden state predicts the token.

        Returns:
            float32 [A, H, N]: A tokens of the answer, N patches and text tokens: the document's patches first, then its
            text, then the answer.
        """
        model = self._model
        answer = [each.token for each in self.written]
        patches, text = slots(self.document)
        room = self._room(patches, text + len(answer))
        queries = room[0] + text - 1 + np.minimum(np.arange(bucket(len(answer))), len(answer) - 1)
        batch = self._batch(room, answer)
        weights = _attention_weights(
            model.definition, model.placement, model.parameters, batch, queries.astype(np.int32), np.int32(layer)
        )
        found = on_host(weights, model.mesh)[0, : len(answer)]
        return np.concatenate([found[..., :patches], found[..., room[0] : room[0] + text + len(answer)]], axis=-1)

    def _room(self, patches: int, text: int) -> tuple[int, int]:
        return rounded_room((patches, text), self._model.mesh.shape["context"])

    def _batch(self, room: tuple[int, int], answer: list[int] | None = None) -> Batch:
        model, config = self._model, self._model.config
        document = self.document if answer is None else join(self.document, text_document(answer, self.document))
        row = row_of(document, room, config.image, model.tokenizer.special.pad, sequence=config.sequence)
        return model.place(stack([row] * model.fill(1)))


@partial(jax.jit, static_argnums=(0, 1))
def _attention_weights(
    definition: ModelDefinition,
    where: Placement,
    parameters: Parameters,
    batch: Batch,
    queries_A: jax.Array,
    layer: jax.Array,
) -> jax.Array:
    return definition.bind(parameters).attention_weights(batch, queries_A, layer, where)


def _chosen(logits_V: np.ndarray, allowed_V: np.ndarray, decoding: Decoding, draw: np.random.Generator) -> int:
    logits_V = np.where(allowed_V, logits_V, -np.inf)
    if decoding.temperature == 0:
        return int(logits_V.argmax())
    order = np.argsort(-logits_V, kind="stable")
    probabilities = _softmax(logits_V[order] / decoding.temperature)
    nucleus = np.cumsum(probabilities) - probabilities < decoding.top_p
    nucleus[0] = True
    kept = np.where(nucleus, probabilities, 0)
    return int(draw.choice(order, p=kept / kept.sum()))


def _described(logits_V: np.ndarray, token: int, alternatives: int) -> Written:
    probabilities = _softmax(logits_V)
    likely = np.argsort(-probabilities, kind="stable")[:alternatives]
    return Written(token, float(probabilities[token]), [(int(each), float(probabilities[each])) for each in likely])


def _softmax(logits_V: np.ndarray) -> np.ndarray:
    weights = np.exp(logits_V - logits_V.max())
    return weights / weights.sum()
