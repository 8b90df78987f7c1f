"""muP and CompleteP: equal to the standard parametrisation at the base size, and their factors at other sizes."""

import jax
import numpy as np
import pytest

from solo.config import ConfigError, MeshConfig, ModelConfig, OptimizerConfig, SafetyConfig, StageConfig, parse_config
from solo.model.parameters import ModelDefinition
from solo.model.parametrisation import depth_factor, width_factor
from solo.sharding.mesh import make_mesh
from solo.training.optimizer import make_optimizer
from solo.training.step import make_stage
from tests.model.test_flops import shapes_of
from tests.tiny import MODEL, tiny_config

IMAGE = tiny_config().image
KINDS = ("standard", "mup", "completep")


def definition(kind: str, base_width: int = 32, base_layers: int = 2, **changes) -> ModelDefinition:
    sizes = {"base_width": base_width, "base_layers": base_layers}
    config = ModelConfig.model_validate({**MODEL, "parametrisation": {"kind": kind, **sizes}, **changes})
    return ModelDefinition(config, IMAGE, 100)


def random_batch(of: ModelDefinition, seed: int = 0):
    """One row of 16 patches and 24 tokens, each seeing what is before it."""
    rng = np.random.default_rng(seed)
    batch = shapes_of(1, 16, 24, 8, of.image.patch_size)
    attend = [[0, s + 1, 0, 0] if s < 16 else [0, 16, 0, s - 15] for s in range(40)]
    return batch._replace(
        patches=rng.integers(0, 255, batch.patches.shape, np.uint8),
        patch_grid=np.zeros(batch.patch_grid.shape, np.int32),
        text=rng.integers(0, 100, batch.text.shape, np.int32),
        positions=np.arange(40, dtype=np.int32)[None],
        attend=np.array([attend], np.int32),
        target_slots=np.arange(20, 28, dtype=np.int32)[None],
        target_ids=rng.integers(0, 100, batch.target_ids.shape, np.int32),
        target_weights=np.ones(batch.target_weights.shape, np.float32),
        target_source=np.zeros(batch.target_source.shape, np.int32),
    )


@pytest.mark.slow
def test_all_parametrisations_agree_at_the_base_size() -> None:
    stage = StageConfig(
        name="only", mixture={"a": 1.0}, steps=2, batch_rows=1, optimizer=OptimizerConfig(learning_rate=0.01)
    )
    found = []
    for kind in KINDS:
        of = definition(kind)
        made = make_stage(of, stage, 2, SafetyConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))
        state = made.start(jax.jit(of.initialise)(jax.random.key(0)))
        for seed in range(2):
            state, measured = made.step(state, random_batch(of, seed))
        found.append((float(measured["loss"]), jax.device_get(state.parameters)))
    for loss, parameters in found[1:]:
        assert loss == found[0][0]
        for path, value in parameters.items():
            np.testing.assert_array_equal(value, found[0][1][path], err_msg=path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("text_embed", "embedding"),
        ("patch_embed/kernel", "input"),
        ("head", "head"),
        ("layers/qkv/text/q", "hidden"),
        ("layers/out/shared/kernel", "residual"),
        ("layers/ffn/patches/down", "residual"),
        ("layers/ffn_norm/shared/scale", "norm"),
        ("final_norm/scale", "norm"),
    ],
)
def test_every_parameter_has_its_role(path: str, wanted: str) -> None:
    assert definition("mup").specs[path].role == wanted


def test_the_experts_of_a_router_are_hidden_and_the_router_is_not() -> None:
    specs = definition("mup", experts={"ffn": "moe"}).specs
    assert {path.split("/")[-1]: spec.role for path, spec in specs.items() if "/moe/" in path} == {
        "router": "router",
        "gate": "hidden",
        "up": "hidden",
        "down": "residual",
    }


def test_initial_scales_follow_width_and_depth() -> None:
    """At 4 times the width hidden matrices are half as large; CompleteP does not shrink them with depth."""
    wide = {"width": 128, "heads": 16, "kv_heads": 8, "ffn_width": 192}

    def deviations(kind: str, **changes) -> dict[str, float]:
        drawn = jax.jit(definition(kind, **changes).initialise)(jax.random.key(0))
        return {path: float(value.std()) for path, value in drawn.items()}

    before, mup = deviations("standard", **wide), deviations("mup", **wide)
    for path, factor in {"text_embed": 1, "head": 1, "layers/qkv/text/q": 0.5, "layers/ffn/patches/down": 0.5}.items():
        assert mup[path] / before[path] == pytest.approx(factor, rel=1e-4), path
    shallow, deep = deviations("completep"), deviations("completep", layers=8)
    assert deep["layers/ffn/text/down"] / shallow["layers/ffn/text/down"] == pytest.approx(1, abs=0.1)
    assert deviations("mup", layers=8)["layers/ffn/text/down"] / shallow["layers/ffn/text/down"] < 0.6


def test_steps_and_eps_follow_the_size() -> None:
    of = definition("completep", base_width=16, base_layers=1)
    assert (width_factor(of.config), depth_factor(of.config)) == (2, 2)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, eps=1e-3, clip_norm=None), of.specs, of.config)
    params = {path: np.zeros(spec.shape, np.float32) for path, spec in of.specs.items()}
    grads = {path: np.full(spec.shape, 1e-3, np.float32) for path, spec in of.specs.items()}
    steps, _ = jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params))()

    def expected(step: float, eps: float) -> float:
        return step * 1e-3 / (1e-3 + eps * 1e-3)

    for path, value in {
        "text_embed": expected(1, 1 / 2),
        "head": expected(1, 1 / 2),
        "layers/ffn/text/up": expected(1 / 2, 1 / 4),
        "layers/ffn_norm/shared/scale": expected(1, 1 / 4),
        "final_norm/scale": expected(1, 1 / 2),
    }.items():
        np.testing.assert_allclose(steps[path], value, rtol=1e-4, err_msg=path)


def test_a_missing_base_size_is_reported() -> None:
    config = tiny_config().model_dump(mode="json")
    config["model"]["parametrisation"] = {"kind": "completep", "base_width": 32}
    with pytest.raises(ConfigError, match="completep needs base_layers"):
        parse_config(config)
