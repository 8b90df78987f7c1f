"""From images to patches: resized, cut, normalised. The same pixels as in training, to the last bit.

`image` in `preprocessor_config.json` is the training config's section of that name; its keys are used by their names.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BEGIN_MARKER, ROW_MARKER = -1, -2
_PADDING = 1  # of 255: what is beside and under an image that is filled up to whole patches


class Grid(NamedTuple):
    """What an image is cut into: tiles of rows x columns patches."""

    tiles: int
    rows: int
    columns: int


class SoloMonolithImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """images_per_text: how many images each text has, where the tiles of a text are shared out among them."""

    images_per_text: list[int] | None
    max_tiles: int | None


class SoloMonolithImageProcessor(BaseImageProcessor):
    """Images to patches.

    Args:
        image: geometry, patch_size, resample, mean, std and what the geometry needs.
    """

    model_input_names = ("pixel_values", "patches_grid")
    valid_kwargs = SoloMonolithImagesKwargs

    def __init__(self, image: dict[str, Any] | None = None, **kwargs: Any):
        if image is None:
            raise ValueError("an image processor of this model needs the section `image` of its config")
        super().__init__(**kwargs)
        self.image = image

    def preprocess(
        self,
        images: Any,
        images_per_text: list[int] | None = None,
        max_tiles: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Cut images.

        Args:
            images: Pillow images, arrays [height, width, 3], paths or addresses; one or lists of them.
            images_per_text: images of each text, in order.
            max_tiles: instead of the config's.
            return_tensors: "pt" or "np"; arrays otherwise.
            kwargs: ignored.

        Returns:
            pixel_values    float32 [n, p*p*3]: normalised, channel by channel; image after image, tile after tile
            patches_grid    int64 [n, 2]: row and column of each in its image or tile
            image_grids_of  tiles, rows and columns of every image, as a list
        """
        found = [self.open(image) for image in make_flat_list_of_images(self.fetch_images(images))]
        shares = [count for count in images_per_text or [1] * len(found) for _ in range(count)]
        cut = [self.cut(image, share, max_tiles) for image, share in zip(found, shares, strict=True)]
        raw = np.concatenate([pixels for pixels, _, _ in cut])
        data = {
            "pixel_values": self.normalised(raw),
            "patches_grid": np.concatenate([places for _, places, _ in cut]).astype(np.int64),
        }
        feature = BatchFeature(data, tensor_type=return_tensors)
        feature["image_grids_of"] = [grid for _, _, grid in cut]
        return feature

    def open(self, image: Any) -> Image.Image:
        """An RGB Pillow image, turned as its file asks for where the training did so; alpha is dropped."""
        if not isinstance(image, Image.Image):
            array = np.asarray(image)
            channels_first = array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3)
            array = array.transpose(1, 2, 0) if channels_first else array
            if array.dtype != np.uint8:
                raise ValueError(f"an image as an array holds bytes, 0 to 255, not {array.dtype}")
            image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        if self.image["exif"] == "apply":
            image = ImageOps.exif_transpose(image)
        return image.convert("RGB")

    def grid(self, width: int, height: int, images: int = 1, max_tiles: int | None = None) -> Grid:
        """What an image of this size is cut into, `images` being in its text."""
        config = self.image
        if config["geometry"] == "tiles":
            columns, rows = tile_grid(width, height, config, images, max_tiles)
            side = config["tile_size"] // config["patch_size"]
            return Grid(columns * rows + (config["thumbnail"] and columns * rows > 1), side, side)
        wide, high = resized(width, height, config)
        return Grid(1, -(-high // config["patch_size"]), -(-wide // config["patch_size"]))

    def cut(self, image: Image.Image, images: int, max_tiles: int | None) -> tuple[np.ndarray, np.ndarray, Grid]:
        """Raw pixels uint8 [n, p*p*3], places [n, 2], and the grid."""
        config = self.image
        if config["geometry"] == "tiles":
            wholes = self._tiles(image, *tile_grid(*image.size, config, images, max_tiles))
        else:
            wholes = [self._filled(self._resize(image, *resized(*image.size, config)))]
        grid = self.grid(*image.size, images, max_tiles)
        by_column = config["patch_order"] == "columns"
        places = np.indices((grid.rows, grid.columns)).transpose((2, 1, 0) if by_column else (1, 2, 0)).reshape(-1, 2)
        pixels = np.concatenate([patches_of(whole, config["patch_size"], by_column) for whole in wholes])
        places = np.tile(places, (len(wholes), 1))
        if config.get("markers"):
            pixels, places = with_markers(pixels, places, grid)
        return pixels, places, grid

    def normalised(self, raw: np.ndarray) -> np.ndarray:
        """(value / 255 - mean) / std, float32."""
        mean, std = (np.repeat(np.float32(self.image[key]), raw.shape[1] // 3) for key in ("mean", "std"))
        found = (raw.astype(np.float32) / np.float32(255) - mean) / std
        return found.astype(np.float16).astype(np.float32) if self.image["stored_as_float16"] else found

    def _resize(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        size = (width, height)
        return np.asarray(image if image.size == size else image.resize(size, _FILTERS[self.image["resample"]]))

    def _tiles(self, image: Image.Image, columns: int, rows: int) -> list[np.ndarray]:
        side = self.image["tile_size"]
        whole = self._resize(image, side * columns, side * rows)
        strips = [whole[side * row : side * (row + 1)] for row in range(rows)]
        found = [strip[:, side * column : side * (column + 1)] for strip in strips for column in range(columns)]
        return [*found, self._resize(image, side, side)] if self.image["thumbnail"] and len(found) > 1 else found

    def _filled(self, pixels: np.ndarray) -> np.ndarray:
        below, right = (-side % self.image["patch_size"] for side in pixels.shape[:2])
        return np.pad(pixels, ((0, below), (0, right), (0, 0)), constant_values=_PADDING)


def patches_of(pixels: np.ndarray, side: int, by_column: bool) -> np.ndarray:
    """uint8 [n, p*p*3] of whole patches [height, width, 3]: value c * p * p + y * p + x of each."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = pixels.reshape(rows, side, columns, side, 3)
    return blocks.transpose((2, 0, 4, 1, 3) if by_column else (0, 2, 4, 1, 3)).reshape(rows * columns, -1)


def with_markers(pixels: np.ndarray, places: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """With a learned token before the image and one behind each row: without pixels, at row -1 or -2."""
    is_patch = np.full((grid.rows, grid.columns + 1), True)
    is_patch[:, -1] = False
    is_patch = np.concatenate([[False], is_patch.ravel()])
    all_pixels = np.zeros((len(is_patch), pixels.shape[1]), pixels.dtype)
    all_places = np.full((len(is_patch), 2), (ROW_MARKER, 0))
    all_pixels[is_patch], all_places[is_patch], all_places[0] = pixels, places, (BEGIN_MARKER, 0)
    return all_pixels, all_places


def resized(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Width and height to which a whole image is scaled."""
    rule = {"native": _native, "area": _area, "padded": _padded}[config["geometry"]]
    least = 1 if config["geometry"] == "padded" else config["patch_size"]
    wide, high = rule(width, height, config)
    return max(wide, least), max(high, least)


def tile_grid(
    width: int, height: int, config: dict[str, Any], images: int = 1, max_tiles: int | None = None
) -> tuple[int, int]:
    """Columns and rows of tiles: of all grids the one whose aspect ratio is nearest to the image's.

    Of equally near ones the first, with the fewest tiles, unless a later one has less than twice the image's pixels.
    """
    most = max_tiles or config["max_tiles"]
    most = max(most // images, 1) if config.get("share_tiles") else most
    pairs = [(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1) if i * j >= config["min_tiles"]]
    best, least = (1, 1), math.inf
    for columns, rows in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)):
        difference = abs(width / height - columns / rows)
        large = width * height > 0.5 * config["tile_size"] ** 2 * columns * rows
        if difference < least or (difference == least and large):
            best, least = (columns, rows), difference
    return best


def _native(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """The longer side rounded up to whole patches and capped; the shorter one by the aspect ratio, rounded up."""
    patch, most = config["patch_size"], config.get("max_pixels")
    longer, shorter = max(width, height), min(width, height)
    long_side = min(-(-longer // patch) * patch, config["max_side"])
    short_side = -(-int(long_side * shorter / longer) // patch) * patch
    if most is not None and long_side * short_side / most > 1:
        factor = math.sqrt(long_side * short_side / most)
        long_side, short_side = (int(side / factor / patch) * patch for side in (long_side, short_side))
    return (long_side, short_side) if width >= height else (short_side, long_side)


def _area(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Scaled to between `min_pixels` and `max_pixels`, the sides rounded to whole patches as `rounding` says."""
    patch, pixels = config["patch_size"], width * height
    least, most = config.get("min_pixels") or 0, config.get("max_pixels") or math.inf
    if config["rounding"] == "within":
        sides = [max(round(side / patch), 1) * patch for side in (width, height)]
        if sides[0] * sides[1] > most:
            shrink = math.sqrt(pixels / most)
            sides = [math.floor(side / shrink / patch) * patch for side in (width, height)]
        elif sides[0] * sides[1] < least:
            grow = math.sqrt(least / pixels)
            sides = [math.ceil(side * grow / patch) * patch for side in (width, height)]
        return sides[0], sides[1]
    bound = most if pixels > most else max(pixels, least)
    factor = 1.0 if bound == pixels else math.sqrt(pixels) / math.sqrt(bound)
    whole = math.ceil if config["rounding"] == "up" else round
    return whole(width / factor / patch) * patch, whole(height / factor / patch) * patch


def _padded(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Its own size, or scaled down into `max_width` x `max_height`, truncated to whole pixels."""
    if width <= config["max_width"] and height <= config["max_height"]:
        return width, height
    scale = min(config["max_height"] / height, config["max_width"] / width)
    return int(width * scale), int(height * scale)


__all__ = ["SoloMonolithImageProcessor"]
