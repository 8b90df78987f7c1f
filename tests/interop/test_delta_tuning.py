"""Mono-InternVL's delta tuning: each stage changes exactly the components that its recipe names."""

import fnmatch
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import solo
from solo.config import MeshConfig, SafetyConfig, StageConfig
from solo.interop.importing import import_repository
from solo.sharding.mesh import make_mesh
from solo.training.step import make_stage
from tests.interop.models import upcycled
from tests.interop.repositories import save

RECIPE = yaml.safe_load(Path("configs/recipes/mono_internvl_2b_pretrain.yaml").read_text())
# What each stage freezes according to the paper (arXiv 2410.08202, table 1), not to the globs of the recipe.
ALL_BUT_PATCHES = ["text_embed", "head", "final_norm/*", "*_norm/*", "layers/ffn/text/*"]
FROZEN = {
    "concepts": [*ALL_BUT_PATCHES, "layers/qkv/*", "layers/out/*"],
    "semantics": [*ALL_BUT_PATCHES, "layers/qkv/*", "layers/out/*"],
    "alignment": ALL_BUT_PATCHES,
    "instructions": [],
}
# The class token of the published weights is unused.
UNUSED = ["patch_embed/class_token"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Upcycled from a tiny InternLM2."""
    folder = tmp_path_factory.mktemp("upcycled")
    save(folder / "internlm2", "internlm2")
    import_repository(folder / "internlm2", upcycled("internlm2"), folder / "start")
    return solo.load(folder / "start", make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def batch(model):
    """Returns two rows: two tiles with an answer, and text alone."""
    rng, side = np.random.default_rng(0), model.config.image.tile_size
    tokens = (side // model.config.image.patch_size) ** 2
    ids = rng.integers(3, 90, (2, 2 * tokens + 8))
    ids[0, 2 : 2 + 2 * tokens] = model.placeholder_id
    labels = np.where(ids == model.placeholder_id, -100, ids)
    tiles = rng.normal(size=(2, 3, side, side)).astype(np.float32)
    return model.batch(input_ids=ids, labels=labels, pixel_values=tiles).batch


def test_stages_of_the_recipe() -> None:
    assert [stage["name"] for stage in RECIPE["stages"]] == list(FROZEN)
    assert [stage["image"]["max_tiles"] for stage in RECIPE["stages"]] == [4, 6, 12, 24]


def test_experts_of_an_upcycled_model_start_as_copies(model) -> None:
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal(
            model.parameters[f"layers/ffn/patches/{name}"], model.parameters[f"layers/ffn/text/{name}"]
        )


@pytest.mark.parametrize("number", range(len(FROZEN)), ids=list(FROZEN))
def test_a_stage_changes_only_what_it_names(number, model, batch) -> None:
    recipe = RECIPE["stages"][number]
    stage = StageConfig.model_validate(
        {
            "name": recipe["name"],
            "mixture": {"any": 1.0},
            "steps": 1,
            "batch_rows": 2,
            "train": tuple(recipe["train"]),
            "optimizer": {"learning_rate": 1e-2},
        }
    )
    made = make_stage(model.definition, stage, 1, SafetyConfig(), model.mesh)
    state, metrics = made.step(made.start(jax.tree.map(np.array, model.parameters)), batch)
    assert metrics["applied"]
    for path, after in state.parameters.items():
        frozen = any(fnmatch.fnmatch(path, pattern) for pattern in FROZEN[recipe["name"]] + UNUSED)
        changed = bool((np.asarray(after) != np.asarray(model.parameters[path])).any())
        assert changed == (not frozen), path
    # Frozen parameters have no moments.
    moments = {str(getattr(path[-1], "key", "")) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)}
    assert moments & set(state.frozen) == set()
