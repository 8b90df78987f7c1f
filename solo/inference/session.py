"""A conversation that keeps its KV cache: the cost of a turn depends only on the turn's own length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from solo.data.readers.conversations import parse_conversation
from solo.data.record import Image
from solo.data.rows.document import NO_IMAGE, Document, TextRun
from solo.inference.decoding import Decoding, answer_length, check_count, row_keys
from solo.inference.prompt import bucket, encode_prompt, slots
from solo.inference.trained import TrainedModel
from solo.model.kv_cache import resize
from solo.sharding.axes import row_shards
from solo.sharding.hosts import on_host


class Session:
    """One conversation with a model, made by `Monolith.session`. Any turn may contain images."""

    def __init__(self, model: TrainedModel, prefill_chunk_size: int | None = None):
        if prefill_chunk_size is not None:
            check_count("prefill_chunk_size", prefill_chunk_size)
        self._model, self._chunk_size = model, prefill_chunk_size
        self._document: Document | None = None  # what the cache holds
        self._unread: tuple[int, ...] = ()  # tokens to prefill before the next turn
        # Devices that rows are sharded over all compute the same row.
        self._rows = row_shards(model.mesh.shape)
        self._cache = model.empty_cache(self._rows, 0, 0)

    def say(
        self,
        content: str | Sequence[str | Image | Mapping[str, Any]],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Add a user turn, and return the answer.

        Args:
            content: a string, or strings and image parts; see `solo.data.readers.conversations.parse_conversation`.
            max_new_tokens: maximum length of an answer; see `Decoding`.
            temperature: 0 selects the most likely token; above 0, tokens are sampled.
            top_p: sample from the smallest set of most likely tokens whose probabilities sum to at least this.
            seed: seed for sampling.

        Raises:
            ValueError: a part is malformed, an image cannot be read, or a setting is out of range. The session is
                unchanged.
        """
        model = self._model
        decoding = Decoding(max_new_tokens, temperature, top_p, self._chunk_size)
        turns = parse_conversation([{"role": "user", "content": content}])
        begun = self._document is not None
        runs = model.runs(turns, open_turn=True, continued=begun)
        if begun:
            runs = [TextRun(self._unread, False), *runs]
        turn = encode_prompt(runs, model.tokenizer, model.config.image, "this turn")
        logits_BV = self._prefill(turn, decoding)
        keys_B = row_keys(model.mesh, seed, np.zeros(self._rows, int))
        written = decoding.decode(model, self._cache, logits_BV, keys_B)
        tokens, lengths = on_host((written.tokens, written.lengths), model.mesh)
        tokens = tokens[0, : int(lengths[0])]
        answer = tokens[: answer_length(tokens, model.template.stops)].tolist()
        # The next turn overwrites tokens after the answer's end.
        dropped = np.array([0, len(tokens) - len(answer)], np.int32)
        self._cache = written.cache._replace(
            length=written.cache.length - dropped, next_position=written.cache.next_position - dropped[1]
        )
        self._keep(answer)
        return model.tokenizer.decode(answer)

    def _prefill(self, turn: Document, decoding: Decoding) -> jax.Array:
        """Prefill a turn into the cache, with room for an answer. Returns the logits after it [B, V]."""
        model = self._model
        start = (0, 0) if self._document is None else slots(self._document)
        self._document = turn if self._document is None else join(self._document, turn)
        stop = slots(self._document)
        counts = stop[0] - start[0], stop[1] - start[1]
        chunks = model.chunks(self._document, counts, self._rows, decoding.prefill_chunk_size, start)
        self._cache = resize(self._cache, bucket(stop[0]), bucket(stop[1] + decoding.slots))
        self._cache, logits = model.prefill_chunks(self._cache, chunks)
        return logits

    def _keep(self, answer: list[int]) -> None:
        """Record that the cache contains the answer except its last token, which is prefilled with the next turn."""
        assert self._document is not None
        template = self._model.template
        closing = template.closing[1:] if answer[-1] in template.stops else template.closing
        self._unread = (answer[-1], *closing)
        self._document = join(self._document, text_document(answer[:-1], self._document))


def join(first: Document, second: Document) -> Document:
    """Joins two documents. The second's images are numbered after the first's."""
    images = first.image.max(initial=NO_IMAGE) + 1
    image = np.where(second.image == NO_IMAGE, NO_IMAGE, second.image + images)
    return Document(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.supervised, second.supervised]),
        np.concatenate([first.image, image]).astype(np.int32),
        np.concatenate([first.patches, second.patches]),
        np.concatenate([first.patch_grid, second.patch_grid]),
    )


def text_document(tokens: list[int], like: Document) -> Document:
    """Returns a document of text tokens."""
    return Document(
        np.array(tokens, np.int32),
        np.zeros(len(tokens), bool),
        np.full(len(tokens), NO_IMAGE, np.int32),
        like.patches[:0],
        like.patch_grid[:0],
    )
