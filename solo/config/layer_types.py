"""The config section for models whose layers are of several types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from solo.config.base import Section

if TYPE_CHECKING:
    from solo.config.model import ModelConfig


class LayerTypeConfig(Section):
    """A type of layers: keys of the model section that have other values in its layers. null: as in the model section.

    `sequence.layer_masks` states which slots the layers of each type attend to.
    """

    keys_decide = ("model",)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="in `layer_pattern`, masks and parameter paths")
    kv_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=1)
    rope_theta: float | None = Field(None, gt=0)
    rope_fraction: float | None = Field(None, gt=0, le=1)
    rope_pairs: Literal["rotated", "head"] | None = None
    keys_are_values: bool | None = None

    @property
    def changes(self) -> dict[str, object]:
        """The keys of the model section that this type changes."""
        return {key: value for key, value in self if key != "name" and value is not None}


def check_layer_types(model: ModelConfig) -> None:
    """Raises ValueError if `layer_types` and `layer_pattern` do not fit together, or a type is not a valid model."""
    names, pattern = [each.name for each in model.layer_types], model.layer_pattern
    if len(set(names)) < len(names):
        raise ValueError(f"layer_types has a name twice: {', '.join(names)}")
    if unknown := [name for name in pattern if name not in names]:
        raise ValueError(f"layer_pattern names {unknown[0]}, which is not one of layer_types: {', '.join(names)}")
    if unused := [name for name in names if name not in model.type_of_each_layer]:
        raise ValueError(f"layer_types has {unused[0]}, which no layer of layer_pattern is; leave it out")
    if model.parametrisation.base_head_dim and any(each.head_dim for each in model.layer_types):
        raise ValueError("parametrisation.base_head_dim is one number; leave it out where layer_types state head_dim")
    for each in model.layer_types:
        try:
            model.of_type(each.name)
        except ValidationError as error:
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"layer_types, {each.name}: {fault}") from None
