"""Positions, image spans of the attention mask, and the patches of each row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_solo import SoloMonolithConfig

# The time, row and column of text at time t are t times these numbers, by the kind of positions. The time after an
# image is its largest position on the axes that have a 1, plus one.
TEXT_AXES = {"grid": (1, 1, 1), "separate": (1, 0, 0)}
_AXES = ("time", "row", "column")


def text_positions(length: int, like: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Returns positions that count all tokens but padding: int64 [B, length], or [1, length] without a mask."""
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(length, device=like.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def rotary_tables(config: SoloMonolithConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines [B, S, r/2], float32, of positions [B, S] or [3, B, S].

    See arXiv 2104.09864 for rotary positions, arXiv 2409.12191 for their three axes (M-RoPE), and arXiv 2510.14979 for
    parts of a head that have an axis each (NEO).
    """
    if config.head_parts:
        angles = torch.cat([_angles_of(config, part, position_ids) for part in config.head_parts], dim=-1)
        return angles.cos(), angles.sin()
    sections = config.model["rope_sections"]
    rows = position_ids if position_ids.ndim == 2 else position_ids.amax(0)
    frequency = _frequencies(config, rows.amax(-1) + 1)
    if sections is None:
        angles = position_ids[..., None].float() * frequency
    else:
        axis_of_pair = torch.arange(3, device=rows.device).repeat_interleave(torch.tensor(sections, device=rows.device))
        angles = position_ids.permute(1, 2, 0)[..., axis_of_pair].float() * frequency
    return angles.cos(), angles.sin()


def _angles_of(config: SoloMonolithConfig, part: dict[str, Any], position_ids: Tensor) -> Tensor:
    """Returns the angles [B, S, width/2] of a part of a head."""
    place = position_ids if position_ids.ndim == 2 else position_ids[_AXES.index(part["axis"])]
    exponents = torch.arange(0, part["width"], 2, dtype=torch.float32, device=place.device) / part["width"]
    return place[..., None].float() * (part["theta"] or config.model["rope_theta"]) ** -exponents


def _frequencies(config: SoloMonolithConfig, length_B: Tensor) -> Tensor:
    """Returns the frequencies, float32 [r/2], or [B, 1, r/2] if they depend on the row's length (dynamic NTK)."""
    dim, base, scaling = config.rotary_dim, config.model["rope_theta"], config.model["rope_scaling"]
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=length_B.device) / dim
    kind = None if scaling is None else scaling["kind"]
    if kind == "dynamic":
        factor, trained = scaling["factor"], scaling["trained_length"]
        beyond = length_B.float().clamp(min=trained) / trained
        return (base * (factor * beyond - (factor - 1)) ** (dim / (dim - 2)))[:, None, None] ** -exponents
    frequency = base**-exponents
    if kind == "linear":
        return frequency / scaling["factor"]
    if kind == "llama3":
        turns = scaling["trained_length"] * frequency / (2 * math.pi)
        low, high = scaling["low_frequency_factor"], scaling["high_frequency_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / scaling["factor"])
    return frequency


def image_blocks(config: SoloMonolithConfig, input_ids: Tensor, past: int, slots: int) -> Tensor:
    """Returns the number of each token's image, or -1: int64 [B, slots]. Tokens of one image see each other.

    The tokens occupy slots from `past` on, of those of a cache.

    An image consists of its patches and row tokens; with image mask "prefix" also of its begin and end tokens.

    Raises:
        ValueError: these tokens begin or end within an image, so that its tokens cannot all see each other.
    """

    def is_token(token: int | None) -> Tensor:
        return _none(input_ids) if token is None else input_ids == token

    inside = is_token(config.image_token_id) | is_token(config.image_row_id)
    opening = is_token(config.image_begin_id) & _after(inside) & ~inside
    closing = is_token(config.image_end_id) & _before(inside) & ~inside
    cut_before = past > 0 and config.image_begin_id is not None and bool(inside[:, 0].any())
    if cut_before or (config.image_end_id is not None and bool(inside[:, -1].any())):
        raise ValueError("the prompt is split within an image, whose patches see each other: split it elsewhere")
    if config.image["mask"] == "prefix":
        first = opening | (inside & ~_before(inside | opening))
        inside = inside | opening | closing
    else:
        first = inside & ~_before(inside)
    number = first.long().cumsum(-1) - 1
    after = max(slots - past - input_ids.shape[1], 0)
    return F.pad(number.masked_fill(~inside, -1), (past, after), value=-1)


def grid_positions(
    config: SoloMonolithConfig, input_ids: Tensor, attention_mask: Tensor | None, patches_grid: Tensor | None
) -> Tensor:
    """Returns (time, row, column) of every token of whole sequences, int64 [3, B, S].

    A patch has the position that a text token would have in place of its image's first patch, plus (tile, row,
    column). A row token is one more column of its row. The token after an image follows the highest position in it.
    Text advances all three by one, or only the time, with row and column 0 (`TEXT_AXES`).

    Raises:
        ValueError: the numbers of places and patches differ.
    """
    is_patch = input_ids == config.image_token_id
    inside = is_patch | (_none(input_ids) if config.image_row_id is None else input_ids == config.image_row_id)
    count = int(is_patch.sum())
    if count != (0 if patches_grid is None else len(patches_grid)):
        raise ValueError(f"grid positions: {count} placeholders need as many places in patches_grid")
    steps = (~inside).long()
    if attention_mask is not None and attention_mask.ndim == 2:
        steps = steps * attention_mask.long()
    axes = torch.tensor(TEXT_AXES[config.sequence["positions"]], device=input_ids.device)
    offsets = torch.zeros(*input_ids.shape, 3, dtype=torch.long, device=input_ids.device)
    if patches_grid is not None and count:
        first, last = inside & ~_before(inside), inside & ~_after(inside)
        image = (first.flatten().cumsum(0) - 1)[inside.flatten()]
        patch = (is_patch.flatten().cumsum(0) - 1)[inside.flatten()]
        grid = patches_grid.to(input_ids.device)
        tile = (grid == 0).all(-1).cumsum(0)[patch]
        tile = tile - tile[first.flatten()[inside.flatten()]][image]
        column = grid[patch, 1] + ~is_patch[inside]
        found = torch.stack([tile, grid[patch, 0], column], dim=-1)
        offsets[inside] = found
        highest = torch.zeros(int(first.sum()), dtype=torch.long, device=grid.device)
        steps[last] = highest.scatter_reduce(0, image, (found * axes).amax(-1), "amax") + 1
    before = steps.cumsum(-1) - steps
    return (before[..., None] * axes + offsets).permute(2, 0, 1)


def _none(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool)


def _before(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0))[:, :-1]


def _after(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1))[:, 1:]


def take_new(is_patch_BR: Tensor, past: int, of_patches: Tensor) -> Tensor:
    """Returns the values of tokens from `past` on, out of values [n, ...] of all patches of a batch, row after row."""
    if int(is_patch_BR.sum()) != len(of_patches):
        return of_patches
    is_new = torch.arange(is_patch_BR.shape[1], device=is_patch_BR.device) >= past
    return of_patches[is_new.expand_as(is_patch_BR)[is_patch_BR].to(of_patches.device)]


def expand_by_row(is_patch_BS: Tensor, of_patches: Tensor, times: int) -> Tensor:
    """Repeats the values [n, ...] of patches row by row; the patches of a row stay together."""
    rows = of_patches.split(is_patch_BS.sum(-1).tolist())
    return torch.cat([row for row in rows for _ in range(times)])


__all__ = [
    "TEXT_AXES",
    "expand_by_row",
    "grid_positions",
    "image_blocks",
    "rotary_tables",
    "take_new",
    "text_positions",
]
