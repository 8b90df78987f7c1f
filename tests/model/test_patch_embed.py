"""Patch embedders against PyTorch's convolutions, norms and interpolation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from solo.batch import BEGIN_MARKER, ROW_MARKER
from solo.config import ImageConfig, ModelConfig, PatchEmbedConfig
from solo.model.parameters import ModelDefinition
from solo.model.patch_embed import bicubic_weights

NEO = Path(__file__).parents[1] / "goldens/neo/neo_a"
torch = pytest.importorskip("torch")


def definition(image: ImageConfig, **embed) -> ModelDefinition:
    sizes = {"width": 12, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 8, "init_std": 0.3}
    return ModelDefinition(ModelConfig(patch_embed=PatchEmbedConfig(**embed), **sizes), image, 20)


def random_parameters(model: ModelDefinition) -> dict:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=spec.shape).astype(np.float32) for path, spec in model.specs.items()}


def tensor(array) -> "torch.Tensor":
    return torch.tensor(np.asarray(array))


def conv(x, parameters, size: int):
    kernel = tensor(parameters["patch_embed/inner/kernel"]).T.reshape(-1, 3, size, size)
    return torch.nn.functional.conv2d(x, kernel, tensor(parameters["patch_embed/inner/bias"]), stride=size)


def cut(pixels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """[3, H, W] to patches [1, P, side*side*3] in raster order and their grid [1, P, 2], by plain slicing."""
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    places = [(row, column) for row in range(rows) for column in range(columns)]
    patches = [pixels[:, r * side : (r + 1) * side, c * side : (c + 1) * side].reshape(-1) for r, c in places]
    return np.stack(patches)[None], np.asarray(places, np.int32)[None]


def embed(model: ModelDefinition, parameters: dict, patches, grid) -> np.ndarray:
    return np.asarray(model.bind(parameters).embed(patches, grid, jnp.zeros((1, 1), jnp.int32)).patches[0])


def test_conv_is_two_convolutions_with_gelu_between() -> None:
    image = ImageConfig(patch_size=8, max_side=64, row_token=None, markers=True)
    model = definition(image, kind="conv", inner_size=4, inner_width=5)
    parameters = random_parameters(model)
    pixels = np.random.default_rng(1).normal(size=(3, 16, 24)).astype(np.float32)
    patches, grid = cut(pixels, 8)
    merge = tensor(parameters["patch_embed/merge/kernel"]).reshape(2, 2, 5, 12).permute(3, 2, 0, 1)
    x = torch.nn.functional.gelu(conv(tensor(pixels)[None], parameters, 4))
    x = torch.nn.functional.conv2d(x, merge, tensor(parameters["patch_embed/merge/bias"]), stride=2)
    expected = x[0].permute(1, 2, 0).reshape(-1, 12).numpy()
    np.testing.assert_allclose(embed(model, parameters, patches, grid), expected, atol=1e-4)
    marked = grid.copy()
    marked[0, 1], marked[0, 4] = BEGIN_MARKER, ROW_MARKER
    expected[1], expected[4] = parameters["patch_embed/begin_marker"], parameters["patch_embed/row_marker"]
    np.testing.assert_allclose(embed(model, parameters, patches, marked), expected, atol=1e-4)


@pytest.mark.parametrize("row", ["row0", "row2", "packed"])
def test_conv_with_rotation_is_the_embedder_of_neo(row) -> None:
    """Random weights and outputs of NEO's published code; see tests/goldens/README.md."""
    weights = load_file(NEO / "model.safetensors")
    golden = load_file(NEO / "expected.safetensors")
    inner, merge = (weights[f"vision_model.embeddings.{name}_embedding.weight"] for name in ("patch", "dense"))
    image = ImageConfig(geometry="area", patch_size=32, row_token=None)
    model = definition(image, kind="conv", inner_size=16, inner_width=32, rotation_theta=1e4)
    parameters = random_parameters(model) | {
        "patch_embed/inner/kernel": inner.reshape(32, -1).T,
        "patch_embed/inner/bias": weights["vision_model.embeddings.patch_embedding.bias"],
        "patch_embed/merge/kernel": merge.transpose(2, 3, 1, 0).reshape(-1, 64),
        "patch_embed/merge/bias": weights["vision_model.embeddings.dense_embedding.bias"],
    }
    pixels = [golden[f"{each}.pixel_values"] for each in ([row] if row != "packed" else ["row0", "row2"])]
    pixels, patches, grid, before = np.concatenate(pixels), [], [], 0
    for rows, columns in golden[f"{row}.image_grid_hw"]:
        fine = pixels[before : before + rows * columns].reshape(rows, columns, 3, 16, 16)
        of_image = cut(fine.transpose(2, 0, 3, 1, 4).reshape(3, rows * 16, columns * 16), 32)
        patches.append(of_image[0])
        grid.append(of_image[1])
        before += rows * columns
    embedded = embed(model, parameters, np.concatenate(patches, axis=1), np.concatenate(grid, axis=1))
    np.testing.assert_allclose(embedded, golden[f"{row}.vision_features"], atol=1e-5)


