"""NEO and NEO-unify against tensors that the published code computed for tiny models (tests/goldens/neo)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from solo.batch import Batch
from solo.config import Average, Config, LossConfig, parse_config
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import NO_IMAGE, PATCH, Document
from solo.model.by_layer import prefill_by_layer, split_layers
from solo.model.generate import decode_token, prefill
from solo.model.kv_cache import empty_cache
from solo.model.parameters import ModelDefinition, Parameters
from solo.model.placement import Generating, Placement
from solo.training.losses import batch_loss, normalised_weights

FOLDER = Path(__file__).parents[1] / "goldens" / "neo"
SHAPE = RowShape(patch_slots=32, text_slots=120, target_slots=80)
PUBLISHED = 16  # pixels of a patch there; ours has 2 x 2 of them
TOLERANCE = 3e-5
PLACEHOLDER = {"neo_a": 151, "neo_unify_a": 201}
PARTS = {
    "neo_a": [
        {"axis": "time", "width": 16},
        {"axis": "row", "width": 8, "theta": 1e4, "projection": "grid"},
        {"axis": "column", "width": 8, "theta": 1e4, "projection": "grid"},
    ],
    "neo_unify_a": [
        {"axis": "time", "width": 16},
        {"axis": "row", "width": 8, "theta": 1e4, "norm": "grid"},
        {"axis": "column", "width": 8, "theta": 1e4, "norm": "grid"},
    ],
}


class Golden:
    """A published tiny model: its config and parameters in our form, and the published results."""

    def __init__(self, name: str):
        self.name, self.expected = name, load_file(FOLDER / name / "expected.safetensors")
        self.config = config_of(name)
        self.definition = ModelDefinition(self.config.model, self.config.image, self.config.model.vocab_size or 0)
        self.parameters = ours(load_file(FOLDER / name / "model.safetensors"), self.config)

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

    def batch(self, documents: Sequence[Document], average: Average = "token") -> tuple[Batch, np.ndarray]:
        """A batch of one row with these documents, and the slot of each element in reading order."""
        found = np.concatenate([document.patches for document in documents])
        pixels = np.zeros((SHAPE.patch_slots, found.shape[1]), np.float32)
        pixels[: len(found)] = found
        blank = [(replace(one, patches=np.zeros(one.patches.shape, np.uint8)), 0) for one in documents]
        row = assemble_row(blank, SHAPE, self.config.image, 0, self.config.sequence, average=average)
        is_patch = np.concatenate([document.tokens for document in documents]) == PATCH
        before = np.cumsum(is_patch)
        slots = np.where(is_patch, before - 1, SHAPE.patch_slots + np.arange(len(is_patch)) - before)
        return stack([row._replace(patches=pixels)]), slots

    def row(self, *rows: str, average: Average = "document_root") -> tuple[Batch, np.ndarray]:
        """`batch` of published documents."""
        return self.batch([self.document(row) for row in rows], average)


def config_of(name: str, **switches: Any) -> Config:
    """Our config of a published config.json; `switches` override keys of the model."""
    llm = json.loads((FOLDER / name / "config.json").read_text())["llm_config"]
    model = {
        "vocab_size": llm["vocab_size"], "vocab_multiple": 1, "width": llm["hidden_size"],
        "layers": llm["num_hidden_layers"], "heads": llm["num_attention_heads"],
        "kv_heads": llm["num_key_value_heads"], "head_dim": llm["head_dim"], "ffn_width": llm["intermediate_size"],
        "norm_eps": llm["rms_norm_eps"], "qk_norm": "rms", "rope_theta": llm["rope_theta"], "head_parts": PARTS[name],
        "patch_embed": {"kind": "conv", "inner_size": PUBLISHED, "inner_width": 32, "rotation_theta": 1e4},
        "attention_implementation": "dense",
    }  # fmt: skip
    image = {"patch_size": 2 * PUBLISHED, "max_side": 1024, "mask": "bidirectional", "row_token": None}
    return parse_config(
        {"name": name, "model": model | switches, "image": image, "sequence": {"positions": "separate"}}
    )


def merged(values: np.ndarray, grids: np.ndarray) -> np.ndarray:
    """Joins published patches [P, 3 * 16 * 16] to ours, [P / 4, 3 * 32 * 32], channel-major."""
    found, first, side = [np.zeros((0, 3 * (2 * PUBLISHED) ** 2), np.float32)], 0, PUBLISHED
    for rows, columns in grids:
        image = values[first : first + rows * columns].reshape(rows // 2, 2, columns // 2, 2, 3, side, side)
        found.append(image.transpose(0, 2, 4, 1, 5, 3, 6).reshape(-1, 3 * (2 * side) ** 2))
        first += rows * columns
    return np.concatenate(found)


def ours(theirs: dict[str, np.ndarray], config: Config) -> Parameters:
    """Maps published tensors, or their gradients, to our parameters."""
    model, language, vision = config.model, "language_model.model.", "vision_model.embeddings."

    def stacked(name: str, shape: tuple[int, ...] = (), axes: tuple[int, ...] = ()) -> np.ndarray:
        found = [theirs[f"{language}layers.{number}.{name}.weight"] for number in range(model.layers)]
        return np.stack([each.reshape(shape or each.shape).transpose(axes or None) for each in found])

    def projection(name: str, heads: int) -> np.ndarray:
        return stacked(f"self_attn.{name}", (heads, -1, model.width), (2, 0, 1))

    heads, kv_heads = model.heads, model.kv_heads
    found = {
        "text_embed": theirs[f"{language}embed_tokens.weight"],
        "head": theirs["language_model.lm_head.weight"].T,
        "final_norm/scale": theirs[f"{language}norm.weight"],
        "patch_embed/inner/kernel": theirs[f"{vision}patch_embedding.weight"].reshape(32, -1).T,
        "patch_embed/inner/bias": theirs[f"{vision}patch_embedding.bias"],
        "patch_embed/merge/kernel": theirs[f"{vision}dense_embedding.weight"]
        .transpose(2, 3, 1, 0)
        .reshape(-1, model.width),
        "patch_embed/merge/bias": theirs[f"{vision}dense_embedding.bias"],
        "layers/attention_norm/shared/scale": stacked("input_layernorm"),
        "layers/ffn_norm/shared/scale": stacked("post_attention_layernorm"),
        "layers/qkv/shared/q": projection("q_proj", heads),
        "layers/qkv/shared/k": projection("k_proj", kv_heads),
        "layers/qkv/shared/v": projection("v_proj", kv_heads),
        "layers/out/shared/kernel": stacked("self_attn.o_proj", (model.width, heads, -1), (1, 2, 0)),
        "layers/ffn/shared/gate": stacked("mlp.gate_proj", axes=(1, 0)),
        "layers/ffn/shared/up": stacked("mlp.up_proj", axes=(1, 0)),
        "layers/ffn/shared/down": stacked("mlp.down_proj", axes=(1, 0)),
    }
    norms = {"": "", "_grid": "_hw"}
    if model.dim_per_grid:
        found["layers/qkv/shared/q_grid"] = projection("q_proj_hw", heads)
        found["layers/qkv/shared/k_grid"] = projection("k_proj_hw", kv_heads)
        norms = {"": "", "_row": "_h", "_column": "_w"}
    for own, name in norms.items():
        for letter in "qk":
            found[f"layers/qkv/shared/{letter}_norm{own}/scale"] = stacked(f"self_attn.{letter}_norm{name}")
    return {path: jnp.asarray(value) for path, value in sorted(found.items())}


@pytest.fixture(scope="module", params=["neo_a", "neo_unify_a"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def neo() -> Golden:
    return Golden("neo_a")


def test_every_parameter_is_mapped(golden: Golden) -> None:
    specs = golden.definition.specs
    assert {path: value.shape for path, value in golden.parameters.items()} == {
        path: spec.shape for path, spec in specs.items()
    }


def rows_of(golden: Golden) -> list[tuple[str, tuple[str, ...]]]:
    alone = [(row, (row,)) for row in ("row0", "row1", "row2")]
    return [*alone, ("packed", ("row0", "row1", "row2"))] if golden.name == "neo_a" else alone


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
        np.testing.assert_allclose(logits[:, slots], golden.expected[f"{name}.logits"], atol=TOLERANCE)


def loss_of(golden: Golden, loss: LossConfig, implementation: str = "dense", **switches: Any) -> Any:
    """(parameters, batch) -> (loss, gradients)."""
    model = golden.config.model.model_copy(update={"attention_implementation": implementation, **switches})
    definition = ModelDefinition(model, golden.config.image, golden.definition.vocab_size)

    def mean(parameters: Parameters, batch: Batch) -> jax.Array:
        weighted = batch._replace(target_weights=normalised_weights(jnp.asarray(batch.target_weights), loss))
        return batch_loss(definition, Placement(), parameters, weighted, loss)[0]

    return jax.jit(jax.value_and_grad(mean))


def assert_gradients(golden: Golden, found: Parameters, prefix: str) -> None:
    wanted = {name.removeprefix(prefix): value for name, value in golden.expected.items() if name.startswith(prefix)}
    expected = ours(wanted, golden.config)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        largest = float(np.abs(gradient).max())
        np.testing.assert_allclose(found[path], gradient, rtol=0, atol=2e-5 * largest, err_msg=path)


def test_loss_and_every_gradient(golden: Golden) -> None:
    """Packed with the published weights of documents, and the mean over all supervised tokens."""
    if golden.name == "neo_a":
        batch, _ = golden.row("row0", "row1", "row2")
        loss, gradients = loss_of(golden, LossConfig(average="document_root"))(golden.parameters, batch)
        assert loss == pytest.approx(float(golden.expected["loss"][0]), abs=1e-5)
        assert_gradients(golden, gradients, "grad.")
        batches = [golden.row("row0", "row1", "row2", average="token")[0]]
    else:
        batches = [golden.row(row, average="token")[0] for row in ("row0", "row1", "row2")]
    together = Batch(*(np.concatenate(fields) for fields in zip(*batches, strict=True)))
    loss, gradients = loss_of(golden, LossConfig())(golden.parameters, together)
    assert loss == pytest.approx(float(golden.expected["loss_token"][0]), abs=1e-5)
    assert_gradients(golden, gradients, "grad_token.")


def test_the_loss_of_a_document_alone(golden: Golden) -> None:
    run = loss_of(golden, LossConfig(average="document_root"))
    for row in ("row0", "row1", "row2"):
        loss, _ = run(golden.parameters, golden.row(row)[0])
        assert loss == pytest.approx(float(golden.expected[f"{row}.loss"][0]), abs=1e-5), row


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
        np.testing.assert_allclose(logits, expected[:1], atol=TOLERANCE)
        assert logits.argmax() == tokens[0, 0]
        for token, following in zip(tokens[0], expected[1:], strict=False):
            token_B = jnp.asarray([token], jnp.int32)
            cache, logits = decode_token(definition, where.decode, parameters, cache, token_B, layers)
            np.testing.assert_allclose(logits[0], following, atol=TOLERANCE)
        np.testing.assert_array_equal(tokens[0], expected.argmax(axis=-1))
