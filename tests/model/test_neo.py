"""NEO and NEO-unify in rows that training packs, against tensors that the published code computed (tests/goldens/neo).

`tests/interop/test_neo_golden.py` compares losses, gradients and generation on the published tensors themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import solo
from solo.batch import Batch
from solo.config import LossConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import NO_IMAGE, PATCH, Document
from solo.model.by_layer import prefill_by_layer, split_layers
from solo.model.generate import decode_token, prefill
from solo.model.kv_cache import empty_cache
from solo.model.parameters import Parameters
from solo.model.placement import Generating, Placement
from solo.training.losses import batch_loss, normalised_weights

FOLDER = Path(__file__).parents[1] / "goldens" / "neo"
SHAPE = RowShape(patch_slots=32, text_slots=120, target_slots=80)
PUBLISHED = 16  # pixels of a patch there; ours has 2 x 2 of them
TOLERANCE = 3e-5
PLACEHOLDER = {"neo_a": 151, "neo_unify_a": 201}
DOCUMENTS = ("row0", "row1", "row2")


class Golden:
    """A published tiny model, and the published results."""

    def __init__(self, name: str):
        self.name, self.expected = name, load_file(FOLDER / name / "expected.safetensors")
        model = solo.load(FOLDER / name)
        self.config, self.definition = model.config, model.definition
        self.parameters = {path: jnp.asarray(np.asarray(value)) for path, value in model.parameters.items()}

    def document(self, row: str) -> Document:
        """The document `row`, of the packed row's form if it has several."""
        ids = self.expected[f"{row}.input_ids"][0]
        is_patch = ids == PLACEHOLDER[self.name]
        begins = np.diff(is_patch.astype(int), prepend=0) > 0
        grids = self.expected.get(f"{row}.image_grid_hw", np.zeros((0, 2), int))
        values = self.expected.get(f"{row}.pixel_values", np.zeros((0, 3 * PUBLISHED**2), np.float32))
        places = [np.indices(grid // 2).reshape(2, -1).T for grid in grids]
        return Document(
            np.where(is_patch, PATCH, ids).astype(np.int32),
            self.expected[f"{row}.labels"] >= 0,
            np.where(is_patch, np.cumsum(begins) - 1, NO_IMAGE).astype(np.int32),
            merged(values, grids),
            np.concatenate([np.zeros((0, 2)), *places]).astype(np.int32),
        )

    def row(self, *rows: str) -> tuple[Batch, np.ndarray]:
        """`batch` of published documents."""
        return self.batch([self.document(row) for row in rows])

    def batch(self, documents: Sequence[Document]) -> tuple[Batch, np.ndarray]:
        """A batch of one row with these documents, and the slot of each element in reading order."""
        found = np.concatenate([document.patches for document in documents])
        pixels = np.zeros((SHAPE.patch_slots, found.shape[1]), np.float32)
        pixels[: len(found)] = found
        blank = [(replace(one, patches=np.zeros(one.patches.shape, np.uint8)), 0) for one in documents]
        row = assemble_row(blank, SHAPE, self.config.image, 0, self.config.sequence, average="document_root")
        is_patch = np.concatenate([document.tokens for document in documents]) == PATCH
        before = np.cumsum(is_patch)
        slots = np.where(is_patch, before - 1, SHAPE.patch_slots + np.arange(len(is_patch)) - before)
        return stack([row._replace(patches=pixels)]), slots


def merged(values: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Joins published patches [P, 3 * 16 * 16] to ours, [P / 4, 3 * 32 * 32], channel-major."""
    found, first, side = [np.zeros((0, 3 * (2 * PUBLISHED) ** 2), np.float32)], 0, PUBLISHED
    for rows, columns in grids:
        image = values[first : first + rows * columns].reshape(rows // 2, 2, columns // 2, 2, 3, side, side)
        found.append(image.transpose(0, 2, 4, 1, 5, 3, 6).reshape(-1, 3 * (2 * side) ** 2))
        first += rows * columns
    return np.concatenate(found)


@pytest.fixture(scope="module", params=["neo_a", "neo_unify_a"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def rows_of(golden: Golden) -> list[tuple[str, tuple[str, ...]]]:
    alone = [(row, (row,)) for row in DOCUMENTS]
    return [*alone, ("packed", DOCUMENTS)] if golden.name == "neo_a" else alone


def test_positions_and_mask(golden: Golden) -> None:
    for name, rows in rows_of(golden):
        batch, slots = golden.row(*rows)
        np.testing.assert_array_equal(batch.positions[0, slots], golden.expected[f"{name}.thw"], err_msg=name)
    if golden.name == "neo_a":
        a0, a1, a2, a3 = batch.attend[0, slots].T[..., None]
        of_patch = (slots >= a0) & (slots < a1)
        of_text = (slots - SHAPE.patch_slots >= a2) & (slots - SHAPE.patch_slots < a3)
        seen = np.where(slots < SHAPE.patch_slots, of_patch, of_text)
        np.testing.assert_array_equal(seen, golden.expected["packed.visible"])


def test_hidden_states_and_logits(golden: Golden) -> None:
    @jax.jit
    def run(parameters: Parameters, batch: Batch) -> tuple:
        model = golden.definition.bind(parameters)
        stream = model.residual_stream(batch)
        normed = model.final_norm(stream[-1])
        return [x.join() for x in (*stream, normed)], model.logits(normed.join())

    for name, rows in rows_of(golden):
        batch, slots = golden.row(*rows)
        stream, logits = run(golden.parameters, batch)
        names = [*range(golden.config.model.layers + 1), "norm"]
        for number, hidden in zip(names, stream, strict=True):
            expected = golden.expected[f"{name}.hidden_states.{number}"]
            np.testing.assert_allclose(hidden[:, slots], expected, atol=TOLERANCE, err_msg=f"{name} {number}")
        expected = golden.expected[f"{name}.logits"]
        np.testing.assert_allclose(logits[:, slots, : expected.shape[-1]], expected, atol=TOLERANCE)


def test_the_published_weights_of_documents(golden: Golden) -> None:
    """A document's n targets have weight 1 / sqrt(n) each; alone, that is their mean."""
    config = LossConfig(average="document_root")

    @jax.jit
    def run(parameters: Parameters, batch: Batch) -> jax.Array:
        weighted = batch._replace(target_weights=normalised_weights(jnp.asarray(batch.target_weights), config))
        return batch_loss(golden.definition, Placement(), parameters, weighted, config)[0]

    for name, rows in rows_of(golden):
        loss = run(golden.parameters, golden.row(*rows)[0])
        assert loss == pytest.approx(float(golden.expected[f"{name}.loss"][0]), abs=1e-5), name


@pytest.mark.parametrize("separate", [False, True], ids=["layers in one stack", "an array for each layer"])
def test_greedy_continuations(golden: Golden, separate: bool) -> None:
    definition, parameters = golden.definition, golden.parameters
    layers = split_layers(parameters, jax.devices()[0]) if separate else None
    where = Generating()
    for number in range(3):
        prompt = golden.document(f"row{number}").chunk(0, golden.expected[f"generate{number}.prompt_ids"].shape[1])
        chunk, slots = golden.batch([prompt])
        np.testing.assert_array_equal(chunk.positions[0, slots], golden.expected[f"generate{number}.thw"])
        patches = int((prompt.tokens == PATCH).sum())
        counts = np.array([[patches, len(prompt.tokens) - patches]], np.int32)
        cache = empty_cache(definition.config, 1, 32, 128, separate_layers=separate)
        if layers is None:
            cache, logits = prefill(definition, where.prefill, parameters, cache, chunk, counts)
        else:
            cache, logits = prefill_by_layer(definition, where.prefill, parameters, layers, cache, chunk, counts)
        expected, tokens = (golden.expected[f"generate{number}.{name}"] for name in ("logits", "new_ids"))
        vocab = expected.shape[-1]
        np.testing.assert_allclose(logits[0, :vocab], expected[0], atol=TOLERANCE)
        assert logits.argmax() == tokens[0, 0]
        for token, following in zip(tokens[0], expected[1:], strict=False):
            token_B = jnp.asarray([token], jnp.int32)
            cache, logits = decode_token(definition, where.decode, parameters, cache, token_B, layers)
            np.testing.assert_allclose(logits[0, :vocab], following, atol=TOLERANCE)
        np.testing.assert_array_equal(tokens[0], expected.argmax(axis=-1))