def test_places_of_a_rotation_are_those_of_the_image_and_not_of_the_row() -> None:
    image = ImageConfig(patch_size=8, max_side=64, row_token=None)
    model = definition(image, kind="conv", inner_size=4, inner_width=8, rotation_theta=100.0)
    parameters = random_parameters(model)
    one = np.random.default_rng(5).normal(size=(1, 4, 192)).astype(np.float32)
    grid = np.asarray([[[0, 0], [0, 1], [1, 0], [1, 1]]], np.int32)
    alone = embed(model, parameters, one, grid)
    packed = embed(model, parameters, np.concatenate([one, one], axis=1), np.concatenate([grid, grid], axis=1))
    np.testing.assert_allclose(packed, np.concatenate([alone, alone]), atol=1e-6)
    moved = embed(model, parameters, one, grid + np.array([0, 1]))
    assert (np.abs(moved - alone).max(axis=1) > 0.1).all()


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        ({"kind": "linear"}, "belongs to the kind conv"),
        ({"kind": "conv", "inner_size": 4, "inner_width": 6}, "inner_width 6 must be a multiple of 4"),
    ],
)
def test_a_rotation_that_does_not_fit_is_refused(embed, message) -> None:
    with pytest.raises(ValueError, match=message):
        PatchEmbedConfig(rotation_theta=1e4, **embed)


@pytest.mark.parametrize(("side", "class_slot"), [(32, True), (32, False), (48, True), (16, True)])
def test_grid_is_convolution_positions_shuffle_and_mlp(side, class_slot) -> None:
    """Mono-InternVL's embedder. For a tile of another size the table is resampled as PyTorch does."""
    image = ImageConfig(geometry="tiles", patch_size=8, tile_size=side)
    model = definition(image, kind="grid", inner_size=4, inner_width=5, grid_side=8, class_slot=class_slot)
    parameters = random_parameters(model)
    pixels = np.random.default_rng(2).normal(size=(3, side, side)).astype(np.float32)
    patches, grid = cut(pixels, 8)
    inner = side // 4
    table = tensor(parameters["patch_embed/positions"])[int(class_slot) :].reshape(1, 8, 8, 5).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(inner, inner), mode="bicubic", align_corners=False)
    x = (conv(tensor(pixels)[None], parameters, 4) + table)[0].permute(1, 2, 0)
    tokens = [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(-1) for i in range(inner // 2) for j in range(inner // 2)]
    scale, bias = (tensor(parameters[f"patch_embed/norm/{name}"]) for name in ("scale", "bias"))
    y = torch.nn.functional.layer_norm(torch.stack(tokens), (20,), scale, bias, 1e-5)
    for name, last in (("hidden", False), ("out", True)):
        y = y @ tensor(parameters[f"patch_embed/{name}/kernel"]) + tensor(parameters[f"patch_embed/{name}/bias"])
        y = y if last else torch.nn.functional.gelu(y)
    np.testing.assert_allclose(embed(model, parameters, patches, grid), y.numpy(), atol=2e-4)


def test_a_class_slot_has_no_gradient() -> None:
    image = ImageConfig(geometry="tiles", patch_size=8, tile_size=32)
    model = definition(image, kind="grid", inner_size=4, inner_width=5, grid_side=8, class_slot=True)
    parameters = random_parameters(model)
    patches, grid = cut(np.random.default_rng(3).normal(size=(3, 32, 32)).astype(np.float32), 8)
    grads = jax.grad(lambda p: jnp.sin(model.bind(p).embed(patches, grid, jnp.zeros((1, 1), int)).patches).sum())(
        {path: jnp.asarray(value) for path, value in parameters.items()}
    )
    assert not grads["patch_embed/class_token"].any()
    assert not grads["patch_embed/positions"][0].any()
    assert grads["patch_embed/positions"][1:].all()


@pytest.mark.parametrize("sizes", [(4, 4), (4, 7), (7, 4), (32, 24)])
def test_bicubic_weights_equal_those_of_pytorch(sizes) -> None:
    source, target = sizes
    x = np.random.default_rng(4).normal(size=(1, 1, source, source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(tensor(x), size=(target, target), mode="bicubic", align_corners=False)
    weights = bicubic_weights(source, target)
    np.testing.assert_allclose(weights @ x[0, 0] @ weights.T, expected[0, 0].numpy(), atol=2e-5)


def test_pixels_are_normalised_once_and_optionally_in_half_precision() -> None:
    image = ImageConfig(patch_size=4, max_side=64)
    raw = np.repeat(np.arange(256, dtype=np.uint8), 3 * 16).reshape(1, 256, 48)  # every value in every channel
    channels = torch.tensor(raw).reshape(1, 256, 3, 16).float().div(255)
    mean, std = (torch.tensor(values).reshape(1, 1, 3, 1) for values in (image.mean, image.std))
    expected = channels.sub(mean).div(std).reshape(raw.shape)
    model = definition(image).bind(random_parameters(definition(image)))
    ours = model.normalise(jnp.asarray(raw))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_array_equal(model.normalise(ours), ours)
    halved = definition(image.model_copy(update={"stored_as_float16": True}))
    stored = halved.bind(random_parameters(halved)).normalise(jnp.asarray(raw))
    np.testing.assert_array_equal(stored, np.asarray(ours).astype(np.float16).astype(np.float32))
    assert (np.asarray(stored) != np.asarray(ours)).any()
    reference = expected.half().float().bfloat16().float().numpy()
    np.testing.assert_array_equal(stored.astype(jnp.bfloat16).astype(jnp.float32), reference)
