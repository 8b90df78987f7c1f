"""The modality integration rate against a plain restatement of its definition, on one device and on a mesh."""

import jax
import numpy as np
import pytest
from scipy.linalg import sqrtm

from solo.config import ConfigError, MeshConfig
from solo.config.evaluators import IntegrationRateConfig
from solo.data.record import Record, Turn, encode_png
from solo.evaluation.integration_rate import integration_rate
from solo.inference.monolith import Monolith
from solo.inference.prompt import encode_prompt, row_of, slots
from solo.sharding.mesh import make_mesh
from tests.evaluation.test_tasks import Source
from tests.tiny import picture, tiny_config, tiny_monolith

WORDS = [
    "what",
    "is",
    "this",
    "a",
    "red",
    "circle",
    "left",
    "of",
    "the",
    "blue",
    "square",
    "above",
    "which",
    "digit",
    "is",
    "right",
    "how",
    "of",
    "this",
    "colour",
]


def records(count: int) -> Source:
    """Records of two sizes of image and different texts; every third has no image."""
    found = []
    for number in range(count):
        image = encode_png(picture(24 + 8 * (number % 2), 40, number))
        turns = (
            Turn("user", (image, " ".join(WORDS[number % 7 :]))) if number % 3 else Turn("user", ("which",)),
            Turn("assistant", (" ".join(WORDS[: 5 + number % 9]),)),
        )
        found.append(Record(f"r{number}", turns))
    return Source(found)


SOURCES = {"pairs": records(12)}


def settings(**keys) -> IntegrationRateConfig:
    return IntegrationRateConfig(source="pairs", **keys)


def restated(model: Monolith, source: Source) -> list[float]:
    """The definition, over all tokens of all documents with an image, each computed alone and on one device."""
    special, layers = model.tokenizer.special_ids, model.definition.config.layers
    stream = jax.jit(lambda batch: model.definition.bind(model.parameters).residual_stream(batch)[1:])
    visual, text = [[] for _ in range(layers)], [[] for _ in range(layers)]
    for record in source.records:
        document = encode_prompt(model.runs(record.turns), model.tokenizer, model.config.image, "")
        if not len(document.patches):
            continue
        (patches, length), room = slots(document), (24, 64)
        row = row_of(document, room, model.config.image, 0, sequence=model.config.sequence)
        is_word = [token not in special for token in row.text[:length].tolist()]
        for layer, states in enumerate(stream(jax.tree.map(lambda part: part[None], row))):
            visual[layer] += list(np.asarray(states.patches[0, :patches], np.float64))
            text[layer] += list(np.asarray(states.text[0, :length], np.float64)[is_word])
    found = []
    for layer in range(layers):
        scale = np.mean([np.sqrt(np.sum(x**2)) for x in text[layer]])
        kept = []
        for states in (visual[layer], text[layer]):
            states = np.stack(states) / scale
            lengths = np.sqrt((states**2).sum(1))
            kept.append(states[abs(lengths - lengths.mean()) <= 3 * lengths.std()])
        a, b = (np.cov(states, rowvar=False) for states in kept)
        shift = kept[0].mean(0) - kept[1].mean(0)
        found.append(float(shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)))
    return found


@pytest.fixture(scope="module")
def model(tiny_tokenizer) -> Monolith:
    return tiny_monolith(tiny_tokenizer)


def test_it_is_the_definition(model) -> None:
    done = []
    found = integration_rate(
        model, "rate", settings(batch_rows=3), model.config, SOURCES, lambda *counts: done.append(counts)
    )
    expected = restated(model, SOURCES["pairs"])
    np.testing.assert_allclose(found.by_layer, expected, rtol=1e-4)
    assert found.rate == pytest.approx(np.log10(sum(expected)), rel=1e-5)
    assert found.visual_tokens == sum(15 + 5 * (number % 2) for number in range(12) if number % 3)
    assert found.text_tokens > 60
    assert done == [(3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_a_mesh_measures_the_same(model, tiny_tokenizer, sizes) -> None:
    mesh = make_mesh(MeshConfig(**sizes))
    spread = Monolith(model.config, tiny_tokenizer, jax.device_get(model.parameters), mesh)
    few = settings(documents=5, tokens=40)
    alone = integration_rate(model, "rate", few, model.config, SOURCES)
    found = integration_rate(spread, "rate", few, model.config, SOURCES)
    np.testing.assert_allclose(found.by_layer, alone.by_layer, rtol=1e-4)
    assert found[2:] == alone[2:]
    assert found.visual_tokens == 5 * 8
    assert found.text_tokens <= 5 * 8


def test_states_that_are_not_finite_give_no_rate(model) -> None:
    parameters = dict(model.parameters)
    parameters["layers/ffn/patches/down"] = parameters["layers/ffn/patches/down"].at[1].set(np.inf)
    found = integration_rate(model.with_parameters(parameters), "rate", settings(), model.config, SOURCES)
    assert found.rate is None
    assert found.by_layer[1] is None
    assert found.by_layer[0] > 0


def test_a_source_without_images_or_text_is_refused(model) -> None:
    texts = Source([record for record in SOURCES["pairs"].records if not record.images()])
    with pytest.raises(ConfigError, match="'rate': source 'pairs' has no record with an image and text that fits"):
        integration_rate(model, "rate", settings(), model.config, {"pairs": texts})
    short = tiny_config(stages=[{**model.config.stages[0].model_dump(mode="json"), "row_slots": 16}])
    with pytest.raises(ConfigError, match="no record with an image and text that fits a row of the last stage"):
        integration_rate(model, "rate", settings(), short, SOURCES)
    images = Source([Record("r", (Turn("text", (encode_png(picture(16, 16, 0)),)),))])
    with pytest.raises(ConfigError, match="has no text besides special tokens"):
        integration_rate(model, "rate", settings(), model.config, {"pairs": images})
    with pytest.raises(ConfigError, match="source 'pairs' is not prepared"):
        integration_rate(model, "rate", settings(), model.config, {})
