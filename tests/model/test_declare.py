"""What parameters state of themselves, in models that together have all of them."""

from fractions import Fraction

import pytest

from solo.config import ImageConfig, ModelConfig
from solo.model.declare import ParameterSpec
from solo.model.parameters import ModelDefinition
from tests.tiny import MODEL

ALL = {"ffn": "modality", "qkv": "modality", "out": "modality", "norms": "modality"}
CONV = {"kind": "conv", "inner_size": 4, "inner_width": 16}
GRID = {"kind": "grid", "inner_size": 2, "inner_width": 8, "grid_side": 4, "class_slot": True}
MODELS = {
    "shared, with biases": {"experts": {}, "bias": "all", "norm": "layer", "qk_norm": "layer"},
    "modality experts": {"experts": ALL, "tied_head": True},
    "moe, conv": {"experts": {"ffn": "moe"}, "moe": {"count": 8, "top_k": 2}, "patch_embed": CONV},
    "relu2, grid": {"ffn": "relu2", "patch_embed": GRID, "bias": "qkv"},
}


def specs(name: str) -> dict[str, ParameterSpec]:
    image = ImageConfig(patch_size=8, max_side=64, row_token=None, markers="conv" in name)
    return ModelDefinition(ModelConfig.model_validate({**MODEL, **MODELS[name]}), image, 100).specs


@pytest.mark.parametrize("name", MODELS)
def test_regions_and_components_agree_with_the_paths(name: str) -> None:
    for path, spec in specs(name).items():
        first, *rest = path.split("/")
        assert spec.in_layers == (first == "layers"), path
        if spec.in_layers:
            component, region = rest[:2]
            assert spec.region == region, path
            assert spec.component == ("norms" if component.endswith("_norm") else component), path
        else:
            regions = {"patch_embed": "patches", "text_embed": "text", "head": "targets", "final_norm": "shared"}
            assert spec.region == regions[first], path
            assert spec.component == ("norms" if first == "final_norm" else first), path


@pytest.mark.parametrize("name", MODELS)
def test_roles_agree_with_names_and_shapes(name: str) -> None:
    roles = {"scale": "norm", "router": "router", "head": "head", "text_embed": "embedding", "positions": "embedding"}
    vectors = ("begin_marker", "row_marker", "class_token")
    for path, spec in specs(name).items():
        last = path.split("/")[-1]
        if last.endswith("bias"):
            assert spec.role == "bias", path
        elif last in vectors:
            assert spec.role == "vector", path
        elif last in roles:
            assert spec.role == roles[last], path
        else:
            ends_branch = spec.in_layers and last in ("kernel", "down")
            assert spec.role in (("residual",) if ends_branch else ("input", "hidden")), path
        axes = [axis for axis in spec.axes if axis not in ("layers", "experts")]
        assert spec.is_matrix <= (len(axes) > 1 or spec.role == "router"), path
        assert (spec.inputs > 1) == (spec.component == "out" and spec.is_matrix), path


def test_uses_are_the_share_of_the_experts_and_the_number_of_inner_patches() -> None:
    uses = {path: spec.uses for path, spec in specs("moe, conv").items() if spec.uses != 1}
    experts = {f"layers/ffn/moe/{name}": Fraction(1, 4) for name in ("gate", "up", "down")}
    assert uses == {**experts, "patch_embed/inner/kernel": 4}
