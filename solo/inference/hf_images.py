"""The images of a batch in Hugging Face form: where each patch stands in `input_ids`, its pixels, and its place.

Every published family has a form of its own. Numpy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solo.config import Config


class GivenImages(NamedTuple):
    """The patches of all rows, in the order of their images.

    patch     int64 [B, N]: index into `patches`; -1 for text and padding
    patches   [n, p*p*3], normalised, channel-major
    grid      [n, 2]: row and column of each patch in its tile or image; zeros if the model does not use them
    under_id  the id at every patch's place in `input_ids`, whose embedding SOLO adds to the patch; or None
    """

    patch: np.ndarray
    patches: np.ndarray
    grid: np.ndarray
    under_id: int | None = None


def given_images(
    given: dict[str, np.ndarray], ids: np.ndarray, real: np.ndarray, config: Config, placeholder_id: int
) -> GivenImages:
    """Returns the images of tensors whose names and shapes `check_tensors` describes.

    Raises:
        ValueError: shapes are inconsistent, or the numbers of patches and placeholders differ.
    """
    if "image_grid_hw" in given:
        return _by_grid(given, ids, real, config, placeholder_id)
    if "image_position_ids" in given:
        return _placed(given, ids, real, config, placeholder_id)
    if (count := int((given.get("mm_token_type_ids", np.zeros(0)) != 0).sum())) > 0:
        raise ValueError(f"mm_token_type_ids has {count} tokens of media; their image_position_ids are missing")
    if "pixel_values" in given:
        return _tiles(given, ids, real, config, placeholder_id)
    found = _indexed(given, real, config)
    return found._replace(under_id=_under(ids[found.patch >= 0]))


def _by_grid(
    given: dict[str, np.ndarray], ids: np.ndarray, real: np.ndarray, config: Config, placeholder_id: int
) -> GivenImages:
    """Reads NEO's form: the fine patches of all images, row by row, and their numbers of rows and columns."""
    fine = config.model.patch_embed.inner_size or config.image.patch_size
    merged = config.image.patch_size // fine
    pixels, grids = given.get("pixel_values", np.zeros((0, 3 * fine**2))), given["image_grid_hw"].reshape(-1, 2)
    if pixels.ndim != 2 or pixels.shape[1] != 3 * fine**2:
        raise ValueError(f"pixel_values with image_grid_hw are [patches, {3 * fine**2}]; found {pixels.shape}")
    if (grids % merged).any() or (grids <= 0).any():
        raise ValueError(f"image_grid_hw are numbers of patches of {fine} pixels, multiples of {merged}: {grids}")
    sizes = grids.prod(axis=1)
    if sizes.sum() != len(pixels):
        raise ValueError(f"image_grid_hw describes {sizes.sum()} patches, but pixel_values has {len(pixels)}")
    patches, places = [np.zeros((0, 3 * config.image.patch_size**2))], [np.zeros((0, 2), np.int64)]
    for (high, wide), image in zip(grids // merged, np.split(pixels, np.cumsum(sizes)[:-1]), strict=False):
        blocks = image.reshape(high, merged, wide, merged, 3, fine, fine).transpose(0, 2, 4, 1, 5, 3, 6)
        patches.append(blocks.reshape(high * wide, -1))
        places.append(np.indices((high, wide)).reshape(2, -1).T)
    counts = (sizes // merged**2).tolist()
    placeholders = real & (ids == _placeholder(ids, real, counts, placeholder_id))
    numbers = np.full(ids.shape, -1, np.int64)
    numbers[placeholders] = np.arange(sum(counts))
    return GivenImages(numbers, np.concatenate(patches), np.concatenate(places))


def _placeholder(ids: np.ndarray, real: np.ndarray, counts: list[int], stated: int) -> int:
    """Returns the id of a patch. NEO's config.json does not have it.

    NEO's vocabulary appends `<IMG_CONTEXT>`, `<img>` and `</img>` one after another, so that an image of n patches is
    c + 1, n times c, c + 2 (`ALL_SPECIAL_TOKEN_LIST` in `neo/data/constants.py`).
    """
    read = ids[real]
    if int((read == stated).sum()) == sum(counts):
        return stated
    for candidate in np.unique(read).tolist():
        begins, ends = np.flatnonzero(read == candidate + 1), np.flatnonzero(read == candidate + 2)
        if (
            len(begins) == len(ends) == len(counts)
            and (ends - begins - 1).tolist() == counts
            and int((read == candidate).sum()) == sum(counts)
        ):
            return int(candidate)
    raise ValueError(
        f"input_ids has {int((read == stated).sum())} placeholders (id {stated}) for images of"
        f" {', '.join(map(str, counts))} visual tokens, and no other id stands for them between <img> and </img>"
    )


def _placed(
    given: dict[str, np.ndarray], ids: np.ndarray, real: np.ndarray, config: Config, placeholder_id: int
) -> GivenImages:
    """Reads Gemma 4's form: images padded to one number of patches, with the column and row of each patch."""
    side, places = config.image.patch_size, given["image_position_ids"]
    pixels = given.get("pixel_values", np.zeros(0))
    if pixels.shape != (*places.shape[:2], side**2 * 3) or places.shape[2:] != (2,):
        raise ValueError(
            f"image_position_ids are [images, slots, 2] and pixel_values [images, slots, {side**2 * 3}]; found"
            f" {places.shape} and {pixels.shape}"
        )
    there = (places >= 0).all(axis=-1)
    patches = pixels[there].reshape(-1, side, side, 3).transpose(0, 3, 1, 2).reshape(-1, side**2 * 3)
    placeholders = (ids == placeholder_id) & real
    if placeholders.sum() != len(patches):
        raise ValueError(
            f"{int(placeholders.sum())} placeholders (id {placeholder_id}) in input_ids, but the images have"
            f" {len(patches)} visual tokens"
        )
    if "mm_token_type_ids" in given and ((given["mm_token_type_ids"] == 1) != placeholders).any():
        raise ValueError("mm_token_type_ids must be 1 at the placeholders of images, and nowhere else")
    numbers = np.full(ids.shape, -1, np.int64)
    numbers[placeholders] = np.arange(len(patches))
    return GivenImages(numbers, patches, places[there][:, ::-1])


def _tiles(
    given: dict[str, np.ndarray], ids: np.ndarray, real: np.ndarray, config: Config, placeholder_id: int
) -> GivenImages:
    """Reads `pixel_values` of tiles (Mono-InternVL)."""
    image, tiles = config.image, given["pixel_values"]
    side = image.patch_size
    if tiles.ndim != 4 or tiles.shape[1] != 3 or tiles.shape[2] % side or tiles.shape[3] % side:
        raise ValueError(f"pixel_values are [tiles, 3, h, w], h and w multiples of {side}; found {tiles.shape}")
    if image.geometry == "tiles" and tiles.shape[2:] != (image.tile_size, image.tile_size):
        raise ValueError(f"pixel_values are {tiles.shape[2:]} pixels; the model's tiles are {image.tile_size} square")
    flags = given.get("image_flags", np.ones(len(tiles))).reshape(-1).astype(bool)
    if len(flags) != len(tiles):
        raise ValueError(f"there are {len(flags)} image_flags for {len(tiles)} tiles")
    rows, columns = tiles.shape[2] // side, tiles.shape[3] // side
    cut = tiles[flags].reshape(-1, 3, rows, side, columns, side)
    grid = np.indices((rows, columns)).transpose(1, 2, 0)
    # [tiles, row, column, C, y, x], or column first if the published model orders its patches by column
    if image.patch_order == "rows":
        patches = cut.transpose(0, 2, 4, 1, 3, 5)
    else:
        patches, grid = cut.transpose(0, 4, 2, 1, 3, 5), grid.transpose(1, 0, 2)
    patches = patches.reshape(-1, 3 * side * side)
    placeholders = (ids == placeholder_id) & real
    if placeholders.sum() != len(patches):
        raise ValueError(
            f"{int(placeholders.sum())} placeholders (id {placeholder_id}) in input_ids, but {int(flags.sum())} tiles"
            f" of {rows * columns} visual tokens are {len(patches)}"
        )
    numbers = np.full(ids.shape, -1, np.int64)
    numbers[placeholders] = np.arange(len(patches))
    return GivenImages(numbers, patches, np.tile(grid.reshape(-1, 2), (int(flags.sum()), 1)))


def _indexed(given: dict[str, np.ndarray], real: np.ndarray, config: Config) -> GivenImages:
    """Reads `vision_patches` (SOLO); there are no patches if they are not given."""
    values = config.image.patch_size**2 * 3
    patches = given.get("vision_patches", np.zeros((0, values))).reshape(-1, values)
    numbers = np.full(real.shape, -1, np.int64)
    if "vision_patch_indices" in given:
        numbers[...] = given["vision_patch_indices"]
    elif len(patches):
        raise ValueError("vision_patches need vision_patch_indices, which give their places")
    if numbers.max(initial=-1) >= len(patches) or numbers.min(initial=0) < -1:
        raise ValueError(f"vision_patch_indices go from -1 (text) to {len(patches) - 1}, the last of vision_patches")
    return GivenImages(np.where(real, numbers, -1), patches, np.zeros((len(patches), 2)))


def _under(ids: np.ndarray) -> int | None:
    found = np.unique(ids)
    if len(found) > 1:
        raise ValueError(f"the id under every patch must be the same (SOLO's <vpatch>); found {found[:5].tolist()}")
    return int(found[0]) if len(found) else None
