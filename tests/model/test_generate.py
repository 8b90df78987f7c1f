"""Prefill and decode against the reference model on whole documents (tests/reference.py)."""

import re
from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.config import ExpertsConfig, ImageConfig, MeshConfig, ModelConfig, SequenceConfig
from solo.data.rows.assembly import stack
from solo.data.rows.document import PATCH, Document
from solo.inference.prompt import row_of, slots
from solo.model.by_layer import prefill_by_layer, split_layers
from solo.model.generate import Sampling, generate, prefill
from solo.model.kv_cache import empty_cache
from solo.model.parameters import ModelDefinition
from solo.model.placement import Generating
from solo.sharding.generation import generation
from solo.sharding.mesh import make_mesh
from tests.reference import NEO, forward, random_document

VOCAB, PADDED, STOP = 50, 128, 2
# All tests share one shape, so that little is compiled: slots of a chunk, slots of the cache, tokens of a document.
ROOM, KEPT, LONGEST = (48, 64), (48, 80), 100
VISUAL_FFN = ExpertsConfig(ffn="modality")
ALL_EXPERTS = ExpertsConfig(ffn="modality", qkv="modality", out="modality", norms="modality")
HERE, ONE_TOKEN = Generating()[:2]


def make(experts: ExpertsConfig, mode: str, **switches) -> ModelDefinition:
    image = ImageConfig(patch_size=2, max_side=64, mask=mode)
    settings = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "attention_block": 16}
    config = ModelConfig.model_validate({"experts": experts, **settings, **switches}, strict=False)
    return ModelDefinition(config, image, VOCAB)


def weights(definition: ModelDefinition) -> dict:
    rng = np.random.default_rng(1)
    drawn = {path: rng.normal(0, 0.3, spec.shape) for path, spec in definition.specs.items()}
    return {path: np.float32(1 + value if "norm" in path else value) for path, value in drawn.items()}


def documents_of(seed: int, parts: tuple[int, ...]) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [random_document(rng, VOCAB, patch_size=2, parts=count) for count in parts]


def cuts_of(document: Document) -> list[int]:
    """The places where a document may be cut: after a text token that is not inside an image."""
    image, is_text = document.image, document.tokens != PATCH
    return [i for i in range(1, len(image)) if is_text[i - 1] and not (image[i - 1] >= 0 and image[i - 1] == image[i])]


def chunks(documents: list[Document], starts: list[int], stops: list[int], definition: ModelDefinition):
    """Elements [start, stop) of each document in reading order, as one batch, with the counts that `prefill` takes."""
    heads = [document.chunk(0, stop) for document, stop in zip(documents, stops, strict=True)]
    done = [slots(document.chunk(0, start)) for document, start in zip(documents, starts, strict=True)]
    counts = np.array([slots(head) for head in heads], np.int32) - np.array(done, np.int32)
    sequence = SequenceConfig(positions=definition.config.positions)
    rows = [row_of(head, ROOM, definition.image, 0, start, sequence) for head, start in zip(heads, done, strict=True)]
    return stack(rows), counts


def whole(definition: ModelDefinition, parameters, document: Document) -> np.ndarray:
    """The reference model's logits [N, V]. The document is padded with text, so that one length is compiled."""
    assert len(document.tokens) <= LONGEST
    padded = extended(document, [9] * (LONGEST - len(document.tokens)))
    logits = forward(parameters, definition.config, definition.image, padded)
    return np.asarray(logits)[: len(document.tokens)]


def allowed(*more: int) -> jax.Array:
    return (jnp.arange(PADDED) >= 8) & (jnp.arange(PADDED) < VOCAB) | jnp.isin(jnp.arange(PADDED), jnp.array([*more]))


def sampling(*more: int, temperature: float = 1.0, top_p: float = 1.0) -> Sampling:
    return Sampling(jnp.float32(temperature), jnp.float32(top_p), allowed(*more), jnp.int32(STOP))


def prefill_all(definition, parameters, documents):
    stops = [len(document.tokens) for document in documents]
    chunk, counts = chunks(documents, [0] * len(documents), stops, definition)
    return prefill(definition, HERE, parameters, empty_cache(definition.config, len(documents), *KEPT), chunk, counts)


CASES = [
    (VISUAL_FFN, "causal", {}),
    (ALL_EXPERTS, "bidirectional", {"tied_head": True}),
    (ALL_EXPERTS, "isolated", {"attention_implementation": "dense", "scan_layers": False}),
    (VISUAL_FFN, "bidirectional", NEO),
]


