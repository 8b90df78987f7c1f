"""The config section for the parts of a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from solo.config.base import Section

if TYPE_CHECKING:
    from solo.config.model import ModelConfig


class HeadPartConfig(Section):
    """A part of every head's queries and keys, rotated along one axis of the positions (NEO).

    The parts of a head lie one after another, and a score sums over all of them. The first parts are slices of the main
    projections `q` and `k`. Parts with `projection: grid` are slices of the projections `q_grid` and `k_grid`, which
    can be frozen, zeroed or trained by their own paths.

    NEO 1.0    time 128, then row 64 and column 64 of the grid projections, with a norm each
    NEO-unify  time 64, row 32 and column 32 of the main projections; one norm over row and column
    """

    keys_decide = ("model",)

    axis: Literal["time", "row", "column"]
    width: int = Field(ge=2, multiple_of=2, description="dimensions of the part; all of them are rotated")
    theta: float | None = Field(None, gt=0, description="base of the rotary frequencies; default: model.rope_theta")
    projection: Literal["main", "grid"] = Field("main", description="the projections that the part is a slice of")
    norm: Literal["own", "grid"] = Field(
        "own", description="with model.qk_norm. own: a norm of this part; grid: one norm over the parts that say so"
    )


def check_parts(model: ModelConfig) -> None:
    """Raises ValueError if `model.head_parts` do not fit together, or do not fit the other keys of the heads."""
    parts = model.head_parts
    if parts is None:
        return
    if wrong := [key for key in ("rope_sections", "rope_scaling") if getattr(model, key) is not None]:
        raise ValueError(f"head_parts gives every part one axis and its theta; leave out {' and '.join(wrong)}")
    if model.rope_fraction != 1:
        raise ValueError("head_parts rotates all dimensions of every part; leave out rope_fraction")
    axes, projections = [part.axis for part in parts], [part.projection for part in parts]
    if axes[0] != "time" or len(set(axes)) < len(axes):
        raise ValueError(f"head_parts has the axes {', '.join(axes)}; time comes first, and every axis at most once")
    if projections[0] != "main" or projections != sorted(projections, reverse=True):
        raise ValueError("head_parts: parts of the main projection come before those with projection: grid")
    main = sum(part.width for part in parts if part.projection == "main")
    if main != model.dim_per_head:
        raise ValueError(f"head_parts of the main projection add up to {main}; head_dim is {model.dim_per_head}")
    joint = [number for number, part in enumerate(parts) if part.norm == "grid"]
    if joint and model.qk_norm == "none":
        raise ValueError("head_parts has norm: grid, but qk_norm is none")
    if joint and (joint[-1] - joint[0] >= len(joint) or len({projections[number] for number in joint}) > 1):
        raise ValueError("head_parts: parts with norm: grid are neighbours, and slices of the same projection")
