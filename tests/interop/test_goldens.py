"""The published code of Mono-InternVL on a tiny model (tests/goldens), against ours on the same files."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import MeshConfig, parse_config
from solo.interop.layouts.mono_internvl import MONO_INTERNVL
from solo.interop.tensor_reader import TensorReader
from solo.interop.weights import load_parameters, read_config_json, tensor_of
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh

GOLDEN = Path(__file__).parents[1] / "goldens" / "mono_internvl_tiny"
PLACEHOLDER = 127
# Float32 sums in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def cut(tile, side):
    """A tile [3, h, w] into patches, row by row, each (C, y, x)."""
    channels, height, width = tile.shape
    cut = tile.reshape(channels, height // side, side, width // side, side).transpose(1, 3, 0, 2, 4)
    return cut.reshape(-1, channels * side * side)


def batch_of(expected, side):
    """The golden's rows in our form, and for each slot in reading order where it stands in ours."""
    ids, mask = expected["input_ids"], expected["attention_mask"].astype(bool)
    visual = ids == PLACEHOLDER
    patches, text = int(visual.sum(axis=1).max()), int((mask & ~visual).sum(axis=1).max())
    rows, length = ids.shape
    tiles = [cut(tile, side) for tile in expected["pixel_values"][expected["image_flags"][:, 0] == 1]]
    batch = Batch(
        patches=np.zeros((rows, patches, 3 * side * side), np.float32),
        patch_grid=np.zeros((rows, patches, 2), np.int32),
        text=np.full((rows, text), 2, np.int32),
        positions=np.zeros((rows, patches + text), np.int32),
        attend=np.zeros((rows, patches + text, 4), np.int32),
        target_slots=np.zeros((rows, 1), np.int32),
        target_ids=np.zeros((rows, 1), np.int32),
        target_weights=np.zeros((rows, 1), np.float32),
        target_source=np.zeros((rows, 1), np.int32),
    )
    slots = np.full((rows, length), -1)
    batch.patches[0] = np.concatenate(tiles)
    batch.patch_grid[0] = [(place // 2 % 2, place % 2) for place in range(patches)]
    for row in range(rows):
        seen = {True: 0, False: 0}
        for place in np.flatnonzero(mask[row]):
            is_visual = bool(visual[row, place])
            slot = seen[is_visual] + (0 if is_visual else patches)
            if not is_visual:
                batch.text[row, seen[False]] = ids[row, place]
            seen[is_visual] += 1
            slots[row, place] = slot
            batch.positions[row, slot] = expected["position_ids"][row, place]
            batch.attend[row, slot] = (0, seen[True], 0, seen[False])
    return batch, slots


@pytest.fixture(scope="module")
def golden():
    with TensorReader(GOLDEN / "expected.safetensors") as reader:
        expected = {name: reader.read(name) for name in reader}
    sections = MONO_INTERNVL.config_from(read_config_json(GOLDEN))
    config = parse_config({"name": "golden", **json.loads(json.dumps(sections))})
    definition = ModelDefinition(config.model, config.image, config.model.vocab_size)
    return expected, definition, load_parameters(GOLDEN, definition, make_mesh(MeshConfig(), jax.devices()[:1]))


def test_vision_features(golden):
    expected, definition, parameters = golden
    tiles = np.stack([cut(tile, definition.image.patch_size) for tile in expected["pixel_values"]])
    grid = np.tile(np.array([(0, 0), (0, 1), (1, 0), (1, 1)], np.int32), (len(tiles), 1, 1))
    features = jax.jit(lambda p: definition.bind(p).patch_embed(tiles, grid))(parameters)
    np.testing.assert_allclose(features, expected["vision_features"], **TOLERANCE)


def test_logits_loss_and_every_gradient(golden):
    expected, definition, parameters = golden
    batch, slots = batch_of(expected, definition.image.patch_size)
    rows, places = np.nonzero((expected["labels"][:, 1:] != -100) & (slots[:, :-1] >= 0))
    targets = expected["labels"][:, 1:][rows, places]

    def loss(parameters, batch):
        model = definition.bind(parameters)
        hidden = model.hidden(batch).hidden.join()
        logits = model.logits(hidden)[..., : definition.vocab_size]
        chosen = jax.nn.log_softmax(logits[rows, slots[rows, places]])[jnp.arange(len(targets)), targets]
        return -chosen.mean(), (hidden, logits)

    (value, (hidden, logits)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters, batch)
    read = slots >= 0
    where = np.nonzero(read)[0], slots[read]
    assert read.sum() > 30
    np.testing.assert_allclose(np.asarray(hidden)[where], expected["hidden_states.2"][read], **TOLERANCE)
    np.testing.assert_allclose(np.asarray(logits)[where], expected["logits"][read], **TOLERANCE)
    np.testing.assert_allclose(value, expected["loss"][0], **TOLERANCE)
    for rule in MONO_INTERNVL.tensors(definition):
        found = tensor_of(rule, grads, np.float32)
        np.testing.assert_allclose(found, expected[f"grad.{rule.name}"], err_msg=rule.name, **TOLERANCE)