@pytest.mark.parametrize(("experts", "mode", "switches"), CASES)
def test_prefill_in_chunks_equals_the_whole_document(experts, mode, switches) -> None:
    definition = make(experts, mode, **switches)
    parameters = weights(definition)
    documents = documents_of(5, (9, 5, 7))
    expected = [whole(definition, parameters, document) for document in documents]
    cache = empty_cache(definition.config, 3, *KEPT)
    starts = [0, 0, 0]
    # Rows advance by different lengths, with images in later chunks.
    for share in (0.25, 0.5, 1.0):
        cuts = [[*cuts_of(document), len(document.tokens)] for document in documents]
        stops = [places[round(share * (len(places) - 1))] for places in cuts]
        chunk, counts = chunks(documents, starts, stops, definition)
        cache, logits = prefill(definition, HERE, parameters, cache, chunk, counts)
        for row, stop in enumerate(stops):
            np.testing.assert_allclose(logits[row, :VOCAB], expected[row][stop - 1, :VOCAB], atol=1e-4)
        assert share < 0.3 or counts[:, 0].any(), "later chunks should have images"
        starts = stops
    np.testing.assert_array_equal(cache.length, [slots(document) for document in documents])


@pytest.mark.parametrize(("experts", "mode", "switches"), CASES)
def test_generation_equals_full_recomputation(experts, mode, switches) -> None:
    definition = make(experts, mode, **switches)
    parameters = weights(definition)
    documents = documents_of(6, (6, 3, 8))
    cache, logits = prefill_all(definition, parameters, documents)
    keys = jax.random.split(jax.random.key(0), 3)
    found = generate(
        definition, ONE_TOKEN, parameters, cache, logits, keys, sampling(), jnp.int32(8), slots=8, greedy=True
    )
    np.testing.assert_array_equal(found.lengths, [8] * 3)
    np.testing.assert_array_equal(found.cache.length, [np.add(slots(document), (0, 7)) for document in documents])
    for row, document in enumerate(documents):
        written = extended(document, found.tokens[row])
        expected = whole(definition, parameters, written)
        predicted = np.where(allowed(), expected, -np.inf)[len(document.tokens) - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(found.tokens[row], predicted)
    # The cache is complete: a prefill of the last token equals the whole document.
    everything = [extended(document, tokens) for document, tokens in zip(documents, found.tokens, strict=True)]
    stops = [len(document.tokens) for document in everything]
    chunk, counts = chunks(everything, [stop - 1 for stop in stops], stops, definition)
    cache, after = prefill(definition, HERE, parameters, found.cache, chunk, counts)
    for row, document in enumerate(everything):
        np.testing.assert_allclose(after[row, :VOCAB], whole(definition, parameters, document)[-1, :VOCAB], atol=1e-4)


def extended(document: Document, tokens) -> Document:
    tokens = np.asarray(tokens, np.int32)
    return replace(
        document,
        tokens=np.concatenate([document.tokens, tokens]),
        supervised=np.concatenate([document.supervised, np.zeros(len(tokens), bool)]),
        image=np.concatenate([document.image, np.full(len(tokens), -1, np.int32)]),
    )


@pytest.mark.parametrize(("experts", "mode", "switches"), CASES)
def test_separate_layers_give_the_same(experts, mode, switches) -> None:
    """On one CPU device, each layer has its own arrays; the last one computes only what predicts the next token."""
    definition = make(experts, mode, **switches)
    parameters = jax.tree.map(jnp.asarray, weights(definition))
    where = generation(make_mesh(MeshConfig(), jax.devices()[:1]), definition.config)
    assert where.separate_layers
    documents = documents_of(8, (9, 5, 7))
    layers = split_layers(parameters, jax.devices()[0])
    cache = empty_cache(definition.config, 3, *KEPT, separate_layers=True)
    starts, keys = [0, 0, 0], jax.random.split(jax.random.key(0), 3)
    for share in (0.5, 1.0):
        cuts = [[*cuts_of(document), len(document.tokens)] for document in documents]
        stops = [places[round(share * (len(places) - 1))] for places in cuts]
        chunk, counts = chunks(documents, starts, stops, definition)
        cache, logits = prefill_by_layer(definition, where.prefill, parameters, layers, cache, chunk, counts)
        starts = stops
    stacked, expected = prefill_all(definition, parameters, documents)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    for part, whole_part in zip(jax.tree.leaves(cache)[4 * 2 :], jax.tree.leaves(stacked)[4:], strict=True):
        np.testing.assert_array_equal(part, whole_part)
    apart = generate(
        definition,
        where.decode,
        parameters,
        cache,
        logits,
        keys,
        sampling(),
        jnp.int32(6),
        layers,
        slots=8,
        greedy=True,
    )
    together = generate(
        definition, ONE_TOKEN, parameters, stacked, expected, keys, sampling(), jnp.int32(6), slots=8, greedy=True
    )
    np.testing.assert_array_equal(apart.lengths, [6] * 3)
    np.testing.assert_array_equal(apart.tokens, together.tokens)
    np.testing.assert_array_equal(apart.cache.length, together.cache.length)
    for part, stacks in zip((apart.cache.k, apart.cache.v), (together.cache.k, together.cache.v), strict=True):
        for row, (patches, text) in enumerate(np.asarray(together.cache.length)):
            for region, count in enumerate((patches, text)):
                own = jnp.stack(part[region])[:, row, :, :count]
                np.testing.assert_allclose(own, stacks[region][:, row, :, :count], atol=1e-4)


def test_layers_of_their_own_share_the_memory_of_the_stack() -> None:
    stack = jnp.zeros((3, 16, 32))
    layers = split_layers({"layers/ffn/up": stack, "head": stack}, jax.devices()[0])
    assert [list(each) for each in layers] == [["ffn/up"]] * 3
    start = stack.unsafe_buffer_pointer()
    places = [each["ffn/up"].unsafe_buffer_pointer() - start for each in layers]
    assert places == [0, 16 * 32 * 4, 2 * 16 * 32 * 4]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_decoding_step_copies_no_cache_and_no_weights(rows) -> None:
    definition = make(VISUAL_FFN, "causal")
    parameters = jax.tree.map(jnp.asarray, weights(definition))
    where = generation(make_mesh(MeshConfig(), jax.devices()[:1]), definition.config)
    text = (
        generate.lower(
            definition,
            where.decode,
            parameters,
            empty_cache(definition.config, rows, *KEPT, separate_layers=True),
            jnp.zeros((rows, PADDED)),
            jax.random.split(jax.random.key(0), rows),
            sampling(),
            jnp.int32(8),
            split_layers(parameters, jax.devices()[0]),
            slots=8,
            greedy=True,
        )
        .compile()
        .as_text()
    )
    dim = definition.config.dim_per_head
    largest = rows * definition.config.kv_heads * min(KEPT) * dim
    copied = re.findall(r" = \w+\[([\d,]+)\]\S* (?:copy|dynamic-slice|slice|concatenate|transpose)\(", text)
    assert copied
    assert max(prod(map(int, shape.split(","))) for shape in copied) < min(largest, 32 * 32)


@pytest.fixture(scope="module")
def small():
    definition = make(VISUAL_FFN, "causal")
    parameters = weights(definition)
    documents = documents_of(7, (6, 3, 8))

    def write(rows=(0, 1, 2), seed: int = 0, greedy: bool = False, settings: Sampling | None = None):
        cache, logits = prefill_all(definition, parameters, [documents[row] for row in rows])
        keys = jax.random.split(jax.random.key(seed), 3)[jnp.array(rows)]
        return generate(
            definition,
            ONE_TOKEN,
            parameters,
            cache,
            logits,
            keys,
            settings or sampling(),
            jnp.int32(8),
            slots=8,
            greedy=greedy,
        )

    return write


def test_a_row_ends_at_the_stop_token_while_the_others_go_on(small) -> None:
    free = small(greedy=True)
    stop = int(free.tokens[0, 2])
    first = [list(map(int, row)).index(stop) + 1 if stop in row.tolist() else 8 for row in free.tokens]
    found = small(greedy=True, settings=sampling()._replace(stop=jnp.int32(stop)))
    assert first[0] <= 3 < max(first)
    np.testing.assert_array_equal(found.lengths, first)
    for row, length in enumerate(first):
        np.testing.assert_array_equal(found.tokens[row, :length], free.tokens[row, :length])
        np.testing.assert_array_equal(found.tokens[row, length:], stop)
    before = [int(a - b) for a, b in zip(free.cache.length[:, 1], [7, 7, 7], strict=True)]
    np.testing.assert_array_equal(found.cache.length[:, 1], np.array(before) + np.array(first) - 1)


def test_a_row_does_not_depend_on_its_neighbours(small) -> None:
    together = small(seed=4)
    others = small(rows=(1, 2, 1), seed=4)
    np.testing.assert_array_equal(others.tokens[1], together.tokens[2])
    np.testing.assert_array_equal(others.tokens[2], together.tokens[1])


def test_draws_depend_on_the_key_only(small) -> None:
    np.testing.assert_array_equal(small(seed=1).tokens, small(seed=1).tokens)
    assert (small(seed=1).tokens != small(seed=2).tokens).any()


def test_only_allowed_tokens_are_drawn(small) -> None:
    for seed in range(3):
        tokens = np.asarray(small(seed=seed, settings=sampling(STOP, temperature=50.0)).tokens)
        assert set(tokens.ravel()) <= {STOP, *range(8, VOCAB)}
        assert len(set(tokens.ravel())) > 5


def test_a_small_temperature_or_nucleus_is_greedy(small) -> None:
    greedy = small(greedy=True).tokens
    np.testing.assert_array_equal(small(settings=sampling(temperature=1e-4)).tokens, greedy)
    np.testing.assert_array_equal(small(settings=sampling(top_p=1e-9)).tokens, greedy)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    from solo.model.generate import _draw

    logits = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
    keys = jax.random.split(jax.random.key(0), 400)
    for top_p, expected in ((0.4, {1}), (0.79, {1, 3}), (0.81, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        drawn = _draw(jnp.tile(logits, (400, 1)), keys, sampling(top_p=top_p))
        assert set(np.asarray(drawn).tolist()) == expected
    flat = _draw(jnp.tile(logits, (400, 1)), keys, sampling(temperature=100.0))
    assert np.bincount(np.asarray(flat), minlength=4).min() > 70
