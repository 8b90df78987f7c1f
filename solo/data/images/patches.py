"""Decodes an image file, resizes it as `solo.data.images.geometry` says, and cuts it into patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from solo.batch import BEGIN_MARKER, ROW_MARKER
from solo.config import ConfigError, ImageConfig
from solo.data.images.decoding import Header, decode, read_header
from solo.data.images.geometry import PatchGrid, patch_grid, resized
from solo.data.images.resizing import resize
from solo.data.images.tiles import tile_grid

_PADDING = 1  # of 255; Fuyu pads with this value before it scales pixels to [0, 1]


class Patches(NamedTuple):
    """The n patches of an image, markers included, in reading order.

    pixels  uint8 [n, p * p * 3]  channel-major: value c * p * p + y * p + x
    places  int32 [n, 2]          row and column of each patch in its image or tile, or a marker (see `solo.batch`)
    grid    tiles, rows and columns
    """

    pixels: np.ndarray
    places: np.ndarray
    grid: PatchGrid


def decode_patches(data: bytes, config: ImageConfig, images: int = 1) -> Patches:
    """Decodes an image file and cuts it into patches.

    Pixels are RGB, resized with an antialiased filter: Pillow's, as in all reference implementations, or an
    approximation of it with `decoder: fast`. Tiles follow one another. Within a tile, patches are in row-major order,
    or in column-major order with `patch_order: columns`.

    Args:
        data: content of the file.
        config: the geometry.
        images: number of images in the record; see `ImageConfig.share_tiles` and `share_pixels`.

    Raises:
        OSError: the bytes cannot be decoded as an image; the message says why.
        ConfigError: the libraries of `config.decoder` are not installed.
    """
    header = read_header(data, config.max_file_pixels)
    width, height = (np.asarray(side) for side in header.size(config.exif))
    grid = patch_grid(width, height, config, images)
    if config.geometry == "tiles":
        columns, rows = (int(count) for count in tile_grid(width, height, config, images))
        wholes = _tiles(data, header, columns, rows, config)
    else:
        wide, high = (int(side) for side in resized(width, height, config, images))
        wholes = [_filled(whole, config) for whole in _decode_resized(data, header, [(wide, high)], config)]
    cuts = [_cut(whole, config) for whole in wholes]
    pixels = cuts[0] if len(cuts) == 1 else np.concatenate(cuts)
    places = np.indices((int(grid.rows), int(grid.columns)), np.int32)
    order = (2, 1, 0) if config.patch_order == "columns" else (1, 2, 0)
    places = np.tile(places.transpose(order).reshape(-1, 2), (len(wholes), 1))
    if config.markers:
        pixels, places = _marked(pixels, places, grid)
    return Patches(pixels, places, grid)


def _marked(pixels: np.ndarray, places: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Inserts EVEv2's markers: slots without pixels, one before the image and one after each row."""
    at = np.concatenate([[0], (np.arange(int(grid.rows)) + 1) * int(grid.columns)])
    kind = np.where(np.arange(len(at)) == 0, BEGIN_MARKER, ROW_MARKER)
    marks = np.stack([kind, np.zeros_like(kind)], axis=1)
    return np.insert(pixels, at, 0, axis=0), np.insert(places, at, marks, axis=0)


def require_decoder(config: ImageConfig) -> None:
    """Raises ConfigError if the libraries of `config.decoder` are not installed."""
    if config.decoder == "fast":
        try:
            import solo.data.images.fast  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"image.decoder: fast needs {error.name}, which is not installed; install the extra `fast`"
                " (pip install 'solo-vlm[fast]') or set image.decoder: pillow"
            ) from None


def _decode_resized(
    data: bytes, header: Header, sizes: Sequence[tuple[int, int]], config: ImageConfig
) -> list[np.ndarray]:
    """Returns the image resized to each size (width, height), uint8 [height, width, 3]."""
    if config.decoder == "fast":
        require_decoder(config)
        from solo.data.images import fast

        return fast.decode_resized(data, header, sizes, config)
    image = decode(data, config)
    return [np.asarray(resize(image, size, config.resample)) for size in sizes]


def _tiles(data: bytes, header: Header, columns: int, rows: int, config: ImageConfig) -> list[np.ndarray]:
    """Returns the tiles in row-major order. With `thumbnail` and more than one tile, the whole image comes last."""
    side = config.tile_size
    sizes = [(side * columns, side * rows)]
    if config.thumbnail and columns * rows > 1:
        sizes.append((side, side))
    whole, *thumbnail = _decode_resized(data, header, sizes, config)
    return [
        *(
            whole[side * row : side * (row + 1), side * column : side * (column + 1)]
            for row in range(rows)
            for column in range(columns)
        ),
        *thumbnail,
    ]


def _filled(pixels: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Pads the bottom and the right to whole patches, which only Fuyu's images need."""
    missing = [-side % config.patch_size for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=_PADDING)


def _cut(pixels: np.ndarray, config: ImageConfig) -> np.ndarray:
    """Cuts [rows * p, columns * p, 3] into patches, uint8 [rows * columns, p * p * 3]."""
    patch = config.patch_size
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    blocks = pixels.reshape(rows, patch, columns, patch, 3)
    order = (2, 0, 4, 1, 3) if config.patch_order == "columns" else (0, 2, 4, 1, 3)
    return blocks.transpose(order).reshape(rows * columns, -1)
